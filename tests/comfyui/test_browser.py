"""ComfyUI's own page with the pack in it, in a headless Chromium, used as a person would use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.comfyui_page import MISPLACED, ComfyPage
from tests.helpers.comfyui_server import NEWER_PAGE, template

ROOT = Path(__file__).parents[2]
SCHEDULE, ROLLOUT = "SaltPromptSchedule", "SaltRollout"
DESIGNS = {"canvas": False, "vue": True}  # ComfyUI's two ways to draw a node
# The page's list of edits that can be undone, and whether it has loaded the graph that an undo goes back to.
EDITS = "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
RESTORED = "() => !app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState"
SEEDS = {"canvas": 4, "vue": 11}  # one clip of the same server must not be the other's


def seconds_of(text: str) -> list[float]:
    return [float(line.split(":")[0].split()[0]) for line in text.splitlines()]


def blocks(comfy: ComfyPage, number: int) -> None:
    """Wait until the timeline shows so many prompts."""
    comfy.until("document.querySelectorAll('.salt-block').length", lambda found: found == number)


@pytest.mark.parametrize("design", DESIGNS)
def test_the_mouse_moves_a_prompt_and_the_text_follows(comfy, page_server, design):
    if DESIGNS[design] and page_server.version < (0, 8, 0):
        pytest.skip("Nodes 2.0 of 0.3.64's page, an experiment there, draws no timeline")
    comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])
    comfy.lone(SCHEDULE)
    comfy.set_widget(SCHEDULE, "timeline", "0: a fast red circle moving up\n2 recache: a blue square moving left\n4: c")
    blocks(comfy, 3)  # a change of the text draws anew
    comfy.picture(f"timeline_{design}")
    comfy.drag(".salt-edge >> nth=1", 40)
    edge = seconds_of(comfy.widget(SCHEDULE, "timeline"))
    assert edge[0] == 0 and 2 < edge[1] < edge[2] == 4
    comfy.drag(".salt-block >> nth=1", -30)
    block = seconds_of(comfy.widget(SCHEDULE, "timeline"))
    assert block[1] < edge[1] and block[2] - block[1] == pytest.approx(edge[2] - edge[1]), "a block keeps its length"
    comfy.page.locator(".salt-mode").select_option("cut")
    comfy.page.locator(".salt-text").fill("a yellow triangle moving down")
    line = comfy.widget(SCHEDULE, "timeline").splitlines()[1]
    assert line == f"{block[1]:g} cut: a yellow triangle moving down"
    assert comfy.page.evaluate("app.graph._nodes.length") == 1
    saved = comfy.page.evaluate("app.graph.serialize().nodes[0].widgets_values")
    assert saved == [comfy.widget(SCHEDULE, "timeline")], "the picture itself is not saved"


@pytest.mark.parametrize("design", DESIGNS)
def test_the_prompts_stand_once_until_their_text_is_asked_for(comfy, page_server, design):
    if DESIGNS[design] and page_server.version < NEWER_PAGE:
        pytest.skip("Nodes 2.0 of this page has other classes, and shows the text as well")
    comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])
    comfy.lone(SCHEDULE)
    stored, small = comfy.page.locator("textarea:not(.salt-text)"), "[...app.graph._nodes[0].size]"
    comfy.page.locator(".salt-block").first.wait_for()
    before = comfy.page.evaluate(small)
    assert not stored.first.is_visible()
    comfy.page.locator(".salt-raw").click()
    stored.first.wait_for()
    comfy.picture(f"timeline_text_{design}")
    comfy.page.locator(".salt-raw").click()
    stored.first.wait_for(state="hidden")
    comfy.until(small, lambda size: size == before)
    comfy.set_widget(SCHEDULE, "timeline", "0: a\n2 fade: b")
    comfy.page.locator(".salt-timeline").hover()
    stored.first.wait_for()  # what the editor cannot read is mended there


@pytest.mark.parametrize("design", DESIGNS)
def test_prompts_after_the_clip_are_drawn_as_such_and_plus_adds_before_its_end(comfy, page_server, design):
    if DESIGNS[design] and page_server.version < (0, 8, 0):
        pytest.skip("Nodes 2.0 of 0.3.64's page, an experiment there, draws no timeline")
    comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])
    comfy.lone(SCHEDULE)
    comfy.page.evaluate(
        """kind => { const rollout = LiteGraph.createNode(kind), from = app.graph._nodes[0];
        rollout.pos = [1000, 200]; app.graph.add(rollout);
        from.connect(0, rollout, rollout.inputs.findIndex(i => i.name === 'prompts')) }""",
        ROLLOUT,
    )
    comfy.set_widget(SCHEDULE, "timeline", "0: a\n2: b\n7 shot: c")
    comfy.look_at(SCHEDULE)
    comfy.page.locator(".salt-timeline").hover()
    late = "[...document.querySelectorAll('.salt-block')].map(e => e.matches('.salt-late'))"
    comfy.until(late, lambda found: found == [False, False, True])
    said = comfy.page.locator(".salt-timeline [role=status]")
    assert said.inner_text() == "after the end of the clip, and not used: 7 s"
    beyond, track = (comfy.page.locator(f".salt-{part}").bounding_box() for part in ("beyond", "track"))
    assert beyond["x"] > track["x"] + track["width"] / 4 and beyond["width"] > 10
    for scale in (0.6, 1.5):
        comfy.page.evaluate("z => { app.canvas.ds.scale = z; app.canvas.setDirty(true, true) }", scale)
        comfy.page.evaluate("() => { app.canvas.ds.offset = [-350, -100]; app.canvas.setDirty(true, true) }")
        comfy.page.locator(".salt-track").hover()
        width = "document.querySelectorAll('.salt-edge')[1].getBoundingClientRect().width"
        comfy.until(width, lambda found: found == pytest.approx(10, abs=0.1))
    comfy.picture(f"timeline_late_{design}")
    comfy.page.locator(".salt-block").nth(2).focus()  # the late one is chosen
    comfy.page.locator(".salt-add").click()
    starts = seconds_of(comfy.widget(SCHEDULE, "timeline"))
    assert len(starts) == 4 and 0 < (set(starts) - {0, 2, 7}).pop() <= 4.25, "the last block of 5 s begins at 4.5 s"


def test_typing_in_the_text_redraws_and_keys_in_the_picture_do_not_reach_the_canvas(comfy):
    comfy.lone(SCHEDULE)
    text = comfy.page.locator("textarea:not(.salt-text)").first
    comfy.page.locator(".salt-raw").click()
    text.fill("0: a cat\n3 cut: a dog\n6: a bird\n9: a fish")
    blocks(comfy, 4)
    comfy.page.locator(".salt-block").nth(3).focus()
    comfy.page.keyboard.press("Delete")
    assert comfy.widget(SCHEDULE, "timeline") == "0: a cat\n3 cut: a dog\n6: a bird"
    assert comfy.page.evaluate("app.graph._nodes.length") == 1, "Delete took the prompt and left the node"


def test_every_theme_can_be_read(comfy):
    comfy.lone(SCHEDULE)
    contrast = """() => {
      const light = css => { const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        c.fillStyle = css; c.fillRect(0, 0, 1, 1); const p = c.getImageData(0, 0, 1, 1).data;
        const [r, g, b] = [...p].slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b };
      return [...document.querySelectorAll('.salt-block')].map(e => { const s = getComputedStyle(e);
        const [a, b] = [light(s.color), light(s.backgroundColor)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05) }) }"""
    found = {}
    for theme in ("dark", "light"):
        comfy.setting("Comfy.ColorPalette", theme)
        found[theme] = comfy.page.evaluate(contrast)
        if theme == "light":
            comfy.look_at(SCHEDULE)
            comfy.picture("timeline_light")
    print(found)
    comfy.setting("Comfy.ColorPalette", "dark")
    assert min(found["dark"] + found["light"]) >= 4.5, "WCAG AA"


@pytest.mark.parametrize("design", DESIGNS)
def test_drag_in_run_watch_cancel_and_run_again(comfy, page_server, design):
    comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])
    comfy.drop(template("tiny_text_to_video"))
    comfy.set_widget(ROLLOUT, "seed", SEEDS[design])
    comfy.look_at(ROLLOUT, "SaltDecode")
    comfy.picture(f"{design}_1_dropped")
    comfy.listen()
    node = comfy.page.evaluate("t => String(app.graph._nodes.find(n => n.type === t).id)", ROLLOUT)

    comfy.press_run()
    comfy.wait_for("preview", 2)
    shown = comfy.page.locator("img[src^='blob:']")
    shown.first.wait_for()
    comfy.picture(f"{design}_2_preview")
    comfy.wait_for("execution_success")
    order = comfy.page.evaluate("heard.map(e => e.name)")
    previews = comfy.heard("preview")
    assert {p["node"] for p in previews} == {node}
    assert len({p["digest"] for p in previews}) == len(previews) >= 3, "each is a longer clip"
    assert order.index("preview") < order.index("executed")
    undrawn = comfy.page.get_by_text("This version of Nodes 2.0 does not draw")
    if DESIGNS[design] and page_server.version < NEWER_PAGE:
        undrawn.first.wait_for()
        pytest.skip("this page draws no widget that a node gets while it runs, which it said")
    comfy.page.locator(".salt-memory").wait_for()
    memory = next(
        e["detail"]["output"]["salt_memory"][0] for e in comfy.heard("executed") if e["detail"]["node"] == node
    )
    assert memory["policy"] in comfy.page.locator(".salt-memory").get_attribute("title")
    assert "frames per second" in comfy.page.locator(".salt-report").inner_text()
    comfy.look_at(ROLLOUT, "SaltDecode")
    comfy.picture(f"{design}_3_done")
    comfy.until(MISPLACED, lambda found: not found)  # with its preview and its video

    comfy.set_widget(ROLLOUT, "seed", 200 + len(design))
    comfy.page.evaluate("heard.length = 0")
    comfy.press_run()
    comfy.wait_for("preview", 2)
    comfy.page.get_by_role("button", name="Cancel current run").click()
    comfy.wait_for("execution_interrupted")
    cut_short = len(comfy.heard("preview"))
    assert cut_short < len(previews) and comfy.heard("execution_success") == []
    comfy.picture(f"{design}_4_cancelled")

    comfy.page.evaluate("heard.length = 0")
    comfy.press_run()
    comfy.wait_for("execution_success")
    assert len(comfy.heard("preview")) == len(previews), "nothing of the cancelled run is left"
    assert undrawn.count() == 0
    assert "Salt:" not in page_server.log


def test_the_memory_bar_shows_what_a_window_forgets(comfy):
    comfy.drop(template("tiny_text_to_video"))
    comfy.page.evaluate(
        """kind => { const policy = LiteGraph.createNode('SaltMemoryPolicy'); app.graph.add(policy);
        const rollout = app.graph._nodes.find(n => n.type === kind);
        policy.pos = [rollout.pos[0] - 380, rollout.pos[1] + 330];
        policy.connect(0, rollout, rollout.inputs.findIndex(i => i.name === 'policy')) }""",
        ROLLOUT,
    )
    comfy.set_widget("SaltMemoryPolicy", "window", 9)
    comfy.listen()
    comfy.press_run()
    comfy.wait_for("execution_success")
    comfy.page.locator(".salt-memory").wait_for()
    kinds = comfy.page.evaluate(
        "[...document.querySelectorAll('.salt-slots .salt-segment')].map(e => e.className.split('-').at(-1))"
    )
    assert kinds == ["sink", "gone", "window", "next"]
    legend = comfy.page.locator(".salt-legend").inner_text().split("\n")
    assert legend == ["sink", "window", "forgotten", "next"]
    titles = comfy.page.evaluate("[...document.querySelectorAll('.salt-slots .salt-segment')].map(e => e.title)")
    assert "(latent frames 0–2)" in titles[0] and "(latent frames 15–20)" in titles[2]
    assert comfy.page.locator(".salt-bytes").inner_text().startswith("9 / 21 · ")
    comfy.look_at("SaltMemoryPolicy", ROLLOUT)
    comfy.picture("memory_bar")


def test_a_prompt_moved_by_mouse_changes_the_clip(comfy):
    """Told by the previews, which are exact pictures of the clip after every block; core's MP4s differ run by run.

    A run goes on from where it begins to differ from the one before: of 7 blocks, 5 are made anew.
    """
    comfy.drop(template("tiny_interactive_prompts"))
    comfy.look_at(SCHEDULE, ROLLOUT)
    comfy.listen()

    def run(times: int) -> list[str]:
        earlier = len(comfy.heard("preview"))
        comfy.press_run()
        comfy.wait_for("execution_success", times)
        return [preview["digest"] for preview in comfy.heard("preview")][earlier:]

    before, text = run(1), comfy.widget(SCHEDULE, "timeline")
    comfy.picture("prompts_1_before")
    comfy.drag(".salt-edge >> nth=1", -60)
    assert seconds_of(comfy.widget(SCHEDULE, "timeline")) == [0, 1.5] and seconds_of(text) == [0, 2.25]
    after = run(2)
    assert len(before) == 7 and len(after) == 5 and not set(after) & set(before), "from 1.5 s on"
    comfy.picture("prompts_2_after")
    comfy.set_widget(SCHEDULE, "timeline", text)
    comfy.set_widget(ROLLOUT, "seconds", 5.01)  # as many blocks, but not what ComfyUI has in its cache
    assert run(3) == before[2:], "the old text gives the old clip again"


@pytest.mark.parametrize("design", DESIGNS)
def test_a_schedule_goes_into_a_subgraph(comfy, design):
    comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])
    comfy.drop(template("tiny_interactive_prompts"))
    comfy.page.evaluate(
        """async kinds => { app.canvas.selectItems(app.graph._nodes.filter(n => kinds.includes(n.type)));
        await app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph') }""",
        [SCHEDULE, ROLLOUT],
    )
    comfy.until("app.graph._nodes.map(n => n.type)", lambda types: not {SCHEDULE, ROLLOUT} & set(types))


