/** The prompt box: one or several weighted prompts, how the change is made, and pickers for a known vocabulary. */

import { icon, make } from "./dom.js";
import { GROUPS, groupsOf, withWord, wordsOf } from "./words.js";

export const HOWS = ["keep", "recache", "cut", "blend", "shot"];
const LONGEST_PROMPT = 4000,
  MOST_PROMPTS = 8;

export class PromptBox {
  /** `send(fields)` is called with the fields of a prompt control. */
  constructor(container, text, { send }) {
    this.text = text;
    this.sendFields = send;
    this.rows = [];
    this.groups = null;
    this.how = "keep";
    this.edited = false; // the reader changed the text since it was last sent or taken from the session
    this.list = make("div", { class: "prompts" });
    this.hows = HOWS.map((how) => text.say(make("button", { type: "button", onclick: () => this.choose(how) }), how));
    this.hint = make("p", { class: "hint", id: "salt-how-hint" });
    this.keepSink = make("input", { type: "checkbox" });
    this.blocks = make("input", { type: "number", min: 1, max: 64, value: 4 });
    this.method = make("select", {}, ...["linear", "slerp"].map((m) => text.say(make("option", { value: m }), m)));
    const field = (key, input) => make("label", { class: "field" }, text.say(make("span"), key), input);
    this.sinkField = field("keepSink", this.keepSink);
    this.blendFields = make("span", { class: "fields" }, field("blocks", this.blocks), field("method", this.method));
    this.add = text.say(
      make("button", { type: "button", class: "quiet", onclick: () => this.addRow("", 1).focus() }),
      "addPrompt",
    );
    this.submit = text.say(make("button", { type: "submit", class: "primary" }), "send");
    this.pickers = make("div", { class: "pickers", hidden: true });
    this.form = make(
      "form",
      { class: "prompt-box", onsubmit: (event) => (event.preventDefault(), this.send()) },
      this.list,
      this.pickers,
      text.say(make("div", { class: "segments", role: "group" }, ...this.hows), "how", "aria-label"),
      make("div", { class: "how-more" }, this.hint, this.sinkField, this.blendFields),
      make("div", { class: "row" }, this.add, make("span", { class: "grow" }), this.submit),
    );
    container.append(this.form);
    text.listeners.push(() => this.relabel());
    this.addRow("", 1);
    this.choose("keep");
  }

  get area() {
    return this.rows[0].area;
  }

