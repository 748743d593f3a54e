"""Files to choose from, in ComfyUI's own page: students first, what a file holds, memories before a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salt.checkpoints import load_student, save_student
from salt.memory import MemoryPolicy, save_memory
from salt.spec import TINY_FOLDER, StudentSpec
from tests.helpers.comfyui_page import ComfyPage
from tests.helpers.comfyui_server import LocalServer, make_bare_folder
from tests.helpers.small_memory import written

ALL = "all files…"
VALUES = "[...app.graph._nodes[0].widgets[0].options.values]"


def put_files(base: Path) -> None:
    models = base / "models" / "diffusion_models"
    models.mkdir(parents=True, exist_ok=True)
    save_file({"transformer_blocks.0.attn.q.weight": torch.zeros(2)}, models / "aaa_flux.safetensors")
    save_file({"blocks.0.self_attn.q.weight": torch.zeros(2)}, models / "bbb_wan.safetensors")
    save_student(load_student(TINY_FOLDER), models / "mine.safetensors", spec=StudentSpec(frames_per_block=8, fps=24))


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    base = make_bare_folder(tmp_path_factory.mktemp("comfyui"))
    put_files(base)
    serving = LocalServer(base)
    yield serving
    serving.stop()


def choose(comfy: ComfyPage, value: str) -> None:
    comfy.page.evaluate("v => { const w = app.graph._nodes[0].widgets[0]; w.value = v; w.callback?.(v) }", value)


def test_students_come_first_and_the_rest_behind_all_files(comfy, page_server):
    if page_server.version < (0, 8, 0):
        pytest.skip("lists of this ComfyUI do not tell how many files could be students")
    comfy.lone("SaltLoadStudent")
    assert comfy.widget("SaltLoadStudent", "student") == "mine.safetensors", "not what is first by name"
    assert comfy.page.evaluate(VALUES) == ["mine.safetensors", "bbb_wan.safetensors", ALL]
    choose(comfy, ALL)
    assert comfy.widget("SaltLoadStudent", "student") == "mine.safetensors"
    assert comfy.page.evaluate(VALUES) == ["mine.safetensors", "bbb_wan.safetensors", "aaa_flux.safetensors"]
    choose(comfy, "aaa_flux.safetensors")
    graph = comfy.page.evaluate("app.graph.serialize()")
    comfy.page.evaluate("g => app.loadGraphData(g)", graph)
    assert comfy.widget("SaltLoadStudent", "student") == "aaa_flux.safetensors", "a saved graph keeps its file"
    kept = ["aaa_flux.safetensors", "mine.safetensors", "bbb_wan.safetensors", ALL]
    comfy.until(VALUES, lambda values: values == kept)
    comfy.page.evaluate("app.refreshComboInNodes()")
    comfy.until(VALUES, lambda values: ALL in values and len(values) == 4)


def test_all_files_can_be_chosen_in_nodes_2(comfy, page_server):
    if page_server.version < (0, 27, 0):
        pytest.skip("Nodes 2.0 of this page has other elements")
    comfy.setting("Comfy.VueNodes.Enabled", True)
    comfy.lone("SaltLoadStudent")
    box = comfy.page.get_by_role("combobox", name="student")
    box.click()
    comfy.page.get_by_role("option", name=ALL).click()
    comfy.until(VALUES, lambda values: ALL not in values)
    assert comfy.widget("SaltLoadStudent", "student") == "mine.safetensors"
    box.click()
    comfy.page.get_by_role("option", name="aaa_flux").click()
    comfy.until("app.graph._nodes[0].widgets[0].value", lambda value: value == "aaa_flux.safetensors")


def test_a_file_is_inspected_from_the_menu(comfy):
    comfy.lone("SaltLoadStudent")
    comfy.page.evaluate(
        """() => { const node = app.graph._nodes[0], options = [];
        node.getExtraMenuOptions(app.canvas, options);
        options.find(o => o?.content === 'Salt: inspect this file').callback() }"""
    )
    dialog = comfy.page.locator(".salt-dialog")
    dialog.get_by_text("4 steps, blocks of 8").wait_for()
    comfy.picture("inspected")
    dialog.get_by_role("button", name="close").click()
    dialog.wait_for(state="detached")
    error = comfy.page.evaluate("app.api.fetchApi('/salt/student?file=../../secret').then(a => a.json())")
    assert "found no such file" in error["error"]


SCHEDULE_AND_ROLLOUT = """() => { app.graph.clear();
  const kinds = ['SaltLoadStudent', 'LoraLoaderModelOnly', 'SaltPromptSchedule', 'SaltRollout'];
  const [loader, lora, schedule, rollout] = kinds.map((kind, i) => {
    const node = LiteGraph.createNode(kind); node.pos = [100 + 450 * i, 200]; app.graph.add(node); return node });
  const into = (from, to, name) => from.connect(0, to, to.inputs.findIndex(i => i.name === name));
  into(loader, lora, 'model'); into(lora, rollout, 'model'); into(schedule, rollout, 'prompts') }"""


def test_plus_adds_before_the_last_block_of_the_student_that_is_connected(comfy):
    """Blocks of 8 latent frames at 24 frames a second take 4/3 s; those of 3, set on the node, take half a second."""
    comfy.page.evaluate(SCHEDULE_AND_ROLLOUT)
    comfy.look_at("SaltPromptSchedule")
    found = []
    for block in (0, 3):
        comfy.set_widget("SaltRollout", "frames_per_block", block)
        comfy.set_widget("SaltPromptSchedule", "timeline", "0: a\n3.25: b")
        with comfy.page.expect_response("**/salt/student?*") if not found else nullcontext():
            comfy.page.locator(".salt-timeline").hover()
        comfy.page.locator(".salt-block").nth(1).focus()
        comfy.drawn()
        comfy.page.locator(".salt-add").click()
        found.append(comfy.widget("SaltPromptSchedule", "timeline").splitlines()[-1])
    assert found == ["3.5 recache: b", "4.25 recache: b"]


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_memory_is_shown_before_any_run(comfy, page_server, vue):
    if vue and page_server.version < (0, 27, 0):
        pytest.skip("Nodes 2.0 of this page draws no widget that a node gets later")
    folder = page_server.base / "output" / "salt_memories"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        memory = written(MemoryPolicy("sink", 9, 3), 4)
    save_memory(memory, folder / "clip_00001_.safetensors")
    comfy.setting("Comfy.VueNodes.Enabled", vue)
    comfy.lone("SaltLoadMemory")
    comfy.page.locator(".salt-memory").wait_for()
    comfy.picture(f"load_memory_{'vue' if vue else 'canvas'}")
    assert str(MemoryPolicy("sink", 9, 3)) in comfy.page.locator(".salt-memory").get_attribute("title")
    assert comfy.page.locator(".salt-bytes").inner_text().startswith("9 / 12 · ")
