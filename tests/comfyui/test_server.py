"""Real servers: the pack loads without a word, every workflow is taken and runs to its end on stand-ins for the models,
and the embedded model's clip shows what its prompt says."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest

from salt import cli
from salt.comfy_client.client import ServerError, results
from salt.comfy_client.workflow import to_prompt
from salt.io.video import read_video
from tests.helpers.comfyui_server import ROOT, LocalServer, make_base_folder, small, template, twin
from train.shapes.bench import score_clip
from workflows.maker.building_blocks import TINY_PROMPT
from workflows.maker.node_definitions import load_definitions, reduce_definition
from workflows.maker.templates import WORKFLOWS

NODES = {
    "SaltLoadStudent", "SaltLoadTiny", "SaltSigmas", "SaltSampler", "SaltRollout", "SaltPromptSchedule",
    "SaltMemoryPolicy", "SaltSaveMemory", "SaltLoadMemory", "SaltInspectMemory", "SaltRewindMemory", "SaltForkMemory",
    "SaltExtendVideo", "SaltDecode", "SaltSemigroupDefect", "SaltLive", "SaltRolloutToVideo", "SaltPlan",
}  # fmt: skip
NEWEST = (0, 27, 0)  # whose definitions of nodes are saved
SAVERS = ("SaveVideo", "SaveAnimatedWEBP", "SaltLive", "SaltRolloutToVideo")
# extend_from_memory goes on from what save_memory keeps.
IN_ORDER = sorted(WORKFLOWS, key=lambda name: (name == "extend_from_memory", name))
SIDES = {"upscale_interpolate": 64}  # pixels of a small clip: RIFE mirrors up to 63 of them


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = LocalServer(make_base_folder(tmp_path_factory.mktemp("base")))
    print(f"ComfyUI {'.'.join(map(str, running.version))}")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def newest(server):
    if server.version < NEWEST:
        pytest.skip(f"ComfyUI {server.version}, expected {NEWEST}")
    return server


def test_the_pack_loads_without_a_word(server):
    for line in server.log.splitlines():
        assert not re.search(r"Salt: |Traceback|IMPORT FAILED|Cannot import .*Salt", line), line


def test_every_node_is_there_with_its_tooltips(server):
    info = server.node_info()
    assert {name for name in info if name.startswith("Salt")} == NODES
    silent = [
        f"{name}.{widget}"
        for name in NODES
        for group in ("required", "optional")
        for widget, entry in info[name]["input"].get(group, {}).items()
        if not (len(entry) > 1 and entry[1].get("tooltip"))
    ]
    assert silent == []
    assert all(info[name]["category"].startswith("Salt/") for name in NODES)


def test_importing_the_pack_loads_no_library(inside):
    """Most of them take seconds (diffusers, torchao, torch's compiler); this one is thin."""
    assert inside("imports", "added") == ["imageio_ffmpeg"]


def test_the_browser_is_served_the_extension_and_the_templates(server):
    scripts = json.loads(server.request("/extensions"))
    assert [path for path in scripts if "ComfyUI-Salt" in path and path.endswith(".js")]
    offered = server.get_json("/workflow_templates")
    assert set(offered["ComfyUI-Salt"]) == {made.title for made in WORKFLOWS.values()}
    title = quote(WORKFLOWS["tiny_text_to_video"].title)
    picture = server.request(f"/api/workflow_templates/ComfyUI-Salt/{title}.jpg")
    assert picture[8:12] == b"WEBP", "a moving picture"


def test_the_routes_of_running_nodes_and_live_sessions_are_there(server):
    assert server.get_json("/salt/running") == {"nodes": {}, "token": None}
    assert server.request("/salt/live/static/player.js").startswith(b"/**")


def need_nodes(server, name):
    """Skip where this version of core lacks a node of the workflow."""
    if missing := {node["class_type"] for node in twin(name).values()} - server.node_info().keys():
        pytest.skip(f"ComfyUI {server.version} has no {', '.join(sorted(missing))}")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_twin_is_its_workflow_by_what_this_server_says(server, name):
    need_nodes(server, name)
    workflow = json.loads(template(name).read_text(encoding="utf-8"))
    try:
        prompt = to_prompt(workflow, server.node_info())
    except ValueError as error:
        if server.version < NEWEST and "saved by another version of the node" in str(error):
            pytest.skip(str(error))  # core's Create Video has a widget more
        raise
    assert plain(prompt) == plain(twin(name))


def plain(prompt):
    """Without what changes from version to version: display names, and the inputs of a chosen option (`format.codec`
    of Save Video from 0.33 on)."""
    return {
        number: (node["class_type"], {name: value for name, value in node["inputs"].items() if "." not in name})
        for number, node in prompt.items()
    }


def test_the_saved_node_definitions_are_those_of_the_server(newest):
    info = newest.node_info()
    saved = load_definitions()
    if newest.version > NEWEST:  # core's nodes are saved as they were then
        saved = {node_type: saved[node_type] for node_type in saved if node_type in NODES}
    current = {node_type: reduce_definition(info[node_type]) for node_type in saved}
    assert current == saved, "run `make workflows ARGS='--server URL'`"


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_workflow_is_taken_as_it_is_and_runs_to_its_end_when_small(server, name):
    need_nodes(server, name)
    number = server.queue(twin(name))  # the server's own validation, at full size
    server.cancel(number)
    made = list(results(server.run(small(twin(name), side=SIDES.get(name, 32)))))
    savers = [n for n in twin(name).values() if n["class_type"] in SAVERS]
    saved = [r for r in made if r.filename.endswith((".mp4", ".webp"))]
    assert len(saved) == len(savers) if name != "batch_prompts_seeds" else len(saved) >= 4, "several clips a prompt"
    if name == "upscale_interpolate":
        pixels = read_video(server.base / "output" / saved[0].subfolder / saved[0].filename, fps=32)
        assert pixels.shape[2:] == (2 * 33 - 1, 128, 128), "a frame between any two, twice as large"
    for result in saved:
        assert (server.base / "output" / result.subfolder / result.filename).stat().st_size > 500


def test_the_tiny_workflow_shows_what_its_prompt_says(server, tmp_path, capsys):
    api = ROOT / "workflows" / "api" / "tiny_text_to_video.json"
    assert cli.main(["run-workflow", str(api), "--server", server.url, "--out", str(tmp_path)]) == 0
    (video,) = tmp_path.glob("*.mp4")
    assert str(video) in capsys.readouterr().out
    pixels = read_video(video)
    assert pixels.shape == (1, 3, 81, 64, 64)
    score = score_clip(pixels[0], TINY_PROMPT)
    assert score.color and score.shape and score.direction and score.speed and score.count, score
    assert not score_clip(pixels[0], "a fast red square moving up").color


def test_run_workflow_converts_a_browsers_file(server, tmp_path):
    sizes = ["SaltRollout.seconds=1", "SaltRollout.nfe=2"]
    browsers = template("tiny_text_to_video")
    command = ["run-workflow", str(browsers), "--server", server.url, "--out", str(tmp_path)]
    assert cli.main([*command, *(a for s in sizes for a in ("--set", s))]) == 0
    assert [read_video(path).shape[2] for path in tmp_path.glob("*.mp4")] == [21]


def test_run_workflow_hands_on_what_the_server_says(server, tmp_path, capsys):
    api = ROOT / "workflows" / "api" / "tiny_text_to_video.json"
    command = ["run-workflow", str(api), "--server", server.url, "--out", str(tmp_path), "--set"]
    assert cli.main([*command, "SaltRollout.seconds=-1"]) == cli.FAILED
    stderr = capsys.readouterr().err
    assert "the server rejects the workflow: node 3 (SaltRollout): Value -1.0 smaller than min" in stderr
    assert cli.main([*command, "Prompt.text=a pink elephant"]) == cli.FAILED
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: node 2 (CLIPTextEncode): ") and "pink" in stderr and stderr.count("\n") == 1


def test_a_student_that_is_not_there_is_named_with_its_folder(server):
    prompt = twin("salt_causal_forcing_4nfe")
    prompt["1"]["inputs"]["student"] = "salt_nowhere.pt"
    with pytest.raises(ServerError, match=r"node 1 \(SaltLoadStudent\).*salt_nowhere\.pt"):
        server.run(small(prompt))  # the server itself says so before the run, from 0.8 on
