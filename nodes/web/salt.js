/** The front-end extension: a timeline on Salt Prompt Schedule, a memory bar, the report and "Stop and keep" on nodes. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { applyTextReplacements } from "../../scripts/utils.js";
import { labelChoices } from "./choice_labels.js";
import { blockSeconds, clipSeconds } from "./clip_timing.js";
import { addInspection, ask, foldFiles, showChosenMemory } from "./file_choices.js";
import { addElement, rootGraph, sayWhereItPlays, sayWhereNotDrawn } from "./front_ends.js";
import { showLiveView } from "./live_view.js";
import { legend, memoryBar } from "./memory_bar.js";
import { chain, prepareShownWidgets, restyleSteps, showWidgets } from "./shown_widgets.js";
import { colorSockets } from "./socket_colors.js";
import { showStopButton } from "./stop_button.js";
import { make, timelineView } from "./timeline.js";

const TIMELINE_HEIGHT = 170;
const PREVIEW_HEIGHT = 220;
const LEAST_WIDTH = 210; // of a node, so that the canvas does not cut its title
let words = {};
let choices = {}; // labels of the choices in lists
let liveToken = null; // of live sessions, where the server listens beyond this machine
const word = (english) => words[english] ?? english;

const language = () => app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";

/** Translations of this extension's texts and choices, from "salt" and "saltChoices" in locales/LANGUAGE/main.json. */
async function loadTranslations() {
  const answer = await api.fetchApi("/i18n");
  if (answer.ok) ({ salt: words = {}, saltChoices: choices = {} } = (await answer.json())[language()] ?? {});
}

const askStudent = (question) => ask(api, "/salt/student", question);
const shownNodes = () => app.canvas.graph?.nodes ?? [];

function addTimeline(node) {
  const text = node.widgets?.find((w) => w.name === "timeline");
  if (!text || !node.addDOMWidget) return;
  const locked = () => Boolean(node.inputs?.find((i) => i.widget?.name === "timeline")?.link);
  const view = timelineView({
    read: () => String(text.value ?? ""),
    write: (value) => {
      text.value = value;
      node.graph?.change?.();
    },
    clip: () => clipSeconds(node),
    block: () => blockSeconds(node, askStudent),
    locked,
    showText: (wanted) => {
      const shown = wanted || locked();
      if (text.hidden === !shown) return shown;
      text.hidden = !shown; // on the canvas; Nodes 2.0 goes by salt.css
      const height = node.computeSize()[1];
      node.setSize([node.size[0], shown ? Math.max(node.size[1], height) : height]);
      node.setDirtyCanvas?.(true, true);
      return shown;
    },
    word,
  });
  // The frontend looks for changes before a click, a key or a choice has taken effect here.
  const captured = () => {
    app.canvas?.emitBeforeChange?.();
    app.canvas?.emitAfterChange?.();
  };
  for (const kind of ["click", "change"]) view.element.addEventListener(kind, captured);
  view.element.addEventListener("keyup", (event) => event.target.type === "button" && captured());
  for (const kind of ["pointerenter", "focusin"]) view.element.addEventListener(kind, () => blockSeconds(node, askStudent));
  addElement(node, "timeline_picture", view.element, () => TIMELINE_HEIGHT);
  chain(text, "callback", view.refresh);
  chain(node, "onConnectionsChange", view.refresh);
  chain(node, "onConfigure", view.refresh);
  node.setSize([Math.max(node.size[0], 420), node.computeSize()[1]]);
}

/** The memory bar, and the text that the node reports, below its widgets from its first run on. */
function showKept(node, { salt_memory: memories = [], text = [] }) {
  if (!memories.length && !text.length) return;
  const report = text.join("\n");
  node.saltKept = { bars: memories.length, lines: report ? report.split("\n").length + 1 : 0 };
  let kept = node.widgets?.find((w) => w.name === "salt_kept");
  if (!kept) {
    const height = () => (node.saltKept.bars && 22 * node.saltKept.bars + 14) + (node.saltKept.lines ? 6 + 14 * Math.min(node.saltKept.lines, 8) : 0);
    kept = addElement(node, "salt_kept", make("div", "salt-kept"), height);
  }
  kept.element.replaceChildren(...memories.map((memory) => memoryBar(memory, word)));
  if (memories.length) kept.element.append(legend(memories, word));
  if (report) kept.element.append(make("pre", "salt-report", {}, [report]));
  grow(node);
  sayWhereNotDrawn(node, "salt_kept", word);
}

/** Our nodes of a graph and of the subgraphs in it, each with the keys under which its outputs may be kept. */
function* nodesWithKeys(graph, path = "", isRoot = true) {
  for (const node of graph?.nodes ?? []) {
    const execution = `${path}${node.id}`;
    if (node.subgraph) yield* nodesWithKeys(node.subgraph, `${execution}:`, false);
    else if (node.comfyClass?.startsWith("Salt")) yield [node, [isRoot ? execution : `${graph.id}:${node.id}`, execution]];
  }
}

