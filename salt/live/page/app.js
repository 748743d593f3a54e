/** The page: finds the session and shows it. Query: `session` (without it, the server's first one) and `token`. */

import { make } from "./dom.js";
import { helpDialog, listen } from "./keys.js";
import { Text } from "./text.js";
import { LiveView } from "./view.js";

const query = new URLSearchParams(location.search);
const text = new Text();

/** An address below the page's own, with the token that the page was opened with. */
function address(path, extra = {}) {
  const url = new URL(path, location.href);
  const token = query.get("token");
  for (const [key, value] of Object.entries(extra)) url.searchParams.set(key, value);
  if (token) url.searchParams.set("token", token);
  return url;
}

async function socketUrl() {
  let session = query.get("session");
  if (!session) {
    const answer = await fetch(address("api/sessions"));
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    session = (await answer.json()).sessions[0]?.id;
    if (!session) throw new Error(text.t("noSession"));
  }
  return address("ws", { session });
}

const view = new LiveView(document.querySelector("main"), socketUrl, { text });
const help = helpDialog(text);
const showHelp = () => help.show(Boolean(view.box.groups));
const language = () => {
  text.set(text.language === "zh" ? "en" : "zh");
  named();
};
function named() {
  document.documentElement.lang = text.language === "zh" ? "zh-Hans" : "en";
  document.title = text.t("title");
}
const other = text.say(make("button", { type: "button", class: "quiet", onclick: language }), "language");
const keys = text.say(
  make("button", { type: "button", class: "quiet", "aria-keyshortcuts": "?", onclick: showHelp }),
  "help",
);
view.top.prepend(
  make("img", { class: "logo", src: "static/icon.svg", alt: "", width: 26, height: 26 }),
  text.say(make("h1"), "title"),
);
view.top.append(make("span", { class: "grow" }), other, keys);
view.element.append(help.dialog);
listen(view, { help: showHelp, language });
named();
