/** "Stop and keep" on a node while its rollout runs: a row below its widgets, there as long as it can be pressed. */

import { addElement } from "./front_ends.js";
import { make } from "./timeline.js";

const HEIGHT = 28;
const NAME = "salt_stop";

/** Show or hide the row of a node. entry: what the server says of it, undefined when it does not run. */
export function showStopButton(node, entry, { word, stop }) {
  const widget = node.widgets?.find((w) => w.name === NAME);
  if (!entry) {
    if (widget) removeWidget(node, widget);
    return;
  }
  const row = widget ?? addRow(node, word, stop);
  row.element.firstChild.disabled = entry.stopped;
  row.element.lastChild.textContent = entry.stopped ? word("ends after this block") : "";
}

function addRow(node, word, stop) {
  const title = word("ends the clip after the block that is being made; the outputs hold what there is");
  const button = make("button", "salt-stop", { type: "button", title }, [word("Stop and keep")]);
  const said = make("span", "salt-said-now", { role: "status" });
  const row = make("div", "salt-stop-row", {}, [button, said]);
  button.addEventListener("click", () => {
    button.disabled = true;
    stop().then((message) => {
      said.textContent = message;
      button.disabled = !message;
    });
  });
  row.addEventListener("pointerdown", (event) => event.stopPropagation());
  const widget = addElement(node, NAME, row, () => HEIGHT);
  const [width, needed] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
  return widget;
}

function removeWidget(node, widget) {
  node.removeWidget(widget);
  node.setDirtyCanvas?.(true, true);
}
