/** Buttons under the picture (pause, step, bookmark, stop and keep), and the links that download the clip. */

import { icon, make } from "./dom.js";

export class Transport {
  /** `downloads` gets the links; `actions`: {pause, step, bookmark, back, stop}, each called without arguments. */
  constructor(container, downloads, connection, text, actions) {
    this.text = text;
    this.connection = connection;
    const button = (name, picture, kind = "") => {
      const label = text.say(make("span", { class: "label" }), name);
      return make("button", { type: "button", class: kind, onclick: () => actions[name]() }, icon(picture), label);
    };
    this.pauseLabel = make("span", { class: "label" });
    this.pauseIcon = make("span", { class: "icon-box" });
    this.pause = make(
      "button",
      { type: "button", class: "primary", onclick: () => actions.pause() },
      this.pauseIcon,
      this.pauseLabel,
    );
    this.step = button("step", "step");
    this.bookmark = button("bookmark", "bookmark");
    this.stop = button("stop", "stop");
    this.element = make("div", { class: "transport", role: "group" }, this.pause, this.step, this.bookmark, this.stop);
    container.append(this.element);
    const link = (name) => {
      const element = make("a", { class: "button", hidden: true }, icon(name === "video" ? "download" : "replay"));
      element.append(text.say(make("span", { class: "label" }), name));
      return text.say(element, `${name}Long`, "title");
    };
    this.video = link("video");
    this.replay = link("replay");
    downloads.append(this.video, this.replay);
  }

  draw({ paused, enabled, ended }) {
    const key = paused ? "resume" : "pause";
    if (this.drawnKey !== key) this.pauseIcon.replaceChildren(icon(paused ? "play" : "pause"));
    this.drawnKey = key;
    this.pauseLabel.textContent = this.text.t(key);
    for (const one of [this.pause, this.step, this.bookmark, this.stop]) one.disabled = !enabled || ended;
    const { welcome } = this.connection;
    this.video.hidden = this.replay.hidden = !welcome;
    if (!welcome) return;
    this.link(this.video, "recording.mp4", "salt-live.mp4");
    this.link(this.replay, "replay.json", "salt-live.json");
  }

  link(element, file, name) {
    const href = this.connection.file(file);
    if (element.href !== href) element.href = href;
    element.download = name;
  }
}