def test_every_edit_of_the_timeline_can_be_undone_by_itself(comfy):
    """Buttons, choices and keys change the text after the frontend has looked for them; it is made to look again."""
    comfy.drop(template("tiny_interactive_prompts"))
    comfy.look_at(SCHEDULE)
    text = "app.graph._nodes.find(n => n.type === 'SaltPromptSchedule').widgets.find(w => w.name === 'timeline').value"
    before = comfy.widget(SCHEDULE, "timeline")

    def undone(edit: Callable[[], object]) -> str:
        """The text that an edit makes; afterwards it is undone."""
        edits = comfy.page.evaluate(EDITS)
        edit()
        made = comfy.until(text, lambda now: now != before)
        comfy.until(EDITS, lambda number: number == edits + 1)
        comfy.page.evaluate("document.activeElement.blur()")
        comfy.page.keyboard.press("Control+z")
        comfy.until(text, lambda now: now == before)
        comfy.until(EDITS, lambda number: number == edits)
        comfy.page.wait_for_function(RESTORED)
        return made

    undone(lambda: comfy.page.locator(".salt-add").click())
    undone(lambda: comfy.page.locator(".salt-block >> nth=1").press("ArrowRight"))
    comfy.page.locator(".salt-block >> nth=1").click()
    assert "cut" in undone(lambda: comfy.page.locator(".salt-mode").select_option("cut"))


