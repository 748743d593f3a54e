/** The page's words in the chosen language. */

import { EN } from "./text_en.js";
import { ZH } from "./text_zh.js";

const TABLES = { en: EN, zh: ZH };
const STORED = "salt-live-language";

/** "zh" where the browser asks for Chinese (or the reader chose it), otherwise "en". */
export function preferred() {
  try {
    const chosen = localStorage.getItem(STORED);
    if (chosen in TABLES) return chosen;
  } catch {
    // storage is off: the browser's language counts
  }
  return /^zh\b/i.test(navigator.language) ? "zh" : "en";
}

/** Words of one view; `say` binds elements to keys, so that a change of language rewrites them. */
export class Text {
  constructor(language = preferred()) {
    this.language = language;
    this.bound = [];
    this.listeners = [];
  }

  /** The text of a key, `{name}` filled in. */
  t(key, values = {}) {
    return (TABLES[this.language][key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
  }

  /** Bind an element's text, or an attribute of it, to a key; returns the element. */
  say(element, key, attribute = null) {
    this.bound.push([element, key, attribute]);
    this.write(element, key, attribute);
    return element;
  }

  write(element, key, attribute) {
    if (attribute) element.setAttribute(attribute, this.t(key));
    else element.textContent = this.t(key);
  }

  set(language) {
    this.language = language;
    try {
      localStorage.setItem(STORED, language);
    } catch {
      // storage is off: the choice lasts as long as the page
    }
    for (const [element, key, attribute] of this.bound) this.write(element, key, attribute);
    for (const listener of this.listeners) listener();
  }
}
