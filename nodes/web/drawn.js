/** Nodes 2.0 of front end 1.35 (ComfyUI 0.8) draws no widget that a node gets after it was created: that is said, once. */

import { app } from "../../scripts/app.js";

const PATIENCE = 1500; // milliseconds until a front end has drawn a widget
let said = false;

/** Say it where the widget `name` of a node that is shown is not drawn. */
export function sayWhereNotDrawn(node, name, word) {
  if (said || !globalThis.LiteGraph?.vueNodesMode) return;
  setTimeout(() => {
    const element = node.widgets?.find((w) => w.name === name)?.element;
    const isShown = node.graph === app.canvas.graph && !node.flags?.collapsed && document.querySelector(`[data-node-id="${node.id}"]`);
    if (said || !element || element.isConnected || !isShown) return;
    said = true;
    app.extensionManager.toast.add({
      severity: "warn",
      summary: "Salt",
      detail: word(
        "This version of Nodes 2.0 does not draw what Salt adds to a running node: Stop and keep, the live view, the memory bar. Switch Nodes 2.0 off in the settings, or update ComfyUI.",
      ),
    });
  }, PATIENCE);
}
