/** Where things lie in the strip. Lengths are pixel frames along a branch; pure functions. */

export const MOST_THUMBNAILS = 48; // in a row

/** Blocks per thumbnail: the smallest power of two with which `frames` fit in a row. */
export function blocksPerThumbnail(frames, framesPerBlock) {
  let blocks = 1;
  while (Math.ceil(frames / (blocks * framesPerBlock)) > MOST_THUMBNAILS) blocks *= 2;
  return blocks;
}

/** The frames of a branch's own thumbnails: from its fork to its end, every `step` frames. */
export function thumbnailFrames({ fork_frame: fork, frames }, step) {
  const found = [];
  for (let frame = Math.ceil((fork ?? 0) / step) * step; frame < frames; frame += step) found.push(frame);
  return found;
}

/** The prompts of a branch's own part as `{frame, end, text}`. */
export function promptSpans({ fork_frame: fork, frames, prompts }) {
  const from = fork ?? 0;
  const changes = [];
  for (const { frame, text } of prompts ?? []) {
    if (changes.at(-1)?.frame === frame)
      changes.at(-1).text += ` + ${text}`; // several with weights
    else changes.push({ frame, text });
  }
  return changes
    .map(({ frame, text }, i) => ({
      frame: Math.max(from, frame),
      end: Math.min(frames, changes[i + 1]?.frame ?? frames),
      text,
    }))
    .filter(({ frame, end }) => end > frame);
}

/** The start of the block that a position lies in. */
export const blockStart = (frame, framesPerBlock) => Math.floor(Math.max(0, frame) / framesPerBlock) * framesPerBlock;

/** The branches with every child below its parent, `{branch, depth}`. */
export function ordered(branches) {
  const found = [];
  const visit = (parent, depth) => {
    for (const branch of branches)
      if ((branch.parent ?? null) === parent) {
        found.push({ branch, depth });
        visit(branch.id, depth + 1);
      }
  };
  visit(null, 0);
  return found;
}
