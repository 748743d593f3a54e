"""How a template looks when ComfyUI's page opens it: zoom, wires behind nodes, contrast of its notes."""

from __future__ import annotations

from typing import Any

# Opens a workflow as the template browser does; the zoom, once nodes of either design have their final size.
OPEN = """async ([graph, name]) => {
  await app.loadGraphData(graph, true, true, name, {openSource: 'template'});
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const { ds } = app.canvas, sizes = () => app.graph._nodes.map(n => [...n.getBounding()]);
  const look = () => JSON.stringify([ds.scale, ...ds.offset, sizes()]);
  for (let same = 0, last = ''; same < 30; await frame()) {
    const now = look();
    same = now === last ? same + 1 : 0;
    last = now;
  }
  app.canvas.setDirty(true, true);  // wires, whose ends move with the nodes
  await frame();
  await frame();
  return app.canvas.ds.scale;
}"""

# Nodes that a wire runs behind. A wire that does so crosses the line that lies some pixels inside of the node's edge;
# its end on a socket does not reach that far.
WIRES = """() => {
  const inset = 16, step = 5, found = [];
  const brush = document.createElement('canvas').getContext('2d');
  brush.lineWidth = 6;
  const paths = [...app.canvas.renderedPaths].map(part => part.path).filter(path => path instanceof Path2D);
  for (const node of app.graph._nodes) {
    const [x, y, w, h] = node.getBounding();
    const [left, top, right, bottom] = [x + inset, y + inset, x + w - inset, y + h - inset], points = [];
    for (let a = left; a <= right; a += step) points.push([a, top], [a, bottom]);
    for (let b = top; b <= bottom; b += step) points.push([left, b], [right, b]);
    if (paths.some(path => points.some(([a, b]) => brush.isPointInStroke(path, a, b))))
      found.push(node.title || node.type);
  }
  return [paths.length, found];
}"""

# The lowest contrast of a note's texts with what is behind them, by WCAG 2; and its text.
CONTRAST = """() => {
  const brush = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = css => { brush.clearRect(0, 0, 1, 1); brush.fillStyle = css; brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255] };
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map(v =>
    (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * x + 0.7152 * y + 0.0722 * z };
  const node = app.graph._nodes.find(n => n.type === 'MarkdownNote');
  const root = node.widgets.find(w => w.element)?.element ?? document.querySelector(`[data-node-id="${node.id}"]`);
  const drawn = document.querySelector(`[data-node-id="${node.id}"]`) ?? root;
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(rgba(getComputedStyle(e).backgroundColor));
      if (e === drawn) break;
    }
    layers.push(rgba(node.bgcolor ?? '#353535'));
    let color = [0, 0, 0];
    for (const [r, g, b, a] of layers.reverse()) color = [r, g, b].map((v, i) => v * a + color[i] * (1 - a));
    return color;
  };
  let least = 21, text = '';
  const walk = document.createTreeWalker(drawn, NodeFilter.SHOW_TEXT);
  for (let part = walk.nextNode(); part; part = walk.nextNode()) {
    const element = part.parentElement;
    if (!part.textContent.trim() || element.closest('textarea, style') || !element.offsetParent) continue;
    text += part.textContent + ' ';
    const ground = behind(element), [r, g, b, a] = rgba(getComputedStyle(element).color);
    const ink = [r, g, b].map((v, i) => v * a + ground[i] * (1 - a));
    const [dark, bright] = [light(ground), light(ink)].sort((p, q) => p - q);
    least = Math.min(least, (bright + 0.05) / (dark + 0.05));
  }
  return [least, text];
}"""


def open_template(page: Any, graph: dict[str, Any], name: str) -> float:
    """Open a workflow as the template browser does; its zoom."""
    return page.evaluate(OPEN, [graph, name])
