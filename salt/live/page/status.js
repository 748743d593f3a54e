/** The line of states: connection, recording, viewers, who steers. */

import { make } from "./dom.js";

export class Status {
  /** `steer()` asks for steering or hands it over. `pageLink`: with a link to the session's own page. */
  constructor(container, connection, text, { steer, pageLink = false }) {
    Object.assign(this, { connection, text });
    this.pill = make("span", { class: "pill", role: "status" });
    this.retry = text.say(
      make("button", { type: "button", class: "quiet", hidden: true, onclick: () => connection.retry() }),
      "retry",
    );
    this.recording = text.say(make("span", { class: "recording", hidden: true }), "recording");
    this.viewers = make("span", { class: "viewers" });
    this.steering = make("span", { class: "steering" });
    this.steer = make("button", { type: "button", class: "quiet", onclick: steer });
    this.element = make(
      "div",
      { class: "status" },
      this.pill,
      this.retry,
      this.recording,
      this.viewers,
      this.steering,
      this.steer,
    );
    if (pageLink) {
      this.page = text.say(make("a", { target: "_blank", hidden: true }), "fullPage");
      this.element.append(this.page);
    }
    container.append(this.element);
    this.timer = setInterval(() => connection.status === "waiting" && this.draw(), 500);
  }

  destroy() {
    clearInterval(this.timer);
  }

  draw() {
    const { connection, text } = this;
    const { status, state } = connection;
    let [kind, words] = [status, text.t(status)];
    if (status === "waiting") {
      const seconds = Math.max(0, Math.ceil((connection.retryAt - Date.now()) / 1000));
      words = [connection.reason, text.t("waiting", { seconds })].filter(Boolean).join(" ");
    } else if (status === "open") {
      kind = state?.status ?? "warming";
      words = text.t(kind);
      if (kind === "failed" && state.message) words = `${words}: ${state.message}`;
    }
    this.pill.dataset.kind = kind;
    if (this.pill.textContent !== words) this.pill.textContent = words;
    const open = status === "open";
    if (this.page && connection.url) [this.page.href, this.page.hidden] = [connection.page(), false];
    this.retry.hidden = status !== "waiting";
    this.recording.hidden = !open || !state?.recording || ["stopped", "failed"].includes(kind);
    this.viewers.hidden = this.steering.hidden = this.steer.hidden = !open;
    this.viewers.textContent = text.t("viewers", { count: state?.viewers ?? 1 });
    this.steering.textContent = text.t(connection.steers ? "steers" : "watches");
    const asked = connection.steers ? connection.asking.length : 0;
    this.steer.textContent = asked
      ? text.t("releaseAsked", { count: asked })
      : text.t(connection.steers ? "release" : "steer");
    this.steer.classList.toggle("quiet", !asked);
    if (connection.steers && (state?.viewers ?? 1) < 2) this.steer.hidden = true; // nobody to hand over to
  }
}
