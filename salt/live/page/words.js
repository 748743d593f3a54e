/** Prompts of salt-tiny: "a SPEED COLOUR SHAPE moving DIRECTION". */

export const GROUPS = {
  speed: ["slow", "fast"],
  colour: ["red", "yellow", "green", "cyan", "blue", "purple"],
  shape: ["circle", "square", "triangle"],
  direction: ["left", "up", "down", "right"],
};
const ARROWS = { ArrowLeft: "left", ArrowUp: "up", ArrowDown: "down", ArrowRight: "right" };

/** The direction that an arrow key names, or undefined. */
export const directionOf = (key) => ARROWS[key];

/** The groups with the words that the model knows, or null where one group has fewer than two of them. */
export function groupsOf(words) {
  const found = Object.entries(GROUPS).map(([group, known]) => [group, known.filter((word) => words.includes(word))]);
  return found.every(([, known]) => known.length > 1) ? Object.fromEntries(found) : null;
}

const tokens = (prompt) => prompt.toLowerCase().match(/[a-z]+/g) ?? [];

/** The word of each group in a prompt, `{speed, colour, shape, direction}`; undefined where it has none. */
export function wordsOf(prompt) {
  const said = tokens(prompt);
  return Object.fromEntries(
    Object.entries(GROUPS).map(([group, known]) => [group, said.find((word) => known.includes(word))]),
  );
}

/** The prompt with one group's word replaced; a prompt that lacks a group gets that group's first word. */
export function withWord(prompt, group, word) {
  const chosen = { ...wordsOf(prompt), [group]: word };
  for (const [name, known] of Object.entries(GROUPS)) chosen[name] ??= name === "direction" ? "right" : known[0];
  return `a ${chosen.speed} ${chosen.colour} ${chosen.shape} moving ${chosen.direction}`;
}
