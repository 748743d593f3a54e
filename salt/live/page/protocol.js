/** The live session's websocket: frames in binary messages, everything else in JSON text. */

const MAGIC = 0x31464c53; // "SLF1", little endian
const HEADER_BYTES = 32;
const TYPES = { 1: "image/jpeg", 2: "image/webp" };
const UNSEEN = new Set(["pause", "resume", "step", "stop", "pace", "bookmark"]); // no picture is theirs
const FIRST_WAIT_MS = 500,
  LONGEST_WAIT_MS = 10_000;

/** One binary message: its header and `images`, a Blob per frame. Throws a RangeError where it is none. */
export function parseFrames(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || view.getUint32(0, true) !== MAGIC)
    throw new RangeError("not a frame message");
  const number = (at) => view.getUint32(at, true);
  const count = view.getUint16(28, true),
    type = TYPES[view.getUint8(30)];
  if (!type) throw new RangeError(`unknown picture format ${view.getUint8(30)}`);
  const images = [];
  let at = HEADER_BYTES;
  for (let i = 0; i < count; i += 1) {
    const length = number(at); // this and the next are a RangeError where the message ends early
    images.push(new Blob([new Uint8Array(buffer, at + 4, length)], { type }));
    at += 4 + length;
  }
  return {
    generation: number(4),
    branch: number(8),
    block: number(12),
    event: number(16),
    frame: number(20),
    index: number(24),
    cutover: (view.getUint8(31) & 1) === 1,
    images,
  };
}

/** Milliseconds before the n-th try to connect again, n from 0: doubled each time up to 10 s, less up to a quarter. */
export const backoff = (tries, random = Math.random()) =>
  Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** tries) * (1 - random / 4);

/** A connection that is made again when it is lost.
 *
 * Events (`on(name, listener)` returns a function that ends it): `status` (this.status: "connecting", "open", "waiting"
 * before another try, "closed"), `welcome`, `state`, `frames` (a parsed message), `applied`, `control` (a record of one
 * control, when it was sent, heard, applied, shown, superseded or refused), `steering`, `pictured`, `dropped`, `bye`.
 */
export class LiveConnection {
  /** `socketUrl`: a URL, or a function that returns (a promise of) one, called before each try. */
  constructor(socketUrl) {
    this.findUrl = typeof socketUrl === "function" ? socketUrl : () => socketUrl;
    this.listeners = {};
    this.status = "connecting";
    this.retryAt = 0;
    this.reason = "";
    this.url = null;
    this.welcome = null;
    this.state = null;
    this.steers = false;
    this.asking = []; // viewers who ask for steering
    this.serverDrops = 0;
    this.lastEvent = null;
    this.records = new Map(); // by ref
    this.nextRef = 1;
    this.tries = 0;
    this.open();
  }

  on(name, listener) {
    (this.listeners[name] ??= new Set()).add(listener);
    return () => this.listeners[name].delete(listener);
  }

  emit(name, value) {
    for (const listener of [...(this.listeners[name] ?? [])]) listener(value);
  }

  setStatus(status) {
    this.status = status;
    this.emit("status", status);
  }

  async open() {
    clearTimeout(this.timer);
    this.setStatus("connecting");
    try {
      this.url = new URL(await this.findUrl(), location.href);
      if (this.status === "closed") return;
      this.url.protocol = this.url.protocol.replace("http", "ws");
      const socket = (this.socket = new WebSocket(this.url));
      socket.binaryType = "arraybuffer";
      const hello = { type: "hello" };
      if (this.lastEvent !== null) hello.after = this.lastEvent;
      socket.onopen = () => socket.send(JSON.stringify(hello));
      socket.onmessage = ({ data }) => this.receive(data);
      socket.onclose = () => this.socket === socket && this.wait();
    } catch (error) {
      this.reason = error.message;
      this.wait();
    }
  }

  wait() {
    if (this.status === "closed") return;
    const ms = backoff(this.tries);
    this.tries += 1;
    this.socket = null;
    this.steers = false;
    for (const record of this.records.values()) if (record.stage === "sent") this.advance(record, { stage: "lost" });
    this.retryAt = Date.now() + ms;
    this.setStatus("waiting");
    this.timer = setTimeout(() => this.open(), ms);
  }

  /** Try again now, without the rest of the wait. */
  retry() {
    if (this.status === "waiting") this.open();
  }

