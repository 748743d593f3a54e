/**
 * The timeline's text format, as salt/conditioning.py reads it: parsing, formatting, and edits. Needs no page and no ComfyUI.
 *
 * A line is SECONDS [keep|recache|cut|shot|recache-sink]: PROMPT. The text is what is stored; the editor works on a list of changes
 * [{seconds, text, mode}], and every operation returns a new list.
 */

export const MODES = ["keep", "recache", "cut", "shot", "recache-sink"];
export const STEP = 0.25; // seconds; what the mouse and the arrow keys snap to
const LINE = /^\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:s(?![a-z]))?\s*([a-z]+(?:-[a-z]+)?)?\s*[:\uff1a]\s*(.*)$/is;
// What someone means as a time, and is none of ours: 0,5 or -1 or 00:05 before the colon.
const OTHER_TIME =
  /^\s*([-+\u2212]?(?:[0-9][0-9.,e+-]*:[0-9]{1,2}(?::[0-9]{1,2})?(?:[.,][0-9]+)?|[0-9.,]*[0-9][0-9.,e+-]*))\s*s?\s*(?:keep|recache|cut|shot|recache-sink)?\s*[:\uff1a]/i;

/** Lines to {changes}, or {error: {line, found, expected}} for the first line that cannot be read. */
export function parse(text) {
  const changes = [];
  const lines = text.split(/\r\n|[\n\r]/);
  for (const [index, line] of lines.entries()) {
    if (!line.trim()) continue;
    const wrong = (found, expected) => ({ error: { line: index + 1, found, expected } });
    const found = LINE.exec(line);
    const other = OTHER_TIME.exec(line);
    if (other && other[1] !== found?.[1]) return wrong(other[1], "SECONDS, as 3.5");
    if (!found && !changes.length) {
      changes.push({ seconds: 0, text: line.trim(), mode: "keep" });
      continue;
    }
    if (!found) return wrong(line.trim(), "SECONDS [keep|recache|cut|shot|recache-sink]: PROMPT");
    const seconds = Number(found[1]);
    const mode = (found[2] ?? "keep").toLowerCase();
    const prompt = found[3].trim();
    if (!MODES.includes(mode)) return wrong(mode, MODES.join(", "));
    if (!prompt) return wrong("", "PROMPT");
    if (changes.length && seconds <= changes.at(-1).seconds) return wrong(`${seconds} s`, `> ${changes.at(-1).seconds} s`);
    if (!changes.length && seconds) return wrong(`${seconds} s`, "0 s");
    changes.push({ seconds, text: prompt, mode });
  }
  if (!changes.length) return { error: { line: 1, found: "", expected: "SECONDS [keep|recache|cut|shot|recache-sink]: PROMPT" } };
  return { changes };
}

/** Changes to lines; `parse` gives the same changes back. */
export function format(changes) {
  return changes.map((c) => `${c.seconds}${c.mode === "keep" ? "" : ` ${c.mode}`}: ${oneLine(c.text)}`).join("\n");
}

/** Seconds to the millisecond, so that sums of steps stay readable numbers. */
export function rounded(seconds) {
  return Math.round(seconds * 1000) / 1000;
}

export function snapped(seconds, step = STEP) {
  return rounded(Math.round(seconds / step) * step);
}

/** Change `index` begins at `seconds`, as near as its neighbours allow. The first one stays at 0. */
export function moveStart(changes, index, seconds, step = STEP) {
  if (index <= 0) return changes;
  const lowest = changes[index - 1].seconds;
  const highest = changes[index + 1]?.seconds ?? Infinity;
  return replaced(changes, index, { seconds: between(seconds, lowest, highest, step) });
}

/** The whole block `index` begins at `seconds` and keeps its length: the change after it goes along. */
export function moveBlock(changes, index, seconds, step = STEP) {
  if (index <= 0) return changes;
  if (index === changes.length - 1) return moveStart(changes, index, seconds, step);
  const length = changes[index + 1].seconds - changes[index].seconds;
  const highest = (changes[index + 2]?.seconds ?? Infinity) - length;
  const start = between(seconds, changes[index - 1].seconds, highest, step);
  return replaced(replaced(changes, index, { seconds: start }), index + 1, { seconds: rounded(start + length) });
}

export function setText(changes, index, text) {
  const kept = oneLine(text);
  return kept ? replaced(changes, index, { text: kept }) : changes;
}

/** What the memory does at change `index`. Nothing is remembered yet at the first one, so that one always keeps. */
export function setMode(changes, index, mode) {
  return index > 0 && MODES.includes(mode) ? replaced(changes, index, { mode }) : changes;
}

/** The block to put a new change into: `index`, unless the clip of `clip` seconds (0: not known) leaves it no room before its
 * last block of the student's, of `block` seconds; then the one with the most room. */
export function roomiest(changes, index, clip, block) {
  const last = clip - block;
  if (clip <= 0) return index;
  const room = changes.map((c, i) => Math.min(changes[i + 1]?.seconds ?? last, last) - c.seconds);
  return room[index] >= STEP ? index : room.indexOf(Math.max(...room));
}

/** A new change in the middle of block `index`, with its words. end: where the last block ends; clip: where the clip does, 0
 * where that is not known; block: seconds of the student's blocks, of which the last takes no new prompt. */
export function split(changes, index, end, clip = 0, block = 0) {
  const { seconds, text } = changes[index];
  const next = changes[index + 1]?.seconds ?? Math.max(end, seconds + 4 * STEP);
  const latest = clip > seconds ? Math.floor((clip - block) / STEP) * STEP : Infinity;
  const half = Math.min(snapped((seconds + Math.min(next, latest + block)) / 2), latest);
  const middle = half > seconds && half < next ? half : rounded((seconds + next) / 2);
  if (middle <= seconds || middle >= next) return changes;
  return [...changes.slice(0, index + 1), { seconds: middle, text, mode: "recache" }, ...changes.slice(index + 1)];
}

/** Without change `index`; where the first goes, the second begins at 0. The last one left stays. */
export function remove(changes, index) {
  if (changes.length < 2) return changes;
  const left = changes.filter((_, i) => i !== index);
  return replaced(left, 0, { seconds: 0, mode: "keep" });
}

/** Where the picture ends: the clip's end where it is known, and room to drag the last change further. */
export function extent(changes, clip = 0) {
  const last = changes.at(-1)?.seconds ?? 0;
  return last < clip ? clip : Math.max(4, Math.ceil(last * 1.25 + 1));
}

function oneLine(text) {
  return text.replace(/\s*[\n\r]\s*/g, " ").trim();
}

function replaced(changes, index, what) {
  return changes.map((c, i) => (i === index ? { ...c, ...what } : c));
}

/** `seconds` strictly between two neighbours, a step away from each where they leave room for it. */
function between(seconds, lowest, highest, step) {
  const room = Math.min(step, (highest - lowest) / 2);
  return rounded(Math.min(Math.max(seconds, lowest + room), highest - room));
}
