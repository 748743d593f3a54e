/** When a frame is shown and which are dropped. No browser objects; times are milliseconds that the caller gives.
 *
 * Frames arrive a block at a time and are shown at the clip's rate. The lead is the playing time of the queue.
 *
 * Rate: 1 while the lead is in its band. Below the target (0.45 block, at least 180 and at most 360 ms) playback slows
 * down to 0.92, so that a late block still arrives in time; when a block arrives and finds more than the target and one
 * block left, playback speeds up to 1.12 until the surplus is gone.
 *
 * Dropped are, and counted:
 * - frames of an older generation (before a rewind, a fork or a return): all of them, at once;
 * - when a control was applied and its first frame is here: queued frames older than it beyond 3 frames or 180 ms,
 *   whichever is longer, the oldest first;
 * - when more than 4 blocks are queued: the oldest, down to the target and one block;
 * - frames whose time passed while the page was not drawn.
 */

export const SLOWEST = 0.92,
  FASTEST = 1.12;
export const KEPT_FRAMES = 3,
  KEPT_MS = 180; // of the frames older than a control
export const MOST_BLOCKS = 4;
const GAIN = 0.25; // of rate per second of surplus

/** The lead that playback holds, in milliseconds, of blocks that play for `blockMs`. */
export const leadTarget = (blockMs) => Math.min(360, Math.max(180, 0.45 * blockMs));

export class PlaybackController {
  /** `discard` is called with every frame that will not be shown. */
  constructor({ fps = 16, framesPerBlock = 12, discard = () => {} } = {}) {
    this.frameMs = 1000 / fps;
    this.blockMs = framesPerBlock * this.frameMs;
    this.target = leadTarget(this.blockMs);
    this.keptFrames = Math.max(KEPT_FRAMES, Math.floor(KEPT_MS / this.frameMs));
    this.discard = discard;
    this.queue = [];
    this.generation = -1;
    this.newest = -1; // play index of the newest frame that arrived
    this.cut = null; // {generation, frame}: the first frame under a control whose frames are awaited
    this.surplus = 0; // milliseconds above the band when the latest block arrived
    this.rate = 1;
    this.dropped = 0;
    this.underruns = 0;
    this.due = null; // time of the next frame; null while waiting for frames
    this.waitsSince = null;
    this.started = false; // a frame was shown since the last pause
  }

  /** Playing time of the queue in milliseconds. */
  get lead() {
    return this.queue.length * this.frameMs;
  }

  /** Frames that arrived, `{generation, frame, index, ...}` in order; known play indices are ignored. */
  push(frames, now) {
    if (this.due !== null) this.surplus = Math.max(0, this.lead - this.target - this.blockMs);
    for (const frame of frames) {
      if (frame.generation < this.generation || (frame.generation === this.generation && frame.index <= this.newest)) {
        this.drop(frame, frame.generation < this.generation);
        continue;
      }
      if (frame.generation > this.generation) this.renew(frame.generation);
      this.newest = Math.max(this.newest, frame.index);
      this.queue.push(frame);
    }
    this.trim();
    if (this.lead > MOST_BLOCKS * this.blockMs)
      while (this.lead > this.target + this.blockMs) this.drop(this.queue.shift());
    if (this.queue.length) this.waitsSince ??= now;
  }

  /** A newer generation begins: what is queued of the older ones goes. */
  renew(generation) {
    for (const frame of this.queue.splice(0)) this.drop(frame);
    this.generation = generation;
    this.newest = -1;
    if (this.cut && this.cut.generation < generation) this.cut = null;
    this.surplus = 0;
    this.due = null;
  }

  /** A control was applied; `frame` is the first one made under it, along the branch. */
  applied({ generation, frame }) {
    if (generation < this.generation) return;
    this.cut = { generation, frame };
    this.trim();
  }

  trim() {
    if (!this.cut || this.cut.generation !== this.generation) return;
    const first = this.queue.findIndex((frame) => frame.frame >= this.cut.frame);
    if (first < 0) return;
    for (const frame of this.queue.splice(0, Math.max(0, first - this.keptFrames))) this.drop(frame);
    this.cut = null;
  }

  drop(frame, counts = true) {
    if (counts) this.dropped += 1;
    this.discard(frame);
  }

  /** Playback halts with its queue kept; the next call of `next` goes on. */
  pause() {
    this.due = null;
    this.waitsSince = null;
    this.started = false;
  }

  /** The frame to show now, or null. `expecting`: more frames are to come, so an empty queue is an underrun. */
  next(now, expecting = true) {
    if (!this.queue.length) {
      if (this.due !== null && now >= this.due) {
        if (expecting && this.started) this.underruns += 1;
        this.due = null;
        this.waitsSince = null;
      }
      return null;
    }
    if (this.due === null) {
      this.waitsSince ??= now;
      if (this.lead < this.target && now - this.waitsSince < this.target) return null; // gather a lead first
      this.due = now;
      this.waitsSince = null;
    }
    let shown = null;
    while (this.queue.length && now >= this.due) {
      if (shown) this.drop(shown);
      this.adjust();
      shown = this.queue.shift();
      this.due += this.frameMs / this.rate;
    }
    if (shown) this.started = true;
    return shown;
  }

  adjust() {
    const lack = this.target - this.lead;
    if (lack > 0) this.rate = Math.max(SLOWEST, 1 - ((1 - SLOWEST) * lack) / this.target);
    else this.rate = Math.min(FASTEST, 1 + (GAIN * this.surplus) / 1000);
    this.surplus = Math.max(0, this.surplus - (this.rate - 1) * this.frameMs);
  }
}
