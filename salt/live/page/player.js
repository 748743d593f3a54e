/** A canvas that plays a live session's frames. */

import { make } from "./dom.js";
import { PlaybackController } from "./playback.js";

const DRAWN = new Set(["prompt", "seed", "guidance", "policy", "strength"]); // controls whose frames look different
const REPORT_MS = 100; // at most ten `played` messages a second
const HIDDEN_MS = 250; // a hidden page is not drawn, but the session goes by what was played

export class Player {
  /** `container` gets the canvas; `onshown(frame)` is called with `{generation, branch, block, frame, index}`,
   * `onsize(aspect)` when the clip's size is known. */
  constructor(container, connection, { label = "", onshown = () => {}, onsize = () => {} } = {}) {
    Object.assign(this, { connection, onshown, onsize });
    this.canvas = make("canvas", { class: "picture", role: "img", "aria-label": label, width: 16, height: 16 });
    this.context = this.canvas.getContext("2d", { alpha: false });
    container.append(this.canvas);
    this.controller = new PlaybackController();
    this.held = false;
    this.last = null; // the frame shown last
    this.reportedAt = 0;
    this.reportedDrops = 0;
    this.times = []; // of the latest frames shown
    this.ends = [
      connection.on("welcome", (welcome) => this.begin(welcome)),
      connection.on("frames", (message) => this.take(message)),
      connection.on("applied", (message) => DRAWN.has(message.control) && this.controller.applied(message)),
    ];
    if (connection.welcome) this.begin(connection.welcome);
    const draw = () => {
      this.tick(performance.now());
      this.request = requestAnimationFrame(draw);
    };
    draw();
    this.timer = setInterval(() => document.hidden && this.tick(performance.now()), HIDDEN_MS);
  }

  destroy() {
    cancelAnimationFrame(this.request);
    clearInterval(this.timer);
    for (const end of this.ends) end();
    this.canvas.remove();
  }

  begin({ session, fps, frames_per_block: framesPerBlock, width, height }) {
    if (this.session === session) return; // the connection was lost and made again: what is queued still plays
    this.session = session;
    this.controller = new PlaybackController({ fps, framesPerBlock, discard: (frame) => this.release(frame) });
    this.reportedDrops = 0;
    this.canvas.width = width;
    this.canvas.height = height;
    this.onsize(width / height);
  }

  take({ images, frame, index, ...header }) {
    const frames = images.map((image, i) => ({
      ...header,
      frame: frame + i,
      index: index + i,
      decoded: createImageBitmap(image),
    }));
    for (const one of frames)
      one.decoded.then(
        (bitmap) => this.ready(one, bitmap),
        () => this.ready(one, null),
      );
    this.controller.push(frames, performance.now());
  }

  ready(frame, bitmap) {
    if (frame.gone) bitmap?.close();
    else frame.bitmap = bitmap;
    if (frame.awaited) this.paint(frame);
  }

  release(frame) {
    frame.gone = true;
    frame.bitmap?.close();
  }

  /** Halt at once, or go on; the session itself is paused by a control. */
  hold(held) {
    if (held && !this.held) this.controller.pause();
    this.held = held;
  }

  tick(now) {
    if (this.held) return;
    const frame = this.controller.next(now, this.connection.state?.status === "playing");
    if (!frame) return;
    if (frame.bitmap === undefined)
      frame.awaited = true; // its decoding ends within moments
    else this.paint(frame);
    this.times.push(now);
    if (this.times.length > 33) this.times.shift();
    this.last = frame;
    this.report(now);
    this.connection.shown(frame);
    this.onshown(frame);
  }

  paint(frame) {
    if (frame.bitmap && !(this.painted?.generation === frame.generation && this.painted.index > frame.index)) {
      this.context.drawImage(frame.bitmap, 0, 0, this.canvas.width, this.canvas.height);
      this.painted = frame;
    }
    this.release(frame);
  }

  report(now) {
    if (now - this.reportedAt < REPORT_MS && this.controller.queue.length) return;
    const { dropped } = this.controller;
    if (this.connection.post({ type: "played", frame: this.last.index, dropped: dropped - this.reportedDrops }))
      this.reportedDrops = dropped;
    this.reportedAt = now;
  }

  /** Frames shown per second, over the latest two seconds. */
  get rate() {
    const since = performance.now() - 2000;
    const recent = this.times.filter((time) => time > since);
    return recent.length > 1 ? ((recent.length - 1) * 1000) / (recent.at(-1) - recent[0]) : 0;
  }
}
