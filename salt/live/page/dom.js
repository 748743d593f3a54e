/** Helpers to build elements. Text always becomes a text node, never HTML. */

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** An element: `make("button", {class: "x", onclick: f}, "text", child)`. */
export const make = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);

const PATHS = {
  play: "M6 4l14 8-14 8z",
  pause: "M6 4h4v16H6zM14 4h4v16h-4z",
  step: "M5 4l10 8-10 8zM16 4h3v16h-3z",
  stop: "M5 5h14v14H5z",
  bookmark: "M6 3h12v18l-6-5-6 5z",
  download: "M11 3h2v9h4l-5 6-5-6h4zM4 19h16v2H4z",
  replay: "M12 5V1L6 6l6 5V7a5 5 0 1 1-5 5H5a7 7 0 1 0 7-7z",
  up: "M12 4l8 10h-5v6H9v-6H4z",
  circle: "M12 3a9 9 0 1 0 .01 0z",
  square: "M4 4h16v16H4z",
  triangle: "M12 3l10 18H2z",
};

/** A picture of 1 em that says nothing to a screen reader; the element around it has the label. */
export function icon(name) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({
    viewBox: "0 0 24 24",
    class: `icon icon-${name}`,
    "aria-hidden": "true",
  }))
    svg.setAttribute(key, value);
  svg.append(path);
  return svg;
}

/** Seconds as `m:ss.s`. */
export function clock(seconds) {
  const tenths = Math.max(0, Math.round(seconds * 10));
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}
