/** A live session in a container: the page, or the widget of a ComfyUI node (`compact`). */

import { Camera } from "./camera.js";
import { clock, make } from "./dom.js";
import { Figures } from "./figures.js";
import { LoraSliders } from "./loras.js";
import { Player } from "./player.js";
import { PromptBox } from "./prompt_box.js";
import { LiveConnection } from "./protocol.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";
import { Strip } from "./strip.js";
import { Text } from "./text.js";
import { Transport } from "./transport.js";

const TOLD = 3; // controls whose receipts are shown

export class LiveView {
  /** `socketUrl`: the websocket's URL, or a function that returns it (see LiveConnection). `compact`: without figures
   * and further settings. The document needs `live.css`, whose rules are those of `.salt-live`, the container. */
  constructor(container, socketUrl, { compact = false, text = new Text() } = {}) {
    container.classList.add("salt-live");
    container.classList.toggle("compact", compact);
    this.text = text;
    const live = (this.connection = new LiveConnection(socketUrl));
    const act = (control, fields) => this.act(control, fields);
    this.actions = this.makeActions();
    const top = make("div", { class: "top" });
    const stage = make("div", { class: "stage" });
    const left = make("section", { class: "left" }, stage);
    const right = make("section", { class: "right" });
    const below = make("div", { class: "below" });
    this.element = make("div", { class: "view" }, top, make("div", { class: "columns" }, left, right), below);
    container.append(this.element);
    text.say(left, "picture", "aria-label");
    text.say(right, "prompt", "aria-label");
    this.top = top;
    this.status = new Status(top, live, text, { steer: this.actions.steer, pageLink: compact });
    this.player = new Player(stage, live, {
      onshown: (frame) => this.shown(frame),
      onsize: (aspect) => left.style.setProperty("--aspect", String(aspect)),
    });
    text.say(this.player.canvas, "picture", "aria-label");
    this.time = make("span", { class: "time" });
    this.arrows = text.say(make("span", { class: "arrows", hidden: true }), "arrows");
    stage.append(this.time, this.arrows);
    this.box = new PromptBox(right, text, { send: (fields) => act("prompt", fields) });
    this.receipts = make("ul", { class: "receipts", "aria-live": "polite" });
    this.loras = new LoraSliders(right, text, { send: (fields) => act("lora", fields) });
    this.camera = new Camera(right, live, text, { send: (strength) => act("strength", { strength }) });
    right.append(this.receipts);
    if (!compact) {
      this.figures = new Figures(right, live, this.player, text, this.camera);
      this.settings = new Settings(right, text, { act });
    }
    this.strip = new Strip(below, live, text, { act });
    this.transport = new Transport(left, this.strip.head, live, text, this.actions);
    for (const name of ["status", "state", "steering"]) live.on(name, () => this.draw());
    live.on("welcome", ({ words }) => {
      this.box.offer(words ?? []);
      this.arrows.hidden = compact || !this.box.groups;
    });
    live.on("control", () => this.drawReceipts());
    text.listeners.push(() => (this.draw(), this.drawReceipts()));
    this.draw();
  }

  destroy() {
    this.connection.close();
    for (const part of [this.status, this.player, this.camera, this.strip, this.figures]) part?.destroy();
    this.element.remove();
  }

  get enabled() {
    return this.connection.connected && this.connection.steers && !this.ended;
  }

  get ended() {
    return ["stopped", "failed"].includes(this.connection.state?.status);
  }

  get paused() {
    return this.player.held || this.connection.state?.status === "paused";
  }

  /** Send a control; true when it was sent. What the session refuses is shown under the prompt. */
  act(control, fields = {}) {
    const sent = this.enabled ? this.connection.control(control, fields) : null;
    this.failed = sent ? "" : "notConnected";
    if (!sent) this.drawReceipts();
    else if (["rewind", "fork", "goto", "step"].includes(control)) this.player.hold(false);
    return sent !== null;
  }

  makeActions() {
    return {
      pause: () => {
        const hold = !this.paused;
        if (this.act(hold ? "pause" : "resume")) this.player.hold(hold);
        this.draw();
      },
      step: () => this.act("step"),
      stop: () => this.act("stop"),
      bookmark: () => this.act("bookmark", { name: clock(this.seconds) }),
      back: () => {
        const last = this.connection.state?.bookmarks.at(-1);
        if (last) this.act("goto", { bookmark: last.id });
      },
      backBy: (control, seconds) => this.act(control, { seconds: Math.max(0, this.seconds - seconds) }),
      steer: () => this.connection.post({ type: this.connection.steers ? "release" : "steer" }),
    };
  }

  /** Time along the branch of the frame on screen. */
  get seconds() {
    return (this.player.last?.frame ?? 0) / (this.connection.welcome?.fps ?? 16);
  }

  shown(frame) {
    this.time.textContent = clock(this.seconds);
    this.strip.play(frame);
    this.camera.shown(frame);
  }

  draw() {
    const { state } = this.connection;
    const { enabled, paused, ended } = this;
    if (ended) this.player.hold(false); // what was made still plays to its end
    this.status.draw();
    this.transport.draw({ paused, enabled, ended });
    this.box.enable(enabled);
    if (this.strip.enabled !== enabled) this.strip.enable(enabled);
    if (!state) return;
    this.box.follow(state.prompts);
    this.loras.draw(state, enabled);
    this.camera.draw(state, enabled);
    this.settings?.draw(state, enabled);
  }

  drawReceipts() {
    const { text } = this;
    const records = [...this.connection.records.values()].slice(-TOLD).reverse();
    const items = records.map((record) => {
      const { control, stage, frame, shownMs, message } = record;
      const values = {
        what: text.t(`c_${control}`),
        time: clock((frame ?? 0) / (this.connection.welcome?.fps ?? 16)),
        seconds: ((shownMs ?? 0) / 1000).toFixed(2),
        message,
      };
      return make("li", { "data-stage": stage }, text.t(stage, values));
    });
    if (this.failed) items.unshift(make("li", { "data-stage": "refused" }, text.t(this.failed)));
    this.receipts.replaceChildren(...items);
  }
}
