"""The front end's own modules in a real browser, without ComfyUI: text, blocks, keys and memory segments."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from salt.conditioning import parse_timeline
from tests.helpers.comfyui_page import bare_page, chromium

READ = "async text => (await import('/timeline_text.js')).parse(text)"
LINES = [
    "0: a cat",
    "a cat",
    "  a cat  \n\n 2.5 recache:  a dog \r\n4s CUT : a bird: at night",
    "0: a\n.5: b\n1. keep: c",
    "0: a\n2 shot: b\n3s shot: c\n4 s SHOT: d\n5s: e",
    "0 cut: a\n\u20285 recache: b",
    "",
    "0: a\nb",
    "0: a\n2 forget: b",
    "0: a\n2 cut:   ",
    "0: a\n3: b\n3: c",
    "1: a",
    "0: a\n-1: b",
]


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium() as browser, bare_page(browser) as page:
        yield page


@pytest.mark.parametrize("text", LINES)
def test_the_page_reads_a_timeline_as_the_engine_does(page, text):
    found = page.evaluate(READ, text)
    try:
        expected = [[p.seconds, p.switch, p.text] for p in parse_timeline(text)]
    except ValueError as error:
        assert f"line {found['error']['line']}:" in str(error) or "found no prompt" in str(error)
        return
    assert [[c["seconds"], c["mode"], c["text"]] for c in found["changes"]] == expected
    again = page.evaluate(
        "async text => { const t = await import('/timeline_text.js'); return t.format(t.parse(text).changes) }", text
    )
    assert [[p.seconds, p.switch, p.text] for p in parse_timeline(again)] == expected


@pytest.mark.parametrize(
    ("call", "seconds"),
    [
        ("moveStart(c, 1, 3)", [0, 3, 4, 8]),
        ("moveStart(c, 1, 9)", [0, 3.75, 4, 8]),
        ("moveStart(c, 1, -5)", [0, 0.25, 4, 8]),
        ("moveStart(c, 0, 2)", [0, 2, 4, 8]),
        ("moveStart(c, 3, 100)", [0, 2, 4, 100]),
        ("moveBlock(c, 1, 3)", [0, 3, 5, 8]),
        ("moveBlock(c, 1, 99)", [0, 5.75, 7.75, 8]),
        ("moveBlock(c, 3, 6)", [0, 2, 4, 6]),
        ("split(c, 1, 10)", [0, 2, 3, 4, 8]),
        ("split(c, 3, 10)", [0, 2, 4, 8, 9]),
        ("split(c, 2, 8, 6, 0.75)", [0, 2, 4, 5, 8]),
        ("split(c, 2, 8, 6, 1.5)", [0, 2, 4, 4.5, 8]),
        ("split(c, t.roomiest(c, 3, 6, 0.75), 10, 6, 0.75)", [0, 1, 2, 4, 8]),
        ("split(c, t.roomiest(c, 2, 5, 0.75), 10, 5, 0.75)", [0, 2, 4, 4.25, 8]),
        ("split(c, t.roomiest(c, 2, 5, 1), 10, 5, 1)", [0, 1, 2, 4, 8]),
        ("split(c, t.roomiest(c, 0, 0.5, 0.75), 10, 0.5, 0.75)", [0, 1, 2, 4, 8]),
        ("remove(c, 0)", [0, 4, 8]),
        ("remove(c, 2)", [0, 2, 8]),
        ("setText(c, 1, '  ')", [0, 2, 4, 8]),
    ],
)
def test_changes_stay_in_order_and_the_first_at_zero(page, call, seconds):
    found = page.evaluate(
        f"""async () => {{ const t = await import('/timeline_text.js');
        const c = t.parse("0: a\\n2 cut: b\\n4: c\\n8 recache: d").changes;
        const made = t.{call}; return [made.map(x => x.seconds), t.format(made), t.format(c)] }}"""
    )
    assert found[0] == seconds
    assert [p.seconds for p in parse_timeline(found[1])] == seconds
    assert found[2] == "0: a\n2 cut: b\n4: c\n8 recache: d", "an operation gives a new list"


BLOCKS = """async () => {
  const { blockSeconds, clipSeconds } = await import('/clip_timing.js');
  const asked = [], known = { 'longlive2.safetensors': { frames_per_block: 8, latent_seconds: 1 / 6 } };
  const ask = question => { asked.push(question); return Promise.resolve({ timing: known[question.file] ?? null }) };
  const node = (widgets, model) => ({ graph: {}, inputs: [{ name: 'model', type: 'MODEL' }], getInputNode: () => model,
    widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })) });
  const found = [];
  for (const [file, own] of [['longlive2.safetensors', 0], ['longlive2.safetensors', 3], ['unknown.pt', 0], ['', 6]]) {
    const loader = file ? node({ student: file, trained_as: 'auto' }) : null;
    const rollout = node({ seconds: 5, frames_per_block: own }, node({ strength: 1 }, loader));
    const schedule = { graph: {}, getOutputNodes: () => [rollout] };
    const before = blockSeconds(schedule, ask);
    await 0; await 0;
    found.push([before, blockSeconds(schedule, ask), clipSeconds(schedule)]);
  }
  return [found, asked] }"""


def test_blocks_are_those_of_the_student_behind_a_lora_and_the_nodes_own_where_set(page):
    found, asked = page.evaluate(BLOCKS)
    known, own, unknown, without = found
    assert known == [0.75, pytest.approx(8 / 6), 5], "not known until the server has answered"
    assert own == [0.5, 0.5, 5] and unknown == [0.75, 0.75, 5] and without == [1.5, 1.5, 5]
    files = ["longlive2.safetensors", "unknown.pt"]
    assert asked == [{"file": file, "trained_as": "auto"} for file in files], "each once"


SHOW = """async ([text, clip]) => {
  const { timelineView } = await import('/timeline.js');
  window.text = text; window.locked = false;
  document.body.style.width = '500px';
  window.view = timelineView({ read: () => window.text, write: (t) => { window.text = t }, clip: () => clip,
    block: () => 0.75, locked: () => window.locked, showText: (wanted) => wanted, word: (w) => w });
  document.body.replaceChildren(view.element);
}"""


def show(page: Any, text: str, clip: float = 0) -> None:
    page.evaluate(SHOW, [text, clip])


def test_the_timeline_is_usable_by_keyboard_alone(page):
    show(page, "0: a\n2: b\n4 cut: c", 10)
    block = page.locator(".salt-block").nth(1)
    block.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate("text") == "0: a\n2.5: b\n4.25 cut: c"
    page.keyboard.press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("a dog ")
    assert page.evaluate("text") == "0: a\n2.5: a dog\n4.25 cut: c"
    page.get_by_role("combobox", name="what the memory does there").select_option("recache")
    seconds = page.get_by_role("spinbutton", name="second at which it begins")
    seconds.fill("3")
    seconds.press("Tab")
    assert page.evaluate("text") == "0: a\n3 recache: a dog\n4.25 cut: c"
    block.focus()
    page.keyboard.press("Delete")
    assert page.evaluate("text") == "0: a\n4.25 cut: c"


def test_prompts_are_added_and_removed_and_the_last_one_stays(page):
    show(page, "0: a", 8)
    page.get_by_role("button", name="add a prompt").click()
    assert page.evaluate("text") == "0: a\n4 recache: a"
    page.keyboard.type("b")
    assert page.evaluate("text") == "0: a\n4 recache: b", "its words are selected, to be typed over"
    page.get_by_role("button", name="remove this prompt").click()
    assert page.evaluate("text") == "0: a"
    assert page.get_by_role("button", name="remove this prompt").is_disabled()


def test_a_text_that_cannot_be_read_is_left_alone(page):
    show(page, "0: a\n5 jump: b")
    words = "keep, recache, cut, shot, recache-sink"
    assert page.get_by_role("status").inner_text() == f'line 2: found "jump", expected {words}'
    assert page.get_by_role("button", name="add a prompt").is_disabled()
    page.evaluate("window.text = '0: a\\n5 cut: b'; view.refresh()")
    assert page.locator(".salt-block").count() == 2 and page.get_by_role("status").inner_text() == ""
    page.evaluate("window.locked = true; view.refresh()")
    assert page.get_by_role("status").inner_text() == "the text comes from a link"
    assert page.locator(".salt-block").first.is_disabled()


def test_what_is_written_in_a_prompt_is_never_markup(page):
    show(page, "0: <img src=x onerror=alert(1)>")
    assert page.locator(".salt-block").inner_text() == "<img src=x onerror=alert(1)>"
    assert page.locator("img").count() == 0


def test_segments_of_a_memory(page):
    memory = {"policy": "sink:3 window:6", "held": [0, 1, 2, 9, 10, 11], "sink": 3, "window": 6, "next_frame": 12}
    memory |= {"bytes": 25_165_824, "layers": 30}
    found = page.evaluate(
        """async memory => { const m = await import('/memory_bar.js');
        const bar = m.memoryBar(memory, w => w); document.body.replaceChildren(bar);
        return [m.segments(memory).map(s => [s.kind, s.first, s.last]), bar.innerText, bar.title] }""",
        memory,
    )
    assert found[0] == [["sink", 0, 2], ["gone", 3, 8], ["window", 9, 11], ["next", 12, 12]]
    assert "6 / 12 · 25.2 MB" in found[1]
    assert "sink:3 window:6" in found[2] and "0–2, 9–11" in found[2]
    whole = memory | {"held": [0, 1, 2, 3, 4, 5], "next_frame": 6}
    found = page.evaluate("async m => (await import('/memory_bar.js')).segments(m)", whole)
    assert [(s["kind"], s["frames"]) for s in found] == [("sink", 3), ("window", 3), ("next", 1)]
    sizes = "async bytes => { const m = await import('/memory_bar.js'); return bytes.map(m.size) }"
    assert page.evaluate(sizes, [0, 999, 1000, 123_456_789, 4.2e9]) == ["0 B", "999 B", "1.00 kB", "123 MB", "4.20 GB"]
    empty = json.loads(json.dumps(memory | {"held": [], "next_frame": 0, "bytes": 0}))
    drawn = "async m => (await import('/memory_bar.js')).segments(m)"
    assert [s["kind"] for s in page.evaluate(drawn, empty)] == ["next"]
