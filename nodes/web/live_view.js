/** A live session on its node while it runs: the clip, the prompt box, blends, pause, rewind and Stop, from the modules
 * of the session's own page, which ComfyUI's server serves as well. */

import { addElement } from "./front_ends.js";
import { make } from "./timeline.js";

const SIZE = [520, 620]; // of the view, in the canvas's pixels
const NAME = "salt_live";

/** Show or hide the view of a node. entry: what the server says of it, undefined when it does not run. `address(path)`:
 * a URL of ComfyUI's server. */
export function showLiveView(node, entry, { address, token, language }) {
  const widget = node.widgets?.find((w) => w.name === NAME);
  if (widget && widget.saltSession !== entry?.session) {
    widget.saltView?.destroy();
    node.removeWidget(widget);
    node.setDirtyCanvas?.(true, true);
  }
  if (entry?.session && widget?.saltSession !== entry.session) addView(node, entry.session, { address, token, language });
}

async function addView(node, session, { address, token, language }) {
  const place = make("div", "salt-live-node");
  const widget = addElement(node, NAME, place, () => SIZE[1]);
  widget.saltSession = session;
  node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], node.computeSize()[1])]);
  // What is typed, dragged and scrolled here is not meant for the canvas.
  for (const kind of ["pointerdown", "wheel", "keydown", "keyup"]) place.addEventListener(kind, (e) => e.stopPropagation());
  useStyle(address("/salt/live/static/live.css"));
  const [{ LiveView }, { Text }] = await Promise.all(
    ["view.js", "text.js"].map((name) => import(address(`/salt/live/static/${name}`))),
  );
  if (widget.saltSession !== session || !node.widgets.includes(widget)) return; // it has ended meanwhile
  const url = () => {
    const socket = new URL(address("/salt/live/ws"), location.href);
    socket.searchParams.set("session", session);
    if (token) socket.searchParams.set("token", token);
    return socket;
  };
  const text = new Text();
  text.set(language === "zh" ? "zh" : "en");
  widget.saltView = new LiveView(place, url, { compact: true, text });
}

function useStyle(href) {
  if ([...document.querySelectorAll("link[rel=stylesheet]")].some((link) => link.href === new URL(href, location.href).href)) return;
  document.head.append(make("link", "", { rel: "stylesheet", href }));
}
