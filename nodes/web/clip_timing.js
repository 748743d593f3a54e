/** How long the clip is that a node's prompts go to, and its blocks: a prompt that begins within the last one is not used.
 *
 * Frames a block and frames a second are those of the student that the clip's node is connected to, as the server reads
 * them from its file; where they are not known, those of Wan 2.1's students. */

const USUAL = { frames_per_block: 3, latent_seconds: 0.25 }; // 4 pixel frames a latent frame, at 16 a second
const FILES = ["student", "unet_name"]; // widgets of loaders that name a file of models/diffusion_models
const known = new Map(); // by file and trained_as: USUAL's fields, or null while the server is asked

const valueOf = (node, name) => node.widgets?.find((w) => w.name === name)?.value;

/** Nodes that make a clip of these prompts from its beginning; not those that go on from a memory. */
function goalsOf(node) {
  if (!node.graph) return []; // a copy on its way into a subgraph
  return (node.getOutputNodes?.(0) ?? []).filter((n) => !n.inputs?.find((i) => i.name === "memory")?.link);
}

/** Seconds of the clip; 0 where that is unknown, as when a memory is extended. */
export function clipSeconds(node) {
  return Math.max(0, ...goalsOf(node).map((n) => Number(valueOf(n, "seconds")) || 0));
}

/** Seconds of a block of the clip, the longest where several clips are made. ask({file, trained_as}): what the server says of
 * a file, asked once; call this before the answer is needed. */
export function blockSeconds(node, ask) {
  const lengths = goalsOf(node).map((goal) => {
    const timing = timingOf(loaderOf(goal), ask);
    return (Number(valueOf(goal, "frames_per_block")) || timing.frames_per_block) * timing.latent_seconds;
  });
  return lengths.length ? Math.max(...lengths) : USUAL.frames_per_block * USUAL.latent_seconds;
}

/** The loader of a node's MODEL, behind LoRAs and what else takes one and gives one. */
function loaderOf(node) {
  const seen = new Set();
  for (let at = node; at && !seen.has(at); ) {
    if (FILES.some((name) => valueOf(at, name))) return at;
    seen.add(at);
    const slot = at.inputs?.findIndex((i) => i.type === "MODEL" || i.name === "model") ?? -1;
    at = slot < 0 ? null : at.getInputNode?.(slot);
  }
  return null;
}

function timingOf(loader, ask) {
  const file = loader && FILES.map((name) => valueOf(loader, name)).find(Boolean);
  if (!file) return USUAL;
  const question = { file, trained_as: valueOf(loader, "trained_as") ?? "auto" };
  const key = JSON.stringify(question);
  if (!known.has(key)) {
    known.set(key, null);
    ask(question).then(({ timing }) => known.set(key, timing ?? USUAL));
  }
  return known.get(key) ?? USUAL;
}