/** What kept outputs say about our nodes. Runs that end while another tab is shown are kept by execution id. */
function showOutputs(outputs) {
  for (const [node, keys] of nodesWithKeys(rootGraph())) {
    const key = keys.find((k) => outputs[k]);
    if (key) showKept(node, outputs[key]);
  }
}

/** What runs now, as the server says it: "Stop and keep" on those nodes, or a live session's view, and on no other. Only
 * in the graph that is shown: what a node inside a closed subgraph gets, the canvas may never put in its place. */
function showRunning(nodes) {
  for (const [node, keys] of nodesWithKeys(rootGraph())) {
    const key = keys.find((k) => nodes[k]);
    const isShown = node.graph === app.canvas.graph;
    const { session } = nodes[key] ?? {};
    showStopButton(node, isShown && !session ? nodes[key] : undefined, { word, stop: () => stopAndKeep(key) });
    showLiveView(node, isShown && session ? nodes[key] : undefined, { address: (path) => api.fileURL(path), token: liveToken, language: language() });
    if (key && isShown) sayWhereNotDrawn(node, session ? "salt_live" : "salt_stop", word);
    if (session && !isShown) sayWhereItPlays(session, node.graph.name, word);
  }
}

/** Ask the server to end a node's rollout; what went wrong, or "". */
async function stopAndKeep(node) {
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/salt/stop", { method: "POST", headers, body: JSON.stringify({ node }) });
  return answer.ok ? "" : ((await answer.json().catch(() => ({}))).error ?? `${answer.status}`);
}

async function askWhatRuns() {
  const answer = await api.fetchApi("/salt/running");
  if (!answer.ok) return;
  const { nodes, token } = await answer.json();
  liveToken = token;
  showRunning(nodes);
}

/** A finished video takes the place of the previews of its making: Nodes 2.0 would take their addresses for the video's. */
function endPreviews(node, { images = [] }) {
  if (!images.some((file) => /\.(mp4|webm)$/.test(file.filename))) return;
  const isRoot = node.graph === rootGraph();
  delete app.nodePreviewImages?.[isRoot ? `${node.id}` : `${node.graph?.id}:${node.id}`];
}

/** Enlarge the node to fit what was added; never shrink it. */
function grow(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
}

/** Expand `%date:yyyy-MM-dd%` and `%Node.widget%` in the prefix when a prompt is queued, as for core's save nodes. */
function expandPrefix(node) {
  const prefix = node.widgets?.find((w) => w.name === "filename_prefix");
  if (prefix) prefix.serializeValue = () => applyTextReplacements(app, prefix.value);
}

/**
 * Live previews are animations, and the canvas draws only the first frame of one. The frontend has a widget that plays
 * animations, for saved files; nodes with a preview use it as well.
 */
function animatePreviews(node) {
  const core = node.onDrawBackground;
  node.onDrawBackground = function (...args) {
    core?.apply(this, args);
    if (!this.preview || !this.imgs?.length || this.animatedImages) return;
    this.animatedImages = true;
    core?.apply(this, args);
    const picture = this.widgets?.find((w) => w.type === "img");
    if (!picture || picture.options.getMinHeight) return;
    picture.options.getMinHeight = () => PREVIEW_HEIGHT;
    grow(this);
  };
}

app.registerExtension({
  name: "Salt",
  async init() {
    const style = make("link", "", { rel: "stylesheet", href: new URL("./salt.css", import.meta.url).href });
    document.head.append(style);
    api.addEventListener("salt_running", ({ detail }) => showRunning(detail.nodes));
    await loadTranslations();
    prepareShownWidgets(word);
  },
  setup() {
    colorSockets(app.canvas);
    app.canvas.canvas.addEventListener("litegraph:set-graph", () => {
      restyleSteps(shownNodes());
      askWhatRuns();
    });
  },
  /** Undo and a switch of tabs create nodes anew; the frontend keeps their outputs, and puts them back later. */
  afterConfigureGraph() {
    requestAnimationFrame(() => showOutputs(app.nodeOutputs ?? {}));
    askWhatRuns();
  },
  onNodeOutputsUpdated: showOutputs,
  /** After R, or a download: the lists are the server's again. */
  refreshComboInNodes() {
    for (const [node] of nodesWithKeys(rootGraph())) foldFiles(node, word);
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Salt")) return;
    showWidgets(node, { word, nodes: shownNodes });
    labelChoices(node, choices);
    if (node.comfyClass === "SaltPromptSchedule") addTimeline(node);
    if (node.comfyClass === "SaltLoadStudent") {
      foldFiles(node, word);
      addInspection(node, { api, word });
    }
    if (node.comfyClass === "SaltLoadMemory") showChosenMemory(node, { api, show: (output) => showKept(node, output) });
    node.setSize([Math.max(node.size[0], LEAST_WIDTH), node.size[1]]);
    expandPrefix(node);
    animatePreviews(node);
    chain(node, "onExecuted", (output) => {
      endPreviews(node, output ?? {});
      showKept(node, output ?? {});
    });
  },
});
