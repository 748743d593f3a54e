/** The memory bar: which latent frames of a clip a KV-cache memory holds, and how many bytes they take. */

import { make } from "./timeline.js";

/** [0, 1, 2, 9, 10] as [[0, 2], [9, 10]]: runs of neighbours, first and last frame of each. */
export function runs(frames) {
  const found = [];
  for (const frame of frames) {
    if (found.length && found.at(-1)[1] === frame - 1) found.at(-1)[1] = frame;
    else found.push([frame, frame]);
  }
  return found;
}

/** Bytes as a person reads them, in powers of 1000. */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, bytes < 1 ? 0 : Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** power;
  return `${power && value < 100 ? value.toPrecision(3) : Math.round(value)} ${units[power]}`;
}

/** Segments in order: {kind: "sink" | "window" | "gone" | "next", first, last, frames}. */
export function segments({ held, sink, next_frame: next }) {
  const found = [];
  const add = (kind, first, last) => last >= first && found.push({ kind, first, last, frames: last - first + 1 });
  let reached = 0;
  for (const [first, last] of runs(held)) {
    add("gone", reached, first - 1);
    add("sink", first, Math.min(last, sink - 1));
    add("window", Math.max(first, sink), last);
    reached = last + 1;
  }
  add("gone", reached, next - 1);
  add("next", next, next);
  return found;
}

/** What the colours of these memories' bars stand for. */
export function legend(memories, word) {
  const shown = new Set(memories.flatMap((memory) => segments(memory).map((s) => s.kind)));
  const names = { sink: word("sink"), window: word("window"), gone: word("forgotten"), next: word("next") };
  const entries = Object.entries(names).filter(([kind]) => shown.has(kind));
  const entry = ([kind, name]) => make("span", "", {}, [make("span", `salt-segment salt-${kind}`), name]);
  return make("div", "salt-legend", { "aria-hidden": "true" }, entries.map(entry));
}

/** The bar of one memory, `{policy, held, sink, window, next_frame, bytes, layers}` as nodes/memory_ui.py sends it. */
export function memoryBar(memory, word) {
  const names = { sink: "sink: kept for ever", window: "window: kept for now", gone: "forgotten", next: "next" };
  const span = ({ first, last }) => (first === last ? `${first}` : `${first}–${last}`);
  const parts = segments(memory).map((segment) => {
    const title = `${word(names[segment.kind])} (${word("latent frames")} ${span(segment)})`;
    const made = make("span", `salt-segment salt-${segment.kind}`, { title });
    if (segment.kind === "sink" || segment.kind === "window") made.style.flexGrow = segment.frames;
    return made;
  });
  const held = runs(memory.held).map(([first, last]) => span({ first, last })).join(", ") || "–";
  const said = [
    `${word("memory")}: ${memory.policy}`,
    `${word("latent frames held")}: ${held} (${memory.held.length} / ${memory.next_frame})`,
    `${word("layers")}: ${memory.layers}`,
    size(memory.bytes),
  ].join("\n");
  const slots = make("span", "salt-slots", { "aria-hidden": "true" }, parts);
  const bytes = make("span", "salt-bytes", {}, [`${memory.held.length} / ${memory.next_frame} · ${size(memory.bytes)}`]);
  return make("div", "salt-memory", { role: "img", "aria-label": said, title: said }, [slots, bytes]);
}