  addRow(prompt, weight) {
    const area = make("textarea", {
      rows: 2,
      maxlength: LONGEST_PROMPT,
      spellcheck: "false",
      oninput: () => this.changed(),
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.send();
      },
    });
    area.value = prompt;
    const range = make("input", {
      type: "range",
      min: 0.05,
      max: 1,
      step: 0.05,
      value: weight,
      oninput: () => this.changed(),
    });
    const remove = make("button", { type: "button", class: "quiet", onclick: () => this.removeRow(row) }, "×");
    const share = make("span", { class: "share", "aria-hidden": "true" });
    const mix = make("div", { class: "mix" }, range, share, remove);
    const row = { area, range, remove, share, mix, element: make("div", { class: "prompt" }, area, mix) };
    this.rows.push(row);
    this.list.append(row.element);
    this.relabel();
    return area;
  }

  removeRow(row) {
    this.rows = this.rows.filter((other) => other !== row);
    row.element.remove();
    this.relabel();
    this.changed();
    this.area.focus();
  }

  changed() {
    this.edited = true;
    this.relabel();
  }

  relabel() {
    const weights = this.shares();
    this.rows.forEach(({ area, range, remove, share, mix }, i) => {
      const n = i + 1;
      area.setAttribute("aria-label", this.rows.length > 1 ? this.text.t("promptN", { n }) : this.text.t("prompt"));
      area.placeholder = this.text.t("promptHint");
      range.setAttribute("aria-label", this.text.t("weight", { n }));
      remove.setAttribute("aria-label", this.text.t("remove", { n }));
      remove.hidden = i === 0;
      share.textContent = `${Math.round(weights[i] * 100)} %`;
      mix.hidden = this.rows.length === 1;
    });
    this.add.hidden = this.rows.length >= MOST_PROMPTS;
    this.hint.textContent = this.text.t(`${this.how}Hint`);
    if (this.groups) this.markWords();
  }

  shares() {
    const weights = this.rows.map(({ range }) => Number(range.value));
    const sum = weights.reduce((a, b) => a + b, 0);
    return weights.map((weight) => weight / sum);
  }

  choose(how) {
    this.how = how;
    this.hows.forEach((button, i) => button.setAttribute("aria-pressed", String(HOWS[i] === how)));
    this.sinkField.hidden = how !== "recache";
    this.blendFields.hidden = how !== "blend";
    this.hint.textContent = this.text.t(`${how}Hint`);
  }

  fields() {
    const weights = this.shares();
    const prompts = this.rows.map(({ area }, i) => ({ text: area.value.trim(), weight: weights[i] }));
    const blocks = Math.min(64, Math.max(1, Math.round(Number(this.blocks.value)) || 1));
    return {
      prompts,
      switch: this.how === "blend" ? "keep" : this.how,
      keep_sink: this.how === "recache" && this.keepSink.checked,
      blend: { blocks: this.how === "blend" ? blocks : 0, method: this.method.value },
    };
  }

  send() {
    if (this.sendFields(this.fields())) this.edited = false;
  }

  /** Show the session's prompts, unless the reader is writing. */
  follow(prompts) {
    if (
      this.edited ||
      !prompts?.length ||
      (this.form.contains(document.activeElement) && document.activeElement === this.area)
    )
      return;
    const said = prompts.map(({ text }) => text);
    if (said.length === this.rows.length && said.every((one, i) => one === this.rows[i].area.value)) return;
    while (this.rows.length) this.rows.pop().element.remove();
    for (const { text, weight } of prompts.slice(0, MOST_PROMPTS))
      this.addRow(text, Math.min(1, Math.max(0.05, weight)));
    this.relabel();
  }

  /** Pickers for the words of the model; none for a model that takes any text. */
  offer(words) {
    this.groups = groupsOf(words);
    this.pickers.hidden = !this.groups;
    this.pickers.replaceChildren();
    this.buttons = [];
    for (const [group, known] of Object.entries(this.groups ?? {})) {
      const buttons = known.map((word) => {
        const button = make("button", { type: "button", "data-word": word, onclick: () => this.pick(group, word) });
        if (group === "shape") button.append(icon(word));
        if (group === "direction") button.append(icon("up"));
        if (group === "colour") button.append(make("span", { class: "swatch" }));
        if (group === "speed") button.textContent = word;
        else [button.title, button.ariaLabel] = [word, word];
        this.buttons.push({ group, word, button });
        return button;
      });
      const box = make("div", { class: `picker picker-${group}`, role: "group" }, ...buttons);
      this.pickers.append(this.text.say(box, group, "aria-label"));
    }
    if (this.groups) this.markWords();
  }

  markWords() {
    const said = wordsOf(this.area.value);
    for (const { group, word, button } of this.buttons)
      button.setAttribute("aria-pressed", String(said[group] === word));
  }

  /** Replace one word of the first prompt and send it. */
  pick(group, word) {
    this.area.value = withWord(this.area.value, group, word);
    this.relabel();
    this.send();
  }

  /** The next word of a group after the one that the prompt has. */
  pickNext(group) {
    const known = this.groups?.[group] ?? GROUPS[group];
    this.pick(group, known[(known.indexOf(wordsOf(this.area.value)[group]) + 1) % known.length]);
  }

  enable(enabled) {
    for (const button of [this.submit, ...(this.buttons ?? []).map(({ button }) => button)]) button.disabled = !enabled;
  }
}