  close() {
    this.setStatus("closed");
    clearTimeout(this.timer);
    this.socket?.close();
  }

  get connected() {
    return this.status === "open";
  }

  post(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Send bytes: a picture of a camera. */
  postBytes(bytes) {
    if (!this.connected || this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(bytes);
    return true;
  }

  /** Send a control; returns its record `{ref, control, fields, stage, ...}`, or null when there is no connection. */
  control(control, fields = {}) {
    const record = { ref: this.nextRef, control, fields, stage: "sent", sentAt: performance.now() };
    if (!this.connected || !this.post({ type: "control", ref: record.ref, control, ...fields })) return null;
    this.nextRef += 1;
    this.records.set(record.ref, record);
    if (this.records.size > 200) this.records.delete(this.records.keys().next().value);
    this.emit("control", record);
    return record;
  }

  /** An address beside the websocket's. */
  beside(path) {
    const url = new URL(this.url);
    url.protocol = url.protocol.replace("ws", "http");
    url.pathname = url.pathname.replace(/ws$/, path);
    return url;
  }

  /** The address of the session's page. */
  page() {
    return this.beside("").href;
  }

  /** The address of a file of the session: `file("thumbnail", {branch: 0, frame: 12})`. */
  file(name, query = {}) {
    const url = this.beside(`api/${encodeURIComponent(this.url.searchParams.get("session") ?? "")}/${name}`);
    url.searchParams.delete("session");
    for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
    return url.href;
  }

  advance(record, changes) {
    Object.assign(record, changes);
    this.emit("control", record);
  }

  /** The player showed this frame: the controls whose first frame it is (or lies before it) are on screen. */
  shown({ generation, branch, frame }) {
    for (const record of this.records.values()) {
      if (record.stage !== "applied" || UNSEEN.has(record.control) || generation < record.generation) continue;
      if (generation === record.generation && branch === record.branch && frame < record.frame) continue;
      this.advance(record, { stage: "shown", shownMs: performance.now() - record.sentAt });
    }
  }

  receive(data) {
    if (data instanceof ArrayBuffer) {
      const frames = parseFrames(data);
      this.lastEvent = Math.max(this.lastEvent ?? 0, frames.event);
      this.emit("frames", frames);
      return;
    }
    const message = JSON.parse(data);
    const own = Object.hasOwn(handlers, message.type) ? handlers[message.type] : null;
    own?.(this, message); // types of a newer server are passed over
  }

  byEvent(event) {
    if (event === undefined) return undefined;
    return [...this.records.values()].find((record) => record.event === event);
  }
}

const handlers = {
  welcome(live, message) {
    if (live.welcome && live.welcome.session !== message.session) live.records.clear();
    live.tries = 0;
    live.reason = "";
    live.welcome = message;
    live.steers = message.steering;
    live.setStatus("open");
    live.emit("welcome", message);
    if (message.state) handlers.state(live, message.state);
    live.emit("steering", live.steers);
  },
  state(live, message) {
    live.state = message;
    live.emit("state", message);
  },
  heard(live, { ref, event }) {
    const record = live.records.get(ref);
    if (record) live.advance(record, { event, ...(record.stage === "sent" && { stage: "heard" }) });
  },
  applied(live, message) {
    const { event, control, branch, block, frame, generation, ms } = message;
    live.lastEvent = Math.max(live.lastEvent ?? 0, event);
    live.emit("applied", message);
    const record = live.byEvent(event);
    if (record?.control === control) live.advance(record, { stage: "applied", branch, block, frame, generation, ms });
  },
  superseded(live, { event, by }) {
    const record = live.byEvent(event);
    if (record) live.advance(record, { stage: "superseded", by });
  },
  refused(live, { ref, event, field, message }) {
    const record = live.records.get(ref) ?? live.byEvent(event); // at once, or when its turn came
    if (record) live.advance(record, { stage: "refused", field, message });
  },
  pictured(live, message) {
    live.emit("pictured", message);
  },
  steering(live, { you, asking }) {
    live.steers = you;
    live.asking = asking ?? [];
    live.emit("steering", you);
  },
  dropped(live, { total }) {
    live.serverDrops = total;
    live.emit("dropped", total);
  },
  bye(live, { reason }) {
    live.reason = reason;
    live.emit("bye", reason);
  },
};
