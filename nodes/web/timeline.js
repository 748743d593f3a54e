/**
 * The timeline editor: prompts as blocks along seconds, and a row of input fields for the selected one.
 *
 * It uses DOM elements only, and neither ComfyUI nor the place where the text is stored. Mouse: drag an edge to change when a prompt begins,
 * drag a block to move it, click it to edit. Keys on a block: arrows, Enter, Delete.
 */

import * as timeline from "./timeline_text.js";

const CLICK_TOLERANCE = 4; // pixels between press and release that still count as a click
const MARKS = { keep: "", recache: "↻", cut: "✂", shot: "▣", "recache-sink": "↻" };
const TICKS = [0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800];

/**
 * read(): the text. write(text): the user changed it. clip(): the clip's seconds, 0 where they are not known;
 * block(): those of one of the student's blocks.
 * locked(): whether the text comes from a link. showText(wanted): show the text as it is stored as well, or not; returns
 * whether it is shown. word(english): the text in the user's language.
 * Returns {element, refresh}; call refresh when the result of any of these has changed.
 */
export function timelineView({ read, write, clip, block, locked, showText, word }) {
  const parts = build(word);
  const { element, track, ruler, fields, said } = parts;
  let changes = [];
  let selected = 0;
  let drag = null;
  let wantsText = false;

  function refresh() {
    const found = timeline.parse(read());
    element.classList.toggle("salt-locked", locked());
    element.classList.toggle("salt-unread", Boolean(found.error));
    said.textContent = locked() ? word("the text comes from a link") : found.error ? errorText(found.error, word) : "";
    if (!found.error) changes = found.changes;
    wantsText ||= Boolean(found.error); // only there it can be mended
    const shown = showText(wantsText);
    element.classList.toggle("salt-with-text", shown);
    fields.raw.setAttribute("aria-pressed", String(shown));
    const late = changes.filter((c) => clip() && c.seconds >= clip());
    said.classList.toggle("salt-note", !found.error);
    if (late.length && !said.textContent) {
      said.textContent = `${word("after the end of the clip, and not used")}: ${late.map((c) => `${c.seconds} s`).join(", ")}`;
    }
    selected = Math.min(selected, changes.length - 1);
    const usable = !found.error && !locked();
    draw(parts, { changes, selected, usable, end: drag?.end ?? timeline.extent(changes, clip()), clip: clip(), word });
  }

  function change(next, select = selected) {
    selected = select;
    if (next !== changes) write(timeline.format(next));
    refresh();
  }

  function edit(index) {
    selected = index;
    refresh();
    fields.text.focus();
  }

  const end = () => timeline.extent(changes, clip());
  const usable = () => !element.classList.contains("salt-locked") && !element.classList.contains("salt-unread");

  track.addEventListener("pointerdown", (event) => {
    const held = event.target.closest("[data-index]");
    if (!held || event.button !== 0 || !usable()) return;
    const index = Number(held.dataset.index);
    const move = held.classList.contains("salt-edge") ? timeline.moveStart : timeline.moveBlock;
    drag = { index, move, from: changes, at: event.clientX, end: end(), moved: false };
    track.setPointerCapture(event.pointerId);
  });
  track.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const far = event.clientX - drag.at;
    drag.moved ||= Math.abs(far) > CLICK_TOLERANCE;
    if (!drag.moved) return;
    const seconds = drag.from[drag.index].seconds + (far / track.getBoundingClientRect().width) * drag.end;
    const snapped = timeline.snapped(Math.min(seconds, drag.end));
    change(drag.move(drag.from, drag.index, snapped), drag.index);
  });
  track.addEventListener("pointerup", () => {
    const done = drag;
    drag = null;
    if (done && !done.moved) edit(done.index);
    else refresh();
  });
  track.addEventListener("pointercancel", () => {
    const left = drag;
    drag = null;
    if (left) change(left.from);
  });
  track.addEventListener("focusin", (event) => {
    const held = event.target.closest("[data-index]");
    if (!held || drag) return;
    selected = Number(held.dataset.index);
    refresh();
  });
  track.addEventListener("keydown", (event) => {
    const held = event.target.closest("[data-index]");
    if (!held || !usable()) return;
    const index = Number(held.dataset.index);
    const by = { ArrowLeft: -timeline.STEP, ArrowRight: timeline.STEP }[event.key];
    if (by) {
      const move = event.shiftKey ? timeline.moveBlock : timeline.moveStart;
      change(move(changes, index, timeline.snapped(changes[index].seconds + by)), index);
    } else if (event.key === "Enter") edit(index);
    else if (event.key === "Delete") drop(index);
    else return;
    event.preventDefault();
  });

  function drop(index) {
    change(timeline.remove(changes, index), Math.max(0, index - 1));
    track.querySelectorAll(".salt-block")[selected]?.focus();
  }

  fields.seconds.addEventListener("change", () => {
    const asked = Number(fields.seconds.value);
    if (fields.seconds.value !== "" && asked >= 0) change(timeline.moveStart(changes, selected, timeline.rounded(asked)));
    fields.seconds.value = changes[selected].seconds;
  });
  fields.mode.addEventListener("change", () => change(timeline.setMode(changes, selected, fields.mode.value)));
  fields.text.addEventListener("input", () => change(timeline.setText(changes, selected, fields.text.value)));
  fields.text.addEventListener("blur", () => {
    fields.text.value = changes[selected].text;
  });
  fields.add.addEventListener("click", () => {
    const into = timeline.roomiest(changes, selected, clip(), block());
    const next = timeline.split(changes, into, end(), clip(), block());
    if (next === changes) return;
    change(next, into + 1);
    fields.text.select();
  });
  fields.raw.addEventListener("click", () => {
    wantsText = !wantsText;
    refresh();
  });
  fields.remove.addEventListener("click", () => drop(selected));

  // What is typed and dragged here is not meant for the canvas: Delete would remove the node, a drag would move it.
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  element.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  element.addEventListener("pointerenter", () => drag ?? refresh());
  // The canvas scales what lies on it; an edge is as wide on the screen at every zoom.
  for (const kind of ["pointerenter", "pointermove"]) {
    element.addEventListener(kind, () => {
      const zoom = element.getBoundingClientRect().width / element.offsetWidth;
      element.style.setProperty("--salt-zoom", String(zoom || 1));
    });
  }
  refresh();
  return { element, refresh };
}