def test_what_a_node_has_shown_is_there_again_after_undo(comfy):
    comfy.drop(template("tiny_interactive_prompts"))
    comfy.set_widget(ROLLOUT, "seconds", 1.5)
    comfy.listen()
    comfy.press_run()
    comfy.wait_for("execution_success")
    kept = "document.querySelectorAll('.salt-kept').length"
    shown = comfy.until(kept, bool)
    comfy.look_at(SCHEDULE, ROLLOUT)
    before = comfy.page.evaluate(EDITS)
    comfy.page.locator(".salt-add").click()
    edits = comfy.until(EDITS, lambda number: number > before)
    comfy.page.evaluate("document.activeElement.blur()")
    comfy.page.keyboard.press("Control+z")
    comfy.until(EDITS, lambda number: number < edits)
    comfy.page.wait_for_function(RESTORED)
    comfy.until(kept, lambda found: found == shown)


def bars_in_subgraph(comfy: ComfyPage, expected: list[int]) -> None:
    """Wait until the rollouts in subgraphs of the shown workflow have so many memory bars each."""
    comfy.until(
        """() => [...app.rootGraph.subgraphs.values()].flatMap(g => g.nodes).filter(n => n.type === 'SaltRollout')
        .map(n => n.widgets.find(w => w.name === 'salt_kept')?.element.querySelectorAll('.salt-memory').length ?? 0)""",
        lambda found: found == expected,
    )


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("ends", ["shown", "behind another tab"])
def test_the_memory_bar_in_a_subgraph_survives_a_switch_of_tabs(comfy, design, ends):
    comfy.setting("Comfy.VueNodes.Enabled", DESIGNS[design])
    comfy.drop(template("tiny_text_to_video"))
    comfy.set_widget(ROLLOUT, "seconds", 1.5)
    comfy.set_widget(ROLLOUT, "seed", 300 + 10 * SEEDS[design] + len(ends))
    comfy.page.evaluate(
        """async kind => { app.canvas.selectItems(app.graph._nodes.filter(n => n.type === kind));
        await app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph') }""",
        ROLLOUT,
    )
    comfy.until("app.rootGraph.subgraphs.size", lambda found: found == 1)
    comfy.page.evaluate("app.canvas.setGraph([...app.rootGraph.subgraphs.values()][0])")
    comfy.listen()
    comfy.press_run()
    command = "async name => { await app.extensionManager.command.execute(name) }"
    if ends == "shown":
        comfy.wait_for("execution_success")
        bars_in_subgraph(comfy, [1])
    else:
        comfy.wait_for("execution_start")
    comfy.page.evaluate(command, "Comfy.NewBlankWorkflow")
    comfy.wait_for("execution_success")
    bars_in_subgraph(comfy, [])
    comfy.page.evaluate(command, "Workspace.PreviousOpenedWorkflow")
    bars_in_subgraph(comfy, [1])
    comfy.picture(f"subgraph_bar_{design}")


def test_the_pack_speaks_chinese(comfy):
    comfy.setting("Comfy.Locale", "zh")
    try:
        comfy.open()
        comfy.lone(SCHEDULE)
        name = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))[SCHEDULE][
            "display_name"
        ]
        assert comfy.page.evaluate("app.graph._nodes[0].title") == name
        words = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["salt"]
        assert comfy.page.locator(".salt-add").get_attribute("title") == words["add a prompt"]
        comfy.open_help(name)
        comfy.picture("help_zh")
    finally:
        comfy.setting("Comfy.Locale", "en")


def test_the_help_page_opens(comfy):
    comfy.lone(ROLLOUT)
    comfy.open_help("Salt Rollout")
    comfy.picture("help")
