"""What the nodes show of their widgets, in ComfyUI's own page: few of them, "auto", seconds, colours of sockets."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers.comfyui_page import ComfyPage
from tests.helpers.comfyui_server import NEWER_PAGE

CLIPS = ("SaltRollout", "SaltLive", "SaltRolloutToVideo")  # nodes with many widgets
VUE = [False, True]
NO_ADVANCED = "inputs of this ComfyUI cannot be marked as advanced"
# Names of the widgets that are drawn. The canvas draws the ones that `isWidgetVisible`.
SHOWN = """vue => { const node = app.graph._nodes[0];
  if (!vue) return node.widgets.filter(w => node.isWidgetVisible(w) && w.name !== 'salt_more').map(w => w.name);
  return [...document.querySelectorAll('[data-node-id] [data-testid=node-widget]')].filter(e => e.offsetHeight)
    .map(e => e.querySelector('[aria-label], textarea')?.getAttribute('aria-label') ?? e.innerText).filter(Boolean) }"""
# Texts of the widgets of these names as they are drawn.
TEXTS = """([vue, names]) => { const node = app.graph._nodes[0];
  if (!vue) return names.map(n => node.widgets.find(w => w.name === n)._displayValue);
  return names.map(name => { const is = `[aria-label=${name}]`;
    const field = document.querySelector(`[node-type] :is(input${is}, ${is} input)`);
    const over = getComputedStyle(field.parentElement, '::before').content;
    return over === 'none' ? field.value : JSON.parse(over) }) }"""


@pytest.fixture(params=VUE, ids=["canvas", "vue"])
def vue(request: Any, comfy: ComfyPage, page_server: Any) -> bool:
    if request.param and page_server.version < NEWER_PAGE:
        pytest.skip("Nodes 2.0 of this page folds nothing")
    if page_server.version < (0, 8, 0):
        pytest.skip(NO_ADVANCED)
    comfy.setting("Comfy.VueNodes.Enabled", request.param)
    return request.param


def texts(comfy: ComfyPage, vue: bool, expected: dict[str, str]) -> None:
    """Wait until the texts of these widgets match these patterns."""
    comfy.until(TEXTS, lambda found: all(map(re.fullmatch, expected.values(), found)), [vue, list(expected)])


@pytest.mark.parametrize("kind", CLIPS)
def test_at_most_six_widgets_until_more_are_asked_for(comfy, vue, kind):
    comfy.lone(kind)
    few = comfy.until(SHOWN, lambda names: 4 <= len(names) <= 6 and "nfe" in names and "cfg" not in names, vue)
    comfy.picture(f"few_{kind}_{'vue' if vue else 'canvas'}")
    size = comfy.page.evaluate("[...app.graph._nodes[0].size]")
    saved = comfy.page.evaluate("app.graph.serialize().nodes[0].widgets_values.length")
    if vue:
        comfy.page.get_by_text("Show advanced inputs").click()
    else:
        comfy.page.evaluate("app.graph._nodes[0].widgets.find(w => w.name === 'salt_more').callback()")
    comfy.until(SHOWN, lambda names: {"cfg", "shift", "steps", *few} <= set(names), vue)
    assert comfy.page.evaluate("app.graph.serialize().nodes[0].widgets_values.length") == saved
    if not vue:
        comfy.page.evaluate("app.graph._nodes[0].widgets.find(w => w.name === 'salt_more').callback()")
        assert comfy.page.evaluate("[...app.graph._nodes[0].size]") == size, "folded again, it is as small as before"


def test_zero_reads_auto_and_steps_follow_nfe(comfy, vue):
    comfy.lone("SaltRollout")
    comfy.page.evaluate("app.graph._nodes[0].showAdvanced = true")
    own = dict.fromkeys(("width", "height", "shift", "frames_per_block", "steps"), "auto")
    texts(comfy, vue, {**own, "seconds": "5.00"})
    values = comfy.page.evaluate("app.graph._nodes[0].widgets.map(w => w.value)")
    assert values.count(0) >= 4 and "1000, 750, 500, 250" in values, "the values are as they were"
    comfy.page.evaluate(
        """() => { for (const [name, value] of Object.entries({ width: 64, shift: 8, nfe: 'custom', seconds: 0.75 })) {
        const w = app.graph._nodes[0].widgets.find(w => w.name === name); w.value = value; w.callback?.(value) } }"""
    )
    listed = "1000, 750, 500, 250"
    texts(comfy, vue, {"width": "64", "height": "auto", "shift": "8[.0]*", "steps": listed, "seconds": "0.75"})


def test_a_folded_widget_with_a_link_stays_on_the_canvas(comfy, page_server):
    if page_server.version < (0, 8, 0):
        pytest.skip(NO_ADVANCED)
    comfy.lone("SaltRollout")
    comfy.page.evaluate(
        """() => { const number = LiteGraph.createNode('PrimitiveFloat'); app.graph.add(number);
        const node = app.graph._nodes[0]; number.connect(0, node, node.inputs.findIndex(i => i.name === 'cfg')) }"""
    )
    comfy.until(SHOWN, lambda names: "cfg" in names and "shift" not in names, False)


def one_colour_each(found: list[list[str]]) -> bool:
    return all(len(set(colours)) == 1 and re.fullmatch("#[0-9a-f]{6}", colours[0]) for colours in found)


def test_our_sockets_have_colours_of_their_own_in_every_palette(comfy):
    read = """() => ['SALT_MEMORY', 'SALT_MEMORY_POLICY', 'SALT_PROMPTS'].map(t =>
      [app.canvas.default_connection_color_byType[t], app.canvas.constructor.link_type_colors[t],
       getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${t}`).trim()])"""
    for palette in ("light", "dark"):
        comfy.setting("Comfy.ColorPalette", palette)
        found = comfy.until(read, one_colour_each)
        assert len({colours[0] for colours in found}) == 3
