/** How widgets are shown: 0 as "auto" where it means the model's own, seconds with two decimals, few-used ones folded.
 * The values themselves, and with them saved graphs, stay as they are. */

import { isAdvanced } from "./front_ends.js";
import { make } from "./timeline.js";

const OWN = ["width", "height", "shift", "frames_per_block"]; // 0: the MODEL's own
const SECONDS = ["seconds", "to"];
const MORE = "salt_more";
const CUSTOM = "custom"; // the choice of nfe that reads the list in `steps`
let auto = "auto";
let sheet; // rules of nodes whose steps come from nfe, for Nodes 2.0, whose fields have no other way to show another text

/** Once, before nodes are made. word(english): the text in the user's language. */
export function prepareShownWidgets(word) {
  auto = word("auto");
  document.documentElement.style.setProperty("--salt-auto", JSON.stringify(auto));
  sheet = document.head.appendChild(make("style", "salt-auto-steps"));
}

/** A node of ours that was just made. nodes(): all nodes that are shown. */
export function showWidgets(node, { word, nodes }) {
  const widget = (name) => node.widgets?.find((w) => w.name === name);
  for (const own of OWN.map(widget).filter(Boolean)) drawInstead(own, (shown) => (Number(own.value) === 0 ? auto : shown));
  for (const seconds of SECONDS.map(widget).filter((w) => w?.type === "number")) seconds.options.precision = 2;
  const [nfe, steps] = [widget("nfe"), widget("steps")];
  const isListed = () => nfe?.value === CUSTOM || node.inputs?.some((i) => i.widget?.name === "nfe" && i.link != null);
  if (nfe && steps) {
    drawInstead(steps, (shown) => (isListed() ? shown : auto));
    const restyle = () => restyleSteps(nodes());
    chain(nfe, "callback", restyle);
    chain(node, "onConfigure", restyle);
    node.saltStepsAreAuto = () => !isListed();
    requestAnimationFrame(restyle); // it has no id before it is in a graph
  }
  fold(node, { word, isNeeded: (w) => w === steps && isListed() });
}

/** What the canvas writes for a widget. */
function drawInstead(widget, text) {
  const getter = findGetter(widget, "_displayValue");
  if (getter) Object.defineProperty(widget, "_displayValue", { configurable: true, get: () => text(getter.call(widget)) });
}

function findGetter(object, name) {
  for (let at = object; at; at = Object.getPrototypeOf(at)) {
    const found = Object.getOwnPropertyDescriptor(at, name);
    if (found) return found.get;
  }
}

/** Anew for the nodes of the graph that is shown. */
export function restyleSteps(nodes) {
  const places = nodes.filter((node) => node.saltStepsAreAuto?.()).map((node) => `[data-node-id="${CSS.escape(node.id)}"]`);
  if (!places.length) sheet.textContent = "";
  else {
    const field = `:is(${places.join(", ")}) [node-type^="Salt"]`;
    sheet.textContent =
      `${field} input[aria-label="steps"]:not(:focus) { color: transparent }\n` +
      `${field} div:has(> input[aria-label="steps"]:not(:focus))::before { content: var(--salt-auto); position: absolute; left: 1rem; top: 50%; transform: translateY(-50%); font-size: 12px; pointer-events: none }`;
  }
}

/** The canvas leaves advanced widgets where they are, or leaves gaps in their place: here they are hidden as well. What is
 * linked, or needed now, stays. Nodes 2.0 folds by the schema, and has a button of its own. */
function fold(node, { word, isNeeded }) {
  const isLinked = (widget) => node.inputs?.some((i) => i.widget?.name === widget.name && i.link != null);
  const folded = (node.widgets ?? []).filter((w) => isAdvanced(node, w));
  if (!folded.length || !node.toggleAdvanced) return;
  for (const widget of folded) {
    const isFolded = () => !isLinked(widget) && !isNeeded(widget);
    const isHidden = () => isFolded() && !node.showAdvanced && !globalThis.LiteGraph?.vueNodesMode;
    Object.defineProperty(widget, "advanced", { configurable: true, get: isFolded, set() {} });
    Object.defineProperty(widget, "hidden", { configurable: true, get: isHidden, set() {} });
  }
  const toggle = () => {
    const spare = Math.max(0, node.size[1] - node.computeSize()[1]);
    node.toggleAdvanced();
    node.setSize([node.size[0], node.computeSize()[1] + spare]);
  };
  const more = node.addWidget("button", MORE, null, toggle, { serialize: false, canvasOnly: true });
  more.serialize = false;
  Object.defineProperty(more, "label", {
    configurable: true,
    get: () => (node.showAdvanced ? `▴ ${word("fewer settings")}` : `▾ ${word("more settings")}`),
    set() {},
  });
  node.setSize([node.size[0], node.computeSize()[1]]);
}

/** After the method `name` of an object, `then` with the same arguments. */
export function chain(object, name, then) {
  const before = object[name];
  object[name] = function (...args) {
    const answer = before?.apply(this, args);
    then.apply(this, args);
    return answer;
  };
}
