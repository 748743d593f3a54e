/** Files to choose from: Load Salt Student lists what could be a student, with the rest behind "all files", and inspects one;
 * Salt Load Memory shows the memory bar of the file that is chosen. */

import { chain } from "./shown_widgets.js";
import { make } from "./timeline.js";

/** A Load Salt Student that was just made, and every one when the lists were read again. `students`: how many of all files,
 * at their beginning, could be students. */
export function foldFiles(node, word) {
  const widget = node.widgets?.find((w) => w.name === "student");
  const [all, students] = listed(node);
  if (!widget || students >= all.length) return;
  const more = word("all files…");
  const show = (names) => {
    const chosen = widget.value;
    widget.options.values = chosen && chosen !== more && !names.includes(chosen) ? [chosen, ...names] : names;
  };
  const few = [...all.slice(0, students), more];
  let last = widget.value;
  show(few);
  if (widget.saltFolds) return;
  widget.saltFolds = true;
  chain(widget, "callback", () => {
    if (widget.value !== more) last = widget.value;
    else {
      widget.value = last;
      show(listed(node)[0]);
    }
  });
  chain(node, "onConfigure", () => {
    last = widget.value;
    show(few);
  });
}

/** All names, and how many of them could be students. */
function listed(node) {
  const [type, options = {}] = node.constructor.nodeData?.input?.required?.student ?? [];
  const all = Array.isArray(type) ? type : (options.options ?? []);
  return [all, options.salt_students ?? all.length];
}

/** Ask the server about a file, {file}; its answer, or {error}. */
export async function ask(api, route, question) {
  const answer = await api.fetchApi(`${route}?${new URLSearchParams(question)}`);
  return answer.json().catch(() => ({ error: `${answer.status}` }));
}

/** "Salt: inspect this file" in the menu of a Load Salt Student. */
export function addInspection(node, { api, word }) {
  chain(node, "getExtraMenuOptions", (_, options) => {
    const file = node.widgets?.find((w) => w.name === "student")?.value;
    if (file) options.unshift({ content: word("Salt: inspect this file"), callback: () => inspect(file, { api, word }) });
  });
}

async function inspect(file, { api, word }) {
  const { lines, error } = await ask(api, "/salt/student", { file });
  const rows = Object.entries(lines ?? {}).map(([what, value]) => make("tr", "", {}, [make("th", "", {}, [what]), make("td", "", {}, [value])]));
  const close = make("button", "", { type: "button" }, [word("close")]);
  const content = [make("h2", "", {}, [file]), error ? make("p", "", {}, [error]) : make("table", "", {}, rows), close];
  const dialog = make("dialog", "salt-dialog", { "aria-label": word("Salt: inspect this file") }, content);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  document.body.append(dialog);
  dialog.showModal();
}

/** The memory bar of the chosen file on a Salt Load Memory, before any run. show(output): as for what a run reports. */
export function showChosenMemory(node, { api, show }) {
  const widget = node.widgets?.find((w) => w.name === "file");
  if (!widget) return;
  const look = async () => {
    const file = widget.value;
    const { memory } = await ask(api, "/salt/memory", { file });
    if (widget.value === file && node.graph) show(memory ? { salt_memory: [memory] } : {});
  };
  chain(widget, "callback", look);
  chain(node, "onConfigure", look);
  requestAnimationFrame(look); // it is in no graph yet
}
