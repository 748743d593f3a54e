"""Templates as a person meets them in ComfyUI's page: found, opened, readable."""

from __future__ import annotations

import json

import pytest

from tests.helpers.comfyui_server import NEWER_PAGE, template, twin
from tests.helpers.template_view import CONTRAST, WIRES, open_template
from workflows.maker.templates import WORKFLOWS

DESIGNS = {"canvas": False, "vue": True}  # ComfyUI's two ways to draw a node
LEAST_ZOOM = 0.6  # of a template that opens in a window of 1600 x 900; below, nodes are drawn without their text
LEAST_CONTRAST = 4.5  # of text, WCAG AA


def use_design(comfy, page_server, design: str) -> None:
    if page_server.version < NEWER_PAGE:
        pytest.skip("templates are laid out for the newest page")
    comfy.page.set_viewport_size({"width": 1600, "height": 900})
    comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])


@pytest.mark.parametrize("design", DESIGNS)
def test_every_template_opens_readable(comfy, page_server, design):
    use_design(comfy, page_server, design)
    for name in WORKFLOWS:
        zoom = open_template(comfy.page, json.loads(template(name).read_text()), name)
        comfy.picture(f"template_{name}_{design}")
        missing = "app.graph._nodes.map(n => n.type).filter(type => !LiteGraph.registered_node_types[type])"
        assert comfy.page.evaluate(missing) == [], name
        assert comfy.misplaced() == [], name
        assert zoom >= LEAST_ZOOM, f"{name} opens at {zoom:.3f}"
        paths, crossed = comfy.page.evaluate(WIRES)
        assert paths and crossed == [], f"{name}: a wire runs behind {crossed}"
        contrast, text = comfy.page.evaluate(CONTRAST)
        assert contrast >= LEAST_CONTRAST and len(text) > 100, f"{name}: {contrast:.1f}, {text}"
        queued = comfy.page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
        kinds = sorted(node["class_type"] for node in queued)  # the page numbers what is in subgraphs anew
        assert kinds == sorted(node["class_type"] for node in twin(name).values()), f"{name}: as its API file"


def test_a_search_for_salt_shows_every_template(comfy, page_server):
    use_design(comfy, page_server, "canvas")
    comfy.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    search = comfy.page.get_by_role("dialog").get_by_role("textbox").first
    search.fill("salt")
    cards = "[...document.querySelectorAll('[data-testid^=template-workflow-Salt]')].map(card => card.dataset.testid)"
    titles = {f"template-workflow-{template.title}" for template in WORKFLOWS.values()}
    comfy.until(cards, lambda found: set(found) == titles)
    comfy.picture("template_search")
