/** What differs between ComfyUI's front ends, 1.27 (ComfyUI 0.3.64) to 1.49 (0.33). It is found by looking for what it is
 * about, never by a version's number; the other modules here ask for no version. */

import { app } from "../../scripts/app.js";

const PATIENCE = 1500; // milliseconds until a front end has drawn a widget
let said = false;
let announced = null; // the live session of which was said where it plays

/** The graph that holds the subgraphs. Front end 1.27 calls it `graph` only. */
export const rootGraph = () => app.rootGraph ?? app.graph;

/** Whether an input is one of those that few need. Before ComfyUI 0.9 only the node's definition says so. */
export function isAdvanced(node, widget) {
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  const defined = (required[widget.name] ?? optional[widget.name])?.[1]?.advanced;
  return Boolean((widget.options?.advanced ?? widget.advanced) || defined);
}

/** Add an element to a node, below its widgets. height(): its own, in the canvas's pixels. The canvas puts an element in
 * its place when it is drawn, and may have been drawn before the page held the element: it is drawn again then. */
export function addElement(node, name, element, height) {
  const widget = node.addDOMWidget(name, name, element, { serialize: false, getMinHeight: height, getMaxHeight: height });
  widget.serialize = false;
  new ResizeObserver(() => node.setDirtyCanvas?.(true, true)).observe(element);
  return widget;
}

/** Nodes 2.0 of front end 1.35 (ComfyUI 0.8) draws no widget that a node gets after it was created: say so, once, where
 * the widget `name` of a node that is shown is not drawn. */
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

/** Say, once for a live session, inside which subgraph it plays. A subgraph's own node can get no view: Nodes 2.0 draws
 * only the widgets that it has from nodes inside. */
export function sayWhereItPlays(session, subgraph, word) {
  if (session === announced) return;
  announced = session;
  const detail = `${word("The live session plays inside a subgraph. Enter it to see and steer the clip:")} ${subgraph}`;
  app.extensionManager.toast.add({ severity: "info", summary: "Salt", detail, life: 15000 });
}
