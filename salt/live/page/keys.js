/** The keyboard: one table of keys, used to act on them and to list them. */

import { make } from "./dom.js";
import { directionOf } from "./words.js";

const TYPES_IN = "textarea, select, [contenteditable], input:not([type=checkbox], [type=range])";

/** Rows of the list: the keys as shown, the text's key, and whether it needs a known vocabulary. */
export const LIST = [
  ["Space", "k_space"],
  [".", "k_step"],
  ["/", "k_prompt"],
  ["Enter", "k_send"],
  ["Esc", "k_leave"],
  ["1 2 3 4 5", "k_how"],
  ["← ↑ ↓ →", "k_arrows", true],
  ["Q", "k_speed", true],
  ["C", "k_colour", true],
  ["O", "k_shape", true],
  ["R", "k_rewind"],
  ["F", "k_fork"],
  ["B", "k_bookmark"],
  ["G", "k_back"],
  ["T", "k_strip"],
  ["Shift+S", "k_stop"],
  ["V", "k_video"],
  ["J", "k_replay"],
  ["M", "k_more"],
  ["L", "k_language"],
  ["K", "k_steer"],
  ["?", "k_help"],
];

/** Act on keys of the whole page. `view`: the LiveView; `page`: {help, language}. Returns a function that ends it. */
export function listen(view, page) {
  const { actions } = view;
  const plain = {
    " ": actions.pause,
    ".": actions.step,
    "/": () => view.box.area.focus(),
    b: actions.bookmark,
    g: actions.back,
    r: () => actions.backBy("rewind", 3),
    f: () => actions.backBy("fork", 3),
    t: () => view.strip.body.querySelector("[data-current=true] .track")?.focus(),
    v: () => view.transport.video.click(),
    j: () => view.transport.replay.click(),
    l: page.language,
    k: actions.steer,
    m: () => (view.settings.element.open = !view.settings.element.open),
    "?": page.help,
  };
  ["keep", "recache", "cut", "blend", "shot"].forEach((how, i) => (plain[i + 1] = () => view.box.choose(how)));
  for (const [key, group] of Object.entries({ q: "speed", c: "colour", o: "shape" }))
    plain[key] = () => view.box.groups && view.enabled && view.box.pickNext(group);

  const act = (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]"))
      return;
    if (key === "Escape" && target.matches(TYPES_IN)) return void target.blur();
    if (target.matches(TYPES_IN)) return;
    if (target.matches("input[type=range]") && directionOf(key)) return; // they move the slider
    if (key === " " && target.matches("button, a, summary, input")) return; // Space presses it
    const direction = directionOf(key);
    if (direction && view.box.groups) {
      if (view.enabled) view.box.pick("direction", direction);
    } else if (key === "S") {
      actions.stop();
    } else if (Object.hasOwn(plain, key.toLowerCase())) {
      plain[key.toLowerCase()]();
    } else return;
    event.preventDefault();
  };
  document.addEventListener("keydown", act);
  return () => document.removeEventListener("keydown", act);
}

/** A dialog with the list of keys. */
export function helpDialog(text) {
  const list = make("dl", { class: "keys" });
  const close = text.say(make("button", { type: "button", onclick: () => dialog.close() }), "close");
  const title = text.say(make("h2", { id: "salt-keys" }), "help");
  const dialog = make("dialog", { class: "help", "aria-labelledby": "salt-keys" }, title, list, close);
  const show = (words) => {
    list.replaceChildren(
      ...LIST.filter(([, , needsWords]) => words || !needsWords).map(([keys, key]) =>
        make("div", {}, make("dt", {}, make("kbd", {}, keys)), make("dd", {}, text.t(key))),
      ),
    );
    dialog.showModal();
  };
  return { dialog, show };
}
