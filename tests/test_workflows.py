"""The shared workflow files: they are as the maker writes them, and have what ComfyUI's browser needs."""

import json
from pathlib import Path

import pytest
from PIL import Image

from salt.comfy_client.workflow import NOTES, inputs_of
from workflows.maker.__main__ import build, to_json
from workflows.maker.graph import Graph
from workflows.maker.node_definitions import load_definitions
from workflows.maker.templates import CARDS, WORKFLOWS

ROOT = Path(__file__).resolve().parents[1] / "workflows"
NAMES = sorted(WORKFLOWS)
DIRECTORIES = {
    "SaltLoadStudent": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae",
    "CLIPVisionLoader": "clip_vision",
}  # fmt: skip


def read(name):
    return json.loads((ROOT / f"{name}.json").read_text(encoding="utf-8"))


def test_all_workflows_exist():
    expected = {
        "tiny_text_to_video", "salt_causal_forcing_4nfe", "salt_causal_forcing_2nfe", "salt_longlive_30s",
        "interactive_prompts", "extend_from_memory", "image_to_video_start", "branch_memory", "bidirectional_t2v",
        "bidirectional_i2v", "compare_nfe",
    }  # fmt: skip
    assert expected <= set(NAMES)
    assert sorted(path.stem for path in ROOT.glob("*.json")) == NAMES
    assert sorted(path.stem for path in (ROOT / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_maker_writes(name):
    workflow, prompt = build(name, load_definitions())
    assert (ROOT / f"{name}.json").read_text(encoding="utf-8") == to_json(workflow), "run `make workflows`"
    assert (ROOT / "api" / f"{name}.json").read_text(encoding="utf-8") == to_json(prompt), "run `make workflows`"


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_with_both_ends(name):
    graph = read(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) and graph["last_node_id"] == max(nodes)
    for link, origin, slot, target, to, kind in graph["links"]:
        source, sink = nodes[origin]["outputs"][slot], nodes[target]["inputs"][to]
        assert link in source["links"] and sink["link"] == link
        assert source["type"] == kind == sink["type"], f"{nodes[origin]['type']} into {nodes[target]['type']}"
    ends = [i["link"] for node in nodes.values() for i in node["inputs"] if i["link"] is not None]
    assert sorted(ends) == sorted(link[0] for link in graph["links"])


@pytest.mark.parametrize("name", NAMES)
def test_required_sockets_are_connected(name):
    for node in read(name)["nodes"]:
        if node["type"] in NOTES:
            continue
        required = load_definitions()[node["type"]]["input"]["required"]
        linked = {i["name"]: i["link"] for i in node["inputs"] if "widget" not in i}
        assert [n for n in required if n in linked and linked[n] is None] == [], node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap_and_links_run_to_the_right(name):
    graph = read(name)
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in graph["nodes"]]
    for i, (x, y, w, h, kind) in enumerate(boxes):
        for ox, oy, ow, oh, other in boxes[i + 1 :]:
            assert x + w <= ox or ox + ow <= x or y + h <= oy or oy + oh <= y, f"{kind} over {other}"
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, origin, _, target, *_ in graph["links"]:
        assert nodes[origin]["pos"][0] <= nodes[target]["pos"][0]
    for node in graph["nodes"]:
        if node["type"] not in NOTES:
            assert sum(within(node, group["bounding"]) for group in graph["groups"]) == 1, node["type"]


def within(node, frame):
    (x, y), (w, h), (left, top, width, height) = node["pos"], node["size"], frame
    return left <= x and x + w <= left + width and top < y and y + h <= top + height


@pytest.mark.parametrize("name", NAMES)
def test_loaders_name_the_source_of_their_files(name):
    graph = read(name)
    assert [node for node in graph["nodes"] if node["type"] == "MarkdownNote" and len(node["widgets_values"][0]) > 100]
    for node in graph["nodes"]:
        models = node["properties"].get("models", [])
        for model in models:
            assert model["name"] == node["widgets_values"][0]
            assert model["directory"] == DIRECTORIES[node["type"]]
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
        if node["type"] in DIRECTORIES and not node["widgets_values"][0].startswith("salt_bidirectional"):
            assert models, f"{node['type']} without a download URL"


@pytest.mark.parametrize("name", NAMES)
def test_thumbnails_are_small_jpegs(name):
    path = ROOT / f"{name}.jpg"
    assert path.stat().st_size < 40_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (480, 320)


def test_workflows_with_downloaded_weights_have_cards():
    loads = {name: {node["class_type"] for node in json.loads((ROOT / "api" / f"{name}.json").read_text()).values()}
             for name in NAMES}  # fmt: skip
    assert {name for name in NAMES if "SaltLoadStudent" in loads[name]} == set(CARDS)


def test_unknown_inputs_and_outputs_are_refused():
    graph = Graph("g", load_definitions())
    graph.group("one", 0)
    loaded = graph.add("SaltLoadTiny")
    with pytest.raises(ValueError, match="SaltRollout has no inputs modle"):
        graph.add("SaltRollout", modle=loaded["MODEL"])
    with pytest.raises(ValueError, match="found output 7, expected below 3"):
        loaded[7]
    with pytest.raises(ValueError, match="CLIPLoader needs a value for clip_name"):
        graph.add("CLIPLoader", type="wan")
    assert [name for name, _, _ in inputs_of(load_definitions()["SaltLoadTiny"])] == []
