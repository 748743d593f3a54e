/** Strengths of the LoRAs that the session has loaded; hidden where there are none. */

import { make } from "./dom.js";

const MOST = 2; // of a slider; the number beside it takes more

export class LoraSliders {
  /** `send(fields)` sends the control, with the strengths of all LoRAs. */
  constructor(container, text, { send }) {
    this.text = text;
    this.send = send;
    this.rows = new Map(); // by name
    this.shown = ""; // the strengths that the session has told last
    this.recache = make("input", { type: "checkbox" });
    this.list = make("div", { class: "sliders" });
    this.element = make(
      "fieldset",
      { class: "loras", hidden: true },
      text.say(make("legend"), "loras"),
      this.list,
      text.say(
        make("label", { class: "field" }, this.recache, text.say(make("span"), "loraRecache")),
        "loraRecacheHint",
        "title",
      ),
    );
    container.append(this.element);
  }

  row(name) {
    const slider = make("input", { type: "range", min: 0, max: MOST, step: 0.05, "aria-label": name });
    const number = make("input", { type: "number", step: 0.05, "aria-label": name });
    slider.addEventListener("input", () => (number.value = slider.value));
    number.addEventListener("input", () => (slider.value = number.value));
    for (const input of [slider, number]) input.addEventListener("change", () => this.ask());
    const element = make("label", { class: "field", "data-lora": name }, make("span", {}, name), slider, number);
    return { element, slider, number };
  }

  ask() {
    const adapters = [...this.rows].map(([name, { number }]) => ({ name, strength: Number(number.value) }));
    this.send({ adapters, recache: this.recache.checked });
  }

  draw({ loras = [] }, enabled) {
    const told = JSON.stringify(loras);
    if (told !== this.shown) {
      if (loras.map(({ name }) => name).join() !== [...this.rows.keys()].join()) {
        this.rows = new Map(loras.map(({ name }) => [name, this.row(name)]));
        this.list.replaceChildren(...[...this.rows.values()].map(({ element }) => element));
      }
      for (const { name, strength } of loras) {
        const { slider, number } = this.rows.get(name);
        slider.value = number.value = strength;
      }
      this.shown = told;
    }
    this.element.hidden = loras.length === 0;
    this.element.disabled = !enabled;
  }
}
