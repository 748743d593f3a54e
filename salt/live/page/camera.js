/** A camera's pictures for the session, how far they may be changed, and how long they take to come back. */

import { make } from "./dom.js";

const MAGIC = 0x31434c53; // "SLC1", little endian
const HEADER_BYTES = 12;
const LARGEST = 60_000; // bytes of a picture; the server takes 64 KiB
const BEHIND = 128_000; // bytes that the connection has not sent: the next pictures are left out

/** One picture as a binary message: its time by this page's clock in ms, and its JPEG. */
export function pictureMessage(jpeg, time) {
  const message = new Uint8Array(HEADER_BYTES + jpeg.byteLength);
  const view = new DataView(message.buffer);
  view.setUint32(0, MAGIC, true);
  view.setFloat64(4, time, true);
  message.set(new Uint8Array(jpeg), HEADER_BYTES);
  return message;
}

/** The part of a picture `width` x `height` that covers the clip: `[x, y, width, height]`. */
export function covering(width, height, clipWidth, clipHeight) {
  const scale = Math.min(width / clipWidth, height / clipHeight);
  const [w, h] = [clipWidth * scale, clipHeight * scale];
  return [(width - w) / 2, (height - h) / 2, w, h];
}

export class Camera {
  /** `send(strength)` sends the control. */
  constructor(container, live, text, { send }) {
    Object.assign(this, { live, text, latency: null, quality: 0.8, sent: 0, problem: "" });
    this.pictured = []; // blocks whose pictures are this viewer's, and that are not on screen yet
    this.video = make("video", { muted: true, playsinline: true });
    this.canvas = make("canvas");
    this.button = make("button", { type: "button", onclick: () => this.toggle() });
    this.strength = make("input", { type: "range", min: 0, max: 1, step: 0.05 });
    this.strength.addEventListener("change", () => send(Number(this.strength.value)));
    this.note = make("span", { class: "note", role: "status" });
    this.element = make(
      "fieldset",
      { class: "camera", hidden: true },
      this.button,
      make("label", { class: "field" }, text.say(make("span"), "strength"), this.strength),
      this.note,
    );
    container.append(this.element);
    this.end = live.on("pictured", (message) => {
      if (message.sender === live.welcome?.viewer) this.pictured = [...this.pictured.slice(-8), message];
    });
  }

  destroy() {
    this.stop();
    this.end();
  }

  get on() {
    return Boolean(this.stream);
  }

  async toggle() {
    this.problem = "";
    if (this.on) this.stop();
    else await this.start();
    this.show();
  }

  async start() {
    const { width, height, fps } = this.live.welcome; // more than are played would be left out
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({
        video: { width: { ideal: width }, height: { ideal: height }, frameRate: { ideal: fps } },
      });
    } catch (error) {
      this.problem = error.message; // not allowed, no camera, or a page that is not served safely
      return;
    }
    Object.assign(this.canvas, { width, height });
    this.video.srcObject = this.stream;
    await this.video.play();
    this.timer = setInterval(() => this.picture(), 1000 / fps);
  }

  stop() {
    clearInterval(this.timer);
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.latency = null;
  }

  /** Send what the camera sees now; the latest wins, so nothing waits for a slow connection. */
  async picture() {
    const { video, canvas, live } = this;
    const time = performance.now();
    if (this.busy || !video.videoWidth || !live.steers || (live.socket?.bufferedAmount ?? 0) > BEHIND) return;
    this.busy = true;
    const part = covering(video.videoWidth, video.videoHeight, canvas.width, canvas.height);
    canvas.getContext("2d").drawImage(video, ...part, 0, 0, canvas.width, canvas.height);
    const jpeg = await new Promise((done) => canvas.toBlob(done, "image/jpeg", this.quality));
    this.busy = false;
    if (!jpeg || !this.on) return;
    if (jpeg.size > LARGEST) this.quality = Math.max(0.1, this.quality * 0.8);
    else if (live.postBytes(pictureMessage(await jpeg.arrayBuffer(), time))) this.sent += 1;
  }

  /** The player showed this frame: the picture that its block was made from has come back. */
  shown({ generation, branch, frame }) {
    const here = this.pictured.filter((m) => m.generation === generation && m.branch === branch && m.frame <= frame);
    if (!here.length) return;
    this.latency = (performance.now() - here.at(-1).t) / 1000;
    this.pictured = this.pictured.filter((m) => !here.includes(m));
  }

  draw({ strength, pictures }, enabled) {
    if (document.activeElement !== this.strength) this.strength.value = strength ?? 1;
    this.element.hidden = !pictures;
    this.element.disabled = !enabled;
    this.button.hidden = pictures !== "camera";
    this.show();
  }

  show() {
    this.button.textContent = this.text.t(this.on ? "cameraOff" : "camera");
    this.button.setAttribute("aria-pressed", String(this.on));
    this.note.textContent = this.problem;
  }
}
