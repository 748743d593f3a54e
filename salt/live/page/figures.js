/** Figures of the running session: rates, lead, drops, latencies of a prompt and of a picture. */

import { make } from "./dom.js";

const NAMES = ["fps", "made", "lead", "drops", "latency", "glass"];

export class Figures {
  constructor(container, connection, player, text, camera) {
    Object.assign(this, { connection, player, text, camera });
    this.latency = null; // seconds from the latest prompt sent to its first frame on screen
    this.values = Object.fromEntries(NAMES.map((name) => [name, make("dd", { "data-figure": name })]));
    this.element = make(
      "dl",
      { class: "figures" },
      ...NAMES.map((name) => make("div", {}, text.say(make("dt"), name), this.values[name])),
    );
    container.append(this.element);
    this.end = connection.on("control", ({ control, stage, shownMs }) => {
      if (control === "prompt" && stage === "shown") this.latency = shownMs / 1000;
    });
    this.timer = setInterval(() => this.draw(), 500);
    this.draw();
  }

  destroy() {
    clearInterval(this.timer);
    this.end();
  }

  draw() {
    const { text, player, connection } = this;
    const rate = (value) => (value ? text.t("perSecond", { value: value.toFixed(1) }) : text.t("none"));
    const seconds = (value) => (value === null ? text.t("none") : text.t("seconds", { value: value.toFixed(2) }));
    const shown = {
      fps: rate(player.rate),
      made: rate(connection.state?.fps_made ?? 0),
      lead: seconds(player.controller.lead / 1000),
      drops: String(player.controller.dropped + connection.serverDrops),
      latency: seconds(this.latency),
      glass: seconds(this.camera.latency),
    };
    for (const [name, value] of Object.entries(shown)) this.values[name].textContent = value;
  }
}
