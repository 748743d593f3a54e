/** Settings under "more": seed, evaluations per block, guidance, memory policy, pace. */

import { make } from "./dom.js";

const POLICIES = [
  "full",
  "window:12",
  "sink:3,window:12",
  "relative:3,window:12",
  "cyclic:21",
  "blended:3,window:12,blend:0.9",
  "rebuild:3",
  "rebuild:3,keep",
];
const NFES = [1, 2, 4, 8],
  PACES = ["realtime", "free"];

export class Settings {
  /** `act(control, fields)` sends a control. */
  constructor(container, text, { act }) {
    this.text = text;
    this.seed = make("input", { type: "number", min: 0, step: 1 });
    this.guidance = make("input", { type: "number", step: 0.1 });
    this.policy = make("input", { type: "text", list: "salt-policies", spellcheck: "false", maxlength: 200 });
    this.nfe = this.choices("nfe", NFES, (nfe) => act("nfe", { nfe }));
    this.pace = this.choices("pace", PACES, (pace) => act("pace", { pace }));
    const line = (key, input, send) =>
      make(
        "form",
        { class: "field", onsubmit: (event) => (event.preventDefault(), send()) },
        make("label", {}, text.say(make("span"), key), input),
        text.say(make("button", { type: "submit" }), "set"),
      );
    const number = (input) => (input.value === "" ? undefined : Number(input.value));
    text.say(this.seed, "seedHint", "title");
    this.element = make(
      "details",
      { class: "more" },
      text.say(make("summary"), "more"),
      make(
        "div",
        { class: "settings" },
        line("seed", this.seed, () => act("seed", { seed: number(this.seed) })),
        line("guidance", this.guidance, () => act("guidance", { guidance: number(this.guidance) })),
        line("policy", this.policy, () => act("policy", { policy: this.policy.value.trim() })),
        this.nfe.element,
        this.pace.element,
        make("datalist", { id: "salt-policies" }, ...POLICIES.map((value) => make("option", { value }))),
      ),
    );
    container.append(this.element);
  }

  choices(key, values, send) {
    const buttons = values.map((value) => {
      const button = make("button", { type: "button", onclick: () => send(value) });
      return typeof value === "string" ? this.text.say(button, value) : (button.append(String(value)), button);
    });
    const group = this.text.say(make("div", { class: "segments", role: "group" }, ...buttons), key, "aria-label");
    const element = make("div", { class: "field" }, this.text.say(make("span"), key), group);
    const mark = (current) =>
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(values[i] === current)));
    return { element, mark, buttons };
  }

  draw({ seed, guidance, policy, nfe, pace }, enabled) {
    const shown = { seed, guidance, policy };
    for (const [name, value] of Object.entries(shown))
      if (document.activeElement !== this[name] && this[`${name}Shown`] !== value)
        this[name].value = this[`${name}Shown`] = value ?? "";
    this.nfe.mark(nfe);
    this.pace.mark(pace);
    for (const button of this.element.querySelectorAll("button")) button.disabled = !enabled;
  }
}