/** `tag` of class `name` with attributes and children. */
export function make(tag, name, attributes = {}, children = []) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function build(word) {
  const named = (text) => ({ "aria-label": word(text), title: word(text) });
  const track = make("div", "salt-track", { role: "group", "aria-label": word("prompts along seconds") });
  const beyond = make("div", "salt-beyond", { "aria-hidden": "true" }); // the seconds after the clip's end
  const ruler = make("div", "salt-ruler", { "aria-hidden": "true" });
  const fields = {
    seconds: make("input", "salt-seconds", { type: "number", min: 0, step: timeline.STEP, ...named("second at which it begins") }),
    mode: make("select", "salt-mode", named("what the memory does there")),
    add: make("button", "salt-add", { type: "button", ...named("add a prompt") }, ["+"]),
    remove: make("button", "salt-remove", { type: "button", ...named("remove this prompt") }, ["−"]),
    raw: make("button", "salt-raw", { type: "button", ...named("show the text of all prompts") }, ["≡"]),
    text: make("textarea", "salt-text", { rows: 2, spellcheck: "false", ...named("the selected prompt") }),
  };
  for (const mode of timeline.MODES) {
    fields.mode.append(make("option", "", { value: mode }, [[MARKS[mode], word(mode)].filter(Boolean).join(" ")]));
  }
  const row = make("div", "salt-row", {}, [fields.seconds, fields.mode, fields.add, fields.remove, fields.raw]);
  const said = make("div", "salt-said", { role: "status" });
  const element = make("div", "salt-timeline", { role: "group", "aria-label": word("prompt timeline") });
  track.append(beyond);
  element.append(track, ruler, row, fields.text, said);
  return { element, track, beyond, ruler, fields, said };
}

function draw({ track, beyond, ruler, fields }, { changes, selected, usable, end, clip, word }) {
  const share = (seconds) => `${(100 * seconds) / end}%`;
  const wanted = changes.length;
  while (track.querySelectorAll(".salt-block").length > wanted) {
    [...track.querySelectorAll(".salt-block")].at(-1).remove();
    [...track.querySelectorAll(".salt-edge")].at(-1).remove();
  }
  while (track.querySelectorAll(".salt-block").length < wanted) {
    track.append(make("button", "salt-block", { type: "button" }), make("div", "salt-edge", { "aria-hidden": "true" }));
  }
  const blocks = track.querySelectorAll(".salt-block");
  const edges = track.querySelectorAll(".salt-edge");
  for (const [index, { seconds, text, mode }] of changes.entries()) {
    const [block, edge] = [blocks[index], edges[index]];
    const until = changes[index + 1]?.seconds ?? end;
    const said = `${seconds} s${mode === "keep" ? "" : ` (${word(mode)})`}: ${text}`;
    block.dataset.index = edge.dataset.index = index;
    block.dataset.mode = edge.dataset.mode = mode;
    block.classList.toggle("salt-late", Boolean(clip) && seconds >= clip);
    block.style.left = edge.style.left = share(seconds);
    block.style.width = share(until - seconds);
    block.textContent = [MARKS[mode], text].filter(Boolean).join(" ");
    block.title = `${said}\n${word("drag to move, click to edit; arrows, Enter, Delete")}`;
    block.setAttribute("aria-label", said);
    block.setAttribute("aria-pressed", String(index === selected));
    block.disabled = !usable;
    edge.hidden = index === 0 || !usable;
    edge.title = `${seconds} s`;
  }
  const step = TICKS.find((tick) => end / tick <= 9) ?? end;
  const ticks = Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => timeline.rounded(i * step));
  ruler.replaceChildren(...ticks.map((t) => make("span", "", { style: `left: ${share(t)}` }, [`${t}`])));
  beyond.hidden = !(clip && clip < end);
  if (!beyond.hidden) {
    beyond.style.left = share(clip);
    const mark = make("span", "salt-end", { style: `left: ${share(clip)}`, title: word("the clip ends here") });
    ruler.append(mark);
  }
  fill(fields, changes, selected, usable);
}

function fill(fields, changes, selected, usable) {
  const { seconds, text, mode } = changes[selected] ?? { seconds: 0, text: "", mode: "keep" };
  if (document.activeElement !== fields.seconds) fields.seconds.value = seconds;
  // Blanks at the end of what is being typed are no change of the prompt.
  if (document.activeElement !== fields.text || timeline.setText(changes, selected, fields.text.value)[selected]?.text !== text) {
    fields.text.value = text;
  }
  fields.mode.value = mode;
  for (const field of Object.values(fields)) field.disabled = !usable && field !== fields.raw;
  if (!selected) fields.seconds.disabled = fields.mode.disabled = true;
  if (changes.length < 2) fields.remove.disabled = true;
}

function errorText({ line, found, expected }, word) {
  return `${word("line")} ${line}: ${word("found")} "${found}", ${word("expected")} ${expected}`;
}
