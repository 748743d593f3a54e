"""What a person reads in ComfyUI's page: help pages with their pictures, lists in Chinese, what a search finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.comfyui_page import WEB, ComfyPage
from tests.helpers.comfyui_server import NEWER_PAGE, template

LOCALES = Path(__file__).parents[2] / "locales"
KINDS = sorted(page.stem for page in (WEB / "docs").glob("*.md"))
# Widths of the pictures of the help page that is shown, once they are loaded; 0 of one that cannot be.
PICTURES = """async () => Promise.all([...document.querySelectorAll('.node-help-content img')].map(async picture => {
  await picture.decode().catch(() => {}); return picture.naturalWidth }))"""
CHOICES = {"SaltMemoryPolicy": "kind", "SaltRollout": "nfe", "SaltLoadStudent": "weights"}
# The label of a list as the canvas writes it, and the text of the node as Nodes 2.0 does.
LABEL = """([vue, kind, name]) => { const node = app.graph._nodes.find(n => n.type === kind);
  if (!vue) return node.widgets.find(w => w.name === name)._displayValue;
  return document.querySelector(`[data-node-id="${node.id}"]`)?.innerText }"""

# What people call it, and ComfyUI's own nodes that have the word in their names and therefore come first.
SEARCHES: dict[str, set[str]] = {
    **{words: set() for words in ("salt", "rolling", "streaming video", "world model", "real time")},
    **{words: set() for words in ("causal", "self forcing", "longlive")},
    "infinite": {"Recraft Style - Infinite Style Library", "WanInfiniteTalkToVideo"},
    "kv cache": {"Flux KV Cache"},
}


def words(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def pictures_of_help(comfy: ComfyPage, language: str) -> dict[str, list[int]]:
    """Of every node's help page: the widths of its pictures."""
    titles = {kind: about["display_name"] for kind, about in words(language, "nodeDefs").items()}
    found = {}
    for kind in KINDS:
        comfy.lone(kind)
        comfy.open_help(titles[kind])
        found[kind] = comfy.page.evaluate(PICTURES)
        if kind == "SaltRollout":
            comfy.picture(f"help_picture_{language}")
    return found


def test_every_help_page_shows_its_picture(comfy):
    found = pictures_of_help(comfy, "en")
    assert len(found) == 18 and all(len(widths) == 1 and widths[0] >= 100 for widths in found.values()), found


def test_chinese_help_pages_and_lists(comfy, page_server):
    comfy.setting("Comfy.Locale", "zh")
    labels = words("zh", "main")["saltChoices"]
    try:
        comfy.open()
        found = pictures_of_help(comfy, "zh")
        assert all(len(widths) == 1 and widths[0] >= 100 for widths in found.values()), found
        for vue in (False, True)[: 2 if page_server.version >= NEWER_PAGE else 1]:
            comfy.setting("Comfy.VueNodes.Enabled", vue)
            for kind, name in CHOICES.items():
                comfy.lone(kind)
                label = labels[comfy.widget(kind, name)]
                comfy.until(LABEL, lambda shown, label=label: label in (shown or ""), [vue, kind, name])
            comfy.picture(f"zh_lists_{'vue' if vue else 'canvas'}")
    finally:
        comfy.setting("Comfy.VueNodes.Enabled", False)
        comfy.setting("Comfy.Locale", "en")


def test_a_finished_video_plays_on_its_node_in_nodes_2(comfy, page_server):
    if page_server.version < NEWER_PAGE:
        pytest.skip("Nodes 2.0 of this page shows no video on a node")
    comfy.setting("Comfy.VueNodes.Enabled", True)
    comfy.page.evaluate("g => app.loadGraphData(g)", json.loads(template("rollout_to_video").read_text()))
    comfy.set_widget("SaltRolloutToVideo", "seconds", 1.5)
    comfy.drawn()
    comfy.listen()
    comfy.press_run()
    comfy.wait_for("execution_success")
    video = comfy.page.locator("[data-node-id] video")
    video.wait_for(timeout=10_000)
    comfy.page.wait_for_function("document.querySelector('[data-node-id] video').videoWidth > 0", timeout=10_000)
    comfy.picture("rollout_to_video_vue")


def found_by_search(comfy: ComfyPage, words: str) -> list[str]:
    """The names that the node search shows for these words, best first."""
    dialog = comfy.page.get_by_role("dialog")
    results = dialog.get_by_role("option")
    comfy.page.mouse.dblclick(800, 450)
    dialog.get_by_role("combobox").fill(words)
    results.first.wait_for()
    comfy.page.wait_for_timeout(1500)  # the list follows the words a moment later
    names = [text.split("\n")[0] for text in results.all_inner_texts()]
    comfy.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    return names


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_the_node_search_finds_salt_first(comfy, page_server, vue):
    if page_server.version < NEWER_PAGE:
        pytest.skip("the search of this page is another")
    comfy.setting("Comfy.VueNodes.Enabled", vue)
    comfy.open()
    comfy.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    comfy.page.wait_for_function("app.graph._nodes.length === 0")
    comfy.drawn()
    for words, cores in SEARCHES.items():
        found = found_by_search(comfy, words)
        assert "Salt" in [name for name in found if name not in cores][0], f"{words}: {found}"
        assert cores <= set(found), f"{words}: ComfyUI's own went, so they need not be passed over"


def test_no_title_is_cut_on_the_canvas(comfy):
    wide = """() => { const node = app.graph._nodes[0], brush = document.createElement('canvas').getContext('2d');
      brush.font = app.canvas.title_text_font; return [node.size[0], brush.measureText(node.title).width] }"""
    for kind in KINDS:
        comfy.lone(kind)
        width, title = comfy.page.evaluate(wide)
        assert width >= title + 50, f"{kind}: {title:.0f} in {width:.0f} pixels, with the dot before it"
