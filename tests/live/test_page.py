"""The live page in a headless Chromium, used as a person would use it, on a stand-in for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from tests.live.mock_session import BLOCK, FPS, WORDS, MockServer, MockSession
from tests.live.page_driver import LivePage, wait

PROMPT = ".prompt-box textarea"


@pytest.fixture
def session() -> MockSession:
    return MockSession()


@pytest.fixture
def server(session: MockSession) -> Iterator[MockServer]:
    serving = MockServer(session)
    yield serving
    serving.stop()


@pytest.fixture
def live(browser: Any, server: MockServer) -> Iterator[LivePage]:
    page = LivePage(browser, server.url)
    yield page
    page.close()
    assert page.errors == []


def controls(session: MockSession, kind: str) -> list[dict]:
    return [message for message in session.heard if message.get("control") == kind]


def test_it_plays_and_tells_what_it_played(live, session, server):
    live.shows(".pill", "Live")
    wait(lambda: session.played >= 2 * BLOCK, live)
    frame = live.run("document.querySelector('.time').textContent")
    assert frame.startswith("0:0")
    wait(
        lambda: 8 <= sum(r > 200 and g < 100 for r, g, b in live.row()) <= 18, live
    )  # the square, unless it is leaving the picture
    told = [message for message in session.heard if message["type"] == "played"]
    assert [m["frame"] for m in told] == sorted(m["frame"] for m in told)
    assert live.text("[data-figure=made]") == "48.0 fps"
    assert int(live.text("[data-figure=drops]")) <= 2  # a machine that is busy as the page opens may drop a frame
    assert {url.split("/salt/")[0] for url in live.requests if not url.startswith("blob:")} == {
        server.url.split("/salt/")[0]
    }


def test_a_typed_prompt_is_sent_with_its_blend_and_timed_to_the_screen(live, session):
    live.shows(".pill", "Live")
    live.page.get_by_role("button", name="Blend").click()
    live.page.get_by_label("Blocks").fill("2")
    live.page.get_by_label("Way").select_option("slerp")
    live.page.locator(PROMPT).fill("a fast blue square moving up")
    live.press("Enter")
    live.shows(".receipts", "on screen after")
    live.until("() => /^[0-9.]+ s$/.test(document.querySelector('[data-figure=latency]').textContent)")
    (sent,) = controls(session, "prompt")
    assert sent["prompts"] == [{"text": "a fast blue square moving up", "weight": 1}]
    assert (sent["switch"], sent["blend"], sent["keep_sink"]) == ("keep", {"blocks": 2, "method": "slerp"}, False)
    live.shows(".spans", "a fast blue square moving up")


def test_several_prompts_have_shares(live, session):
    live.shows(".pill", "Live")
    live.page.get_by_role("button", name="Mix in a prompt").click()
    live.page.keyboard.type("a fast green circle moving left")
    live.page.get_by_label("Weight of prompt 2").fill("0.25")
    live.page.get_by_role("button", name="Recache").click()
    live.page.get_by_label("Leave the sink as it is").check()
    live.page.get_by_role("button", name="Send").click()
    wait(lambda: controls(session, "prompt"), live)
    (sent,) = controls(session, "prompt")
    assert [p["text"] for p in sent["prompts"]] == ["a slow red circle moving right", "a fast green circle moving left"]
    assert [p["weight"] for p in sent["prompts"]] == [0.8, 0.2]
    assert (sent["switch"], sent["keep_sink"], sent["blend"]["blocks"]) == ("recache", True, 0)


def test_arrow_keys_steer_and_pickers_choose(live, session):
    live.shows(".pill", "Live")
    live.press("ArrowUp", "q", "c", "o")
    live.page.get_by_role("button", name="purple").click()
    wait(lambda: len(controls(session, "prompt")) == 5, live)
    assert [sent["prompts"][0]["text"] for sent in controls(session, "prompt")] == [
        "a slow red circle moving up",
        "a fast red circle moving up",
        "a fast yellow circle moving up",
        "a fast yellow square moving up",
        "a fast purple square moving up",
    ]
    live.page.locator(PROMPT).focus()
    live.press("ArrowLeft", "b", "Escape")
    assert len(session.heard) and len(controls(session, "prompt")) == 5, "keys in the field write"


def test_a_model_that_takes_any_text_has_no_pickers(browser, server, session):
    session.words = []
    page = LivePage(browser, server.url)
    page.shows(".pill", "Live")
    page.press("ArrowUp")
    assert not page.page.locator(".pickers").is_visible() and not page.page.locator(".arrows").is_visible()
    assert not controls(session, "prompt")
    page.close()
    session.words = list(WORDS)


def test_a_click_in_the_strip_rewinds_and_with_shift_forks(live, session):
    live.until("() => document.querySelectorAll('.thumbnails img').length >= 5")
    track = live.page.locator(".track").first
    track.click(position={"x": 56 * 2.5, "y": 20})
    wait(lambda: session.generation == 1, live)
    assert controls(session, "rewind")[0]["seconds"] == 2 * BLOCK / FPS
    live.shows(".receipts", "Rewind: from 0:00.5 on, on screen after")
    live.until("() => document.querySelectorAll('.thumbnails img').length >= 4")
    track.click(position={"x": 56 * 1.5, "y": 20}, modifiers=["Shift"])
    live.until("() => document.querySelectorAll('.strip-row').length === 2")
    live.until("() => document.querySelector('[data-current=true] .branch-go').textContent === '1'")
    assert controls(session, "fork")[0]["seconds"] == BLOCK / FPS
    wait(lambda: session.branches[1].frames >= 3 * BLOCK, live)
    live.page.get_by_role("button", name="Go on at the end of branch 0").click()
    wait(lambda: controls(session, "goto") and session.branch == 0, live)
    assert "seconds" not in controls(session, "goto")[0]
    live.page.get_by_role("button", name="new branch").click()
    live.page.locator(".strip-row >> nth=1").locator(".track").click(position={"x": 56 * 1.5, "y": 20})
    wait(lambda: len(session.branches) == 3, live)
    assert session.branches[2].parent == 1 and session.branches[2].fork_frame == BLOCK, "of the branch clicked on"


def test_the_strip_by_keyboard_and_bookmarks(live, session):
    live.until("() => document.querySelectorAll('.thumbnails img').length >= 4")
    live.press("b")
    live.page.locator(".flag").first.wait_for()
    live.press("t", "Home", "ArrowRight")
    assert live.run("document.activeElement.ariaValueText") == "0:00.3, a slow red circle moving right"
    live.press("Enter")
    wait(lambda: controls(session, "rewind"), live)
    assert controls(session, "rewind")[0]["seconds"] == BLOCK / FPS
    assert not controls(session, "prompt"), "arrow keys in the strip do not steer"
    live.press("g")
    wait(lambda: controls(session, "goto"), live)
    assert controls(session, "goto")[0]["bookmark"] == 1


def test_pause_halts_at_once_then_step_then_stop(live, session):
    live.until("() => document.querySelectorAll('.thumbnails img').length >= 2")
    live.press(" ")
    live.shows(".pill", "Paused")
    frame = live.text(".time")
    live.page.wait_for_timeout(150)
    assert live.text(".time") == frame, "what is queued is not played out"
    made = session.index
    live.press(".")
    wait(lambda: session.index == made + BLOCK, live)
    live.until("f => document.querySelector('.time').textContent !== f", frame)
    live.press("Shift+S")
    live.shows(".pill", "Stopped; the clip is kept")
    assert live.page.get_by_role("button", name="Stop and keep").is_disabled()
    with live.page.expect_download() as download:
        live.press("v")
    assert download.value.suggested_filename == "salt-live.mp4"
    assert download.value.path().read_bytes() == b"recording.mp4 of the mock session"
    with live.page.expect_download() as download:
        live.press("j")
    assert download.value.path().read_bytes() == b"replay.json of the mock session"


def test_further_settings(live, session):
    live.shows(".pill", "Live")
    live.press("m")
    settings = live.page.locator(".settings")
    settings.get_by_label("Seed").fill("7")
    live.press("Enter")
    settings.get_by_label("Memory policy").fill("window:12")
    live.press("Enter")
    settings.get_by_role("button", name="8", exact=True).click()
    settings.get_by_role("button", name="as fast as it can").click()
    wait(lambda: controls(session, "pace"), live)
    sent = [{m["control"]: m[m["control"]]} for m in session.heard if m["type"] == "control"]
    assert sent == [{"seed": 7}, {"policy": "window:12"}, {"nfe": 8}, {"pace": "free"}]
    live.until("() => document.querySelector('.settings [aria-pressed=true]').textContent === '8'")


def test_loras_have_sliders_where_some_are_loaded(live, session):
    assert live.page.locator(".loras").is_hidden()
    session.settings["loras"] = [{"name": "ink", "strength": 0.5}, {"name": "clay", "strength": 0}]
    live.until("() => document.querySelectorAll('.loras [data-lora]').length === 2")
    slider = live.page.locator("[data-lora=clay] input[type=range]")
    assert [live.page.locator("[data-lora=ink] input").nth(i).input_value() for i in (0, 1)] == ["0.5", "0.5"]
    live.page.locator(".loras input[type=checkbox]").check()
    slider.focus()
    live.press("ArrowRight")
    wait(lambda: [m for m in session.heard if m.get("control") == "lora"], live)
    sent = [m for m in session.heard if m.get("control") == "lora"][-1]
    assert sent["adapters"] == [{"name": "ink", "strength": 0.5}, {"name": "clay", "strength": 0.05}]
    assert sent["recache"] is True
    live.until("() => document.querySelector('[data-lora=clay] input[type=number]').value === '0.05'")


def test_what_the_server_says_is_text(live, session):
    live.shows(".pill", "Live")
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    live.page.locator(PROMPT).fill(evil)
    live.press("Enter")
    live.shows(".spans", evil)
    live.page.locator(PROMPT).fill("an elephant")
    live.press("Enter")
    live.shows(".receipts", "<b>salt-tiny</b>")
    assert live.page.locator("main b, main img[src=x]").count() == 0


def test_it_connects_again_and_says_so(live, session, server):
    wait(lambda: session.played > 0, live)
    session.refuse = True
    server.do(session.drop_sockets())
    live.shows(".pill", "Connection lost. Next try in")
    assert live.page.get_by_role("button", name="Pause").is_disabled()
    session.refuse = False
    live.page.get_by_role("button", name="Try now").click()
    live.shows(".pill", "Live")
    played = session.played
    wait(lambda: session.played > played + BLOCK, live)
    hellos = [message for message in session.heard if message["type"] == "hello"]
    assert hellos == [{"type": "hello"}, {"type": "hello", "after": 0}]
    live.errors[:] = [error for error in live.errors if "WebSocket" not in error]  # Chromium's own line


def test_a_viewer_who_does_not_steer_watches_and_asks(browser, server, session):
    session.steering = False
    page = LivePage(browser, server.url)
    page.shows(".steering", "You watch")
    assert page.page.get_by_role("button", name="Send").is_disabled()
    page.press("ArrowUp", " ")
    page.page.get_by_role("button", name="Ask to steer").click()
    page.shows(".steering", "You steer")
    assert not [message for message in session.heard if message["type"] == "control"]
    assert page.page.get_by_role("button", name="Send").is_enabled()
    page.close()


def test_the_page_in_chinese_and_back(browser, server):
    page = LivePage(browser, server.url, locale="zh-CN")
    page.shows(".pill", "直播中")
    page.press("?")
    page.shows("dialog", "控制物体方向")
    page.press("Escape", "l")
    page.shows(".pill", "Live")
    assert page.run("document.documentElement.lang") == "en"
    page.press("?")
    assert page.page.locator("dialog dt").count() == 22
    page.close()


def test_nothing_is_wider_than_a_phone(browser, server):
    page = LivePage(browser, server.url, viewport={"width": 400, "height": 800}, has_touch=True)
    page.until("() => document.querySelectorAll('.thumbnails img').length >= 8")
    page.press("m", "4")
    page.page.get_by_role("button", name="Mix in a prompt").click()
    assert page.run("document.documentElement.scrollWidth") <= 400
    beyond = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.strip-rows') && e.offsetParent
      && (e.getBoundingClientRect().right > 400.5 || e.getBoundingClientRect().left < 0)).map(e => e.outerHTML)"""
    assert page.run(beyond) == []
    page.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing_serious(browser, server, scheme):
    axe = os.environ.get("AXE_SCRIPT")
    if not axe:
        pytest.skip("AXE_SCRIPT is not set: axe.min.js of the npm package axe-core")
    found: dict[str, list] = {}
    for width in (400, 1280):
        page = LivePage(browser, server.url, color_scheme=scheme, viewport={"width": width, "height": 800})
        page.until("() => document.querySelectorAll('.thumbnails img').length >= 3")
        page.press("b", "f", "m", "3")
        page.page.locator(".flag").first.wait_for()
        page.until("() => document.querySelectorAll('.strip-row').length >= 2")
        for state in ("open", "help"):
            page.run(Path(axe).read_text() + ";0")
            answer = page.run("async () => await axe.run(document, {iframes: false})")
            found[f"{width} {state}"] = [
                (v["id"], v["impact"], [(n["html"][:150], n["failureSummary"][:300]) for n in v["nodes"]])
                for v in answer["violations"]
            ]
            print(scheme, width, state, len(answer["passes"]), "rules passed", found[f"{width} {state}"])
            page.press("?")
        page.close()
    serious = [v for violations in found.values() for v in violations if v[1] in ("serious", "critical")]
    assert serious == []
