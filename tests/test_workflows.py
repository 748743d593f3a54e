"""The shared workflow files: they are as the maker writes them, and have what ComfyUI's browser needs."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from salt.comfy_client.client import Record
from salt.comfy_client.workflow import NOTES, inputs_of, to_prompt
from workflows.maker import __main__ as maker
from workflows.maker.__main__ import build, to_json
from workflows.maker.blueprints import BLUEPRINTS, build_blueprint
from workflows.maker.graph import Graph
from workflows.maker.node_definitions import load_definitions
from workflows.maker.templates import FREE, WORKFLOWS

ROOT = Path(__file__).resolve().parents[1] / "workflows"
NAMES = sorted(WORKFLOWS)
DIRECTORIES = {
    "SaltLoadStudent": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae",
    "CLIPVisionLoader": "clip_vision", "UpscaleModelLoader": "upscale_models",
    "FrameInterpolationModelLoader": "frame_interpolation",
}  # fmt: skip


def file_of(name):
    return ROOT / f"{WORKFLOWS[name].title}.json"


def read(name):
    return json.loads(file_of(name).read_text(encoding="utf-8"))


def test_all_workflows_exist():
    expected = {
        "tiny_text_to_video", "salt_causal_forcing_4nfe", "salt_causal_forcing_2nfe", "salt_longlive_30s",
        "interactive_prompts", "extend_from_memory", "image_to_video_start", "branch_memory", "bidirectional_t2v",
        "bidirectional_i2v", "compare_nfe", "low_vram", "lora", "video_start", "upscale", "upscale_interpolate",
        "draft_then_final", "batch_prompts_seeds", "first_frames",
    }  # fmt: skip
    assert expected <= set(NAMES)
    assert sorted(path.name for path in ROOT.glob("*.json")) == sorted(file_of(name).name for name in NAMES)
    assert sorted(path.stem for path in (ROOT / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_maker_writes(name):
    workflow, prompt = build(name, load_definitions())
    assert file_of(name).read_text(encoding="utf-8") == to_json(workflow), "run `make workflows`"
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


def test_notes_call_nodes_by_the_names_that_they_show():
    by_type = {
        kind.lower().replace(" ", ""): definition["display_name"] or kind
        for kind, definition in load_definitions().items()
    }
    said = [
        " ".join(bold.split())
        for name in NAMES
        for node in read(name)["nodes"]
        if node["type"] in NOTES
        for bold in re.findall(r"\*\*(.+?)\*\*", node["widgets_values"][0], re.DOTALL)
    ]
    shown = {bold: by_type[key] for bold in said if (key := bold.lower().replace(" ", "")) in by_type}
    assert "Salt Rollout" in shown and {bold: name for bold, name in shown.items() if bold != name} == {}


@pytest.mark.parametrize("name", NAMES)
def test_required_sockets_are_connected(name):
    for node in read(name)["nodes"]:
        if node["type"] not in load_definitions():  # notes, and subgraphs
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
def test_thumbnails_are_small_and_move_where_a_run_can_be_shown(name):
    """ComfyUI asks for a .jpg, and a browser looks at what is in it."""
    path = file_of(name).with_suffix(".jpg")
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert picture.size == (480, 320)
        assert picture.format == ("WEBP" if WORKFLOWS[name].is_free else "JPEG")
        assert (getattr(picture, "n_frames", 1) > 5) == WORKFLOWS[name].is_free


def test_those_that_need_nothing_say_so_and_come_first():
    loads = {name: {node["class_type"] for node in json.loads((ROOT / "api" / f"{name}.json").read_text()).values()}
             for name in NAMES}  # fmt: skip
    assert {name for name in NAMES if "SaltLoadStudent" not in loads[name]} == {
        n for n in NAMES if WORKFLOWS[n].is_free
    }
    titles = [WORKFLOWS[name].title for name in WORKFLOWS]
    free = [title for title in titles if title.startswith(FREE)]
    assert all(title.startswith("Salt ") for title in titles) and sorted(titles)[: len(free)] == sorted(free)


@pytest.mark.parametrize("name", NAMES)
def test_notes_have_no_code_and_every_template_fits_the_window(name):
    """What is measured in the page by tests/comfyui/test_browser_templates.py, from the files alone."""
    nodes = read(name)["nodes"]
    assert "`" not in next(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    right, bottom = (max(node["pos"][i] + node["size"][i] for node in nodes) for i in (0, 1))
    assert right <= 1980 and bottom <= 1105


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


class SavedRuns:
    """A server whose every run saves one picture."""

    url = "http://a.server"

    def __init__(self):
        self.queued = []

    def queue(self, prompt):
        self.queued.append(prompt)
        return "1"

    def history(self, number):
        return Record({"4": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}})

    def download(self, result, folder):
        Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / result.filename)
        return folder / result.filename


def test_a_thumbnail_shows_what_a_run_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "FOLDER", tmp_path)
    shutil.copytree(ROOT / "api", tmp_path / "api")
    server = SavedRuns()
    maker.write_picture("rollout_to_video", server)
    (seconds,) = [n["inputs"]["seconds"] for n in server.queued[0].values() if "seconds" in n["inputs"]]
    assert seconds == maker.PICTURE_SECONDS, "a long clip is cut"
    with Image.open(tmp_path / f"{WORKFLOWS['rollout_to_video'].title}.jpg") as picture:
        assert picture.convert("RGB").getpixel((240, 160))[0] > 150


def test_blueprints_are_what_the_maker_writes_and_one_node_each():
    folder = ROOT.parent / "subgraphs"
    assert sorted(path.stem for path in folder.glob("*.json")) == sorted(BLUEPRINTS)
    for name in BLUEPRINTS:
        made = build_blueprint(name, load_definitions())
        assert (folder / f"{name}.json").read_text(encoding="utf-8") == to_json(made), "run `make workflows`"
        (node,), (inside,) = made["nodes"], made["definitions"]["subgraphs"]
        assert node["type"] == inside["id"] and name.startswith("Salt ")
        shown = dict(zip((i["name"] for i in node["inputs"] if "widget" in i), node["widgets_values"], strict=True))
        assert shown["prompt"] and shown["seconds"] > 0
        prompt = to_prompt(made, load_definitions())
        texts = [n["inputs"].get("text", n["inputs"].get("prompt")) for n in prompt.values()]
        assert shown["prompt"] in texts


def test_a_video_of_every_clip_has_the_frames_of_one():
    nodes = json.loads((ROOT / "api" / "batch_prompts_seeds.json").read_text()).values()
    (seconds,) = {node["inputs"]["seconds"] for node in nodes if node["class_type"] == "SaltRollout"}
    latent = 3 * math.ceil(((seconds * 16 - 1) / 4 + 1) / 3)  # whole blocks of three
    assert {n["inputs"]["batch_size"] for n in nodes if n["class_type"] == "RebatchImages"} == {1 + 4 * (latent - 1)}
