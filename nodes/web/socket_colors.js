/** Colours of the pack's sockets and links. A palette of the user's that names these types has its own. */

const COLORS = { SALT_MEMORY: "#26c6da", SALT_MEMORY_POLICY: "#26a69a", SALT_PROMPTS: "#f4813f" };

/** For the canvas, whose palettes set every type that they do not know to ""; Nodes 2.0 reads salt.css. */
export function colorSockets(canvas) {
  for (const colors of [canvas.default_connection_color_byType, canvas.constructor.link_type_colors]) {
    for (const [type, ours] of Object.entries(COLORS)) {
      let chosen = colors[type];
      Object.defineProperty(colors, type, {
        configurable: true,
        enumerable: true,
        get: () => chosen || ours,
        set: (color) => {
          chosen = color;
        },
      });
    }
  }
}
