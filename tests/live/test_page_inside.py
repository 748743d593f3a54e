"""The compact view of a session inside another page: its size, its colours, and a zoom around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from tests.live.mock_session import BLOCK, FPS, MockServer, MockSession
from tests.live.page_driver import LivePage, wait

SHOW = """async ([socket, width, scheme]) => {
  const { LiveView } = await import('./static/view.js');
  const box = document.createElement('div');
  box.id = 'inside';
  Object.assign(box.style, { width: `${width}px`, colorScheme: scheme, position: 'fixed', top: 0, left: 0, zIndex: 9,
    transform: 'scale(0.5)', transformOrigin: '0 0' });
  document.body.append(box);
  window.view = new LiveView(box, socket, { compact: true });
}"""
BEYOND = """() => { const { right } = document.querySelector('#inside').getBoundingClientRect();
  return [...document.querySelectorAll('#inside *')].filter(e => !e.closest('.strip-rows') && e.offsetParent
    && e.getBoundingClientRect().right > right + 0.5).map(e => e.outerHTML.slice(0, 200)) }"""


@pytest.fixture
def session() -> MockSession:
    return MockSession()


@pytest.fixture
def inside(browser: Any, session: MockSession) -> Iterator[LivePage]:
    """A compact view of 520 pixels that must be dark on a page that is light, drawn at half its size."""
    server = MockServer(session)
    page = LivePage(browser, server.url, color_scheme="light")
    page.shows(".pill", "Live")
    socket = server.url.replace("http", "ws") + "ws?session=mock-session"
    page.run(SHOW, [socket, 520, "dark"])
    page.shows("#inside .pill", "Live")
    page.until("() => view.player.last !== null")
    yield page
    page.close()
    server.stop()
    assert page.errors == []


def test_it_is_shown_and_taken_away(inside, session):
    assert inside.page.locator("#inside .figures").count() == 0
    assert inside.page.locator("#inside .status a").get_attribute("href").endswith("?session=mock-session")
    inside.run("view.destroy()")
    wait(lambda: len(session.sockets) == 1, inside)
    assert inside.run("document.querySelector('#inside').children.length") == 0


def test_it_fits_a_node(inside):
    for how in ("Recache", "Blend"):
        inside.page.locator("#inside").get_by_role("button", name=how, exact=True).click()
        assert inside.run(BEYOND) == [], how


def test_its_colours_are_those_of_the_page_around_it(inside):
    color = "e => getComputedStyle(document.querySelector(e)).backgroundColor"
    assert inside.run(color, "#inside") == "rgb(16, 22, 30)"
    assert inside.run(color, "main.salt-live") == "rgb(243, 245, 248)"


def test_a_click_in_the_strip_counts_with_the_zoom(inside, session):
    inside.until("frames => view.strip.rows.get(0)?.branch.frames >= frames", 6 * BLOCK)
    inside.run("view.act('pause')")
    inside.shows("#inside .pill", "Paused")
    inside.page.locator("#inside .track").click(position={"x": 56 * 4.5 * 0.5, "y": 8})
    wait(lambda: any(m.get("control") == "rewind" for m in session.heard), inside)
    (sent,) = [m for m in session.heard if m.get("control") == "rewind"]
    assert sent["seconds"] == 4 * BLOCK / FPS
