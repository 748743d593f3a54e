"""The live page's modules without a page around them: playback, messages, words, the strip's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.page_driver import chromium

PAGE = Path(__file__).parents[2] / "salt" / "live" / "page"


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Any]]:
    """`run(module, body, argument)`: what `body`, JavaScript with the module as `m` and `argument` as `a`, returns."""
    with chromium() as browser:
        page = browser.new_page()

        def serve(route: Any) -> None:
            path = PAGE / route.request.url.rsplit("/", 1)[-1]
            if path.suffix == ".js":
                route.fulfill(body=path.read_text(), content_type="text/javascript")
            else:
                route.fulfill(body="<!doctype html>", content_type="text/html")

        page.route("http://salt.test/**", serve)
        page.goto("http://salt.test/")
        yield lambda module, body, argument=None: page.evaluate(
            f"async a => {{ const m = await import('./{module}.js'); {body} }}", argument
        )


# A controller at 16 frames a second in blocks of 12, `frames(first, count, extra)`, and `play(from, until)`: what a
# screen of 60 Hz shows, [milliseconds, frame].
PLAYBACK = """
  const gone = [], c = new m.PlaybackController({fps: 16, framesPerBlock: 12, discard: f => gone.push(f.frame)});
  const frames = (first, count, extra = {}) => Array.from({length: count},
    (_, i) => ({generation: 0, branch: 0, frame: first + i, index: first + i, ...extra}));
  const play = (from, until, expecting = true, step = 1000 / 60) => { const shown = [];
    for (let now = from; now < until; now += step) { const f = c.next(now, expecting);
      if (f) shown.push([now, f.frame]) } return shown };
"""


def test_a_block_plays_at_the_clips_rate_and_the_last_part_slower(run):
    shown = run("playback", PLAYBACK + "c.push(frames(0, 12), 0); return play(0, 1500, true, 1)")
    assert [frame for _, frame in shown] == list(range(12))
    times = [time for time, _ in shown]
    assert (times[5] - times[0]) / 5 == pytest.approx(62.5, abs=0.3), "the lead is above its target"
    assert 187.5 * 1.03 < times[11] - times[8] <= 187.5 / 0.92 + 1, "with the lead nearly used up, at most 8 % slower"


def test_the_rate_stays_in_its_range_and_a_surplus_is_played_off(run):
    body = """
      const rates = []; let at = 0;
      c.push(frames(0, 12), 0); c.next(0);
      c.push(frames(12, 24), 1);  // 35 frames queued
      c.push(frames(36, 12), 2);
      for (let now = 2; c.queue.length > 0; now += 10) { if (c.next(now)) rates.push(c.rate) }
      return [Math.max(...rates), Math.min(...rates), rates.findLast(r => true), rates[20], c.dropped]"""
    most, least, last, _, dropped = run("playback", PLAYBACK + body)
    assert 1.05 < most <= 1.12
    assert 0.92 <= least < 0.95 and last == least
    assert dropped == 0


@pytest.mark.parametrize(("block_ms", "target"), [(750, 337.5), (200, 180), (3000, 360)])
def test_the_lead_follows_the_block(run, block_ms, target):
    assert run("playback", "return m.leadTarget(a)", block_ms) == pytest.approx(target)


def test_after_a_control_old_frames_are_dropped_but_three(run):
    body = """
      c.push(frames(0, 12), 0); c.next(0);
      c.applied({generation: 0, frame: 12});
      const before = c.queue.length;  // its frames are not here yet: nothing is dropped
      c.push(frames(12, 12), 10);
      return [before, c.queue.map(f => f.frame), gone, c.dropped]"""
    before, queued, gone, dropped = run("playback", PLAYBACK + body)
    assert before == 11
    assert queued == [9, 10, 11, *range(12, 24)]
    assert gone == list(range(1, 9)) and dropped == 8


def test_at_a_higher_rate_the_time_counts(run):
    body = """
      const c = new m.PlaybackController({fps: 30, framesPerBlock: 12});
      c.push(Array.from({length: 24}, (_, i) => ({generation: 0, frame: i, index: i})), 0);
      c.applied({generation: 0, frame: 12});
      return c.queue.map(f => f.frame)"""
    assert run("playback", body)[0] == 7, "180 ms are 5 frames"


def test_a_newer_generation_drops_all_older_frames_and_those_that_still_come(run):
    body = """
      c.push(frames(0, 12), 0); c.next(0);
      c.push(frames(4, 12, {generation: 1}).map((f, i) => ({...f, index: 12 + i})), 10);
      const queued = c.queue.length;
      c.push(frames(12, 12), 20);  // the old generation's block was under way
      c.applied({generation: 0, frame: 12});
      return [queued, c.queue.length, c.queue[0].generation, c.dropped, c.next(30).frame]"""
    assert run("playback", PLAYBACK + body) == [12, 12, 1, 11 + 12, 4]


def test_a_long_queue_is_cut_to_its_newest(run):
    body = "c.push(frames(0, 49), 0); return [c.queue[0].frame, c.queue.at(-1).frame, c.dropped]"
    first, last, dropped = run("playback", PLAYBACK + body)
    assert last == 48 and first == dropped == 49 - 17, "337.5 ms and a block are 17 frames"


def test_frames_sent_again_after_a_reconnect_are_no_new_ones(run):
    body = "c.push(frames(0, 12), 0); c.push(frames(6, 12), 5); return [c.queue.map(f => f.frame), c.dropped]"
    assert run("playback", PLAYBACK + body) == [list(range(18)), 0]


def test_an_empty_queue_is_an_underrun_only_while_frames_are_expected(run):
    body = "c.push(frames(0, 12), 0); play(0, 2000, a); return c.underruns"
    assert run("playback", PLAYBACK + body, True) == 1
    assert run("playback", PLAYBACK + body, False) == 0


def test_few_frames_wait_for_a_lead_but_not_for_ever(run):
    shown = run("playback", PLAYBACK + "c.push(frames(0, 2), 0); return play(0, 1000)")
    assert shown[0][0] >= 337 and [frame for _, frame in shown] == [0, 1]


def test_a_page_that_was_not_drawn_goes_on_with_the_present(run):
    body = "c.push(frames(0, 12), 0); c.next(0); return [c.next(500).frame, c.dropped]"
    assert run("playback", PLAYBACK + body) == [7, 6]


def test_a_pause_keeps_the_queue(run):
    body = "c.push(frames(0, 12), 0); c.next(0); c.pause(); return [c.next(9000).frame, c.queue.length, c.dropped]"
    assert run("playback", PLAYBACK + body) == [1, 10, 0]


MESSAGE = """
  const bytes = new Uint8Array(32 + 4 + 3 + 4 + 2), view = new DataView(bytes.buffer);
  [..."SLF1"].forEach((letter, i) => bytes[i] = letter.charCodeAt(0));
  [1, 2, 3, 4, 5, 6].forEach((n, i) => view.setUint32(4 + 4 * i, n, true));
  view.setUint16(28, 2, true); bytes[30] = 1; bytes[31] = 1;
  view.setUint32(32, 3, true); bytes.set([7, 8, 9], 36); view.setUint32(39, 2, true); bytes.set([10, 11], 43);
"""


def test_a_frame_message_is_read(run):
    body = """const {images, ...header} = m.parseFrames(bytes.buffer);
      return [header, await Promise.all(images.map(async i => [...new Uint8Array(await i.arrayBuffer()), i.type]))]"""
    header, images = run("protocol", MESSAGE + body)
    assert header == dict(generation=1, branch=2, block=3, event=4, frame=5, index=6, cutover=True)
    assert images == [[7, 8, 9, "image/jpeg"], [10, 11, "image/jpeg"]]


@pytest.mark.parametrize(
    "damage", ["bytes[0] = 0", "bytes[30] = 9", "view.setUint32(39, 3, true)", "view.setUint16(28, 3, true)"]
)
def test_a_damaged_frame_message_is_a_range_error(run, damage):
    body = f"{damage}; try {{ m.parseFrames(bytes.buffer) }} catch (e) {{ return e.name }}"
    assert run("protocol", MESSAGE + body) == "RangeError"


def test_tries_to_connect_grow_apart(run):
    assert run("protocol", "return [0, 1, 2, 5, 99].map(n => m.backoff(n, 0))") == [500, 1000, 2000, 10_000, 10_000]
    assert run("protocol", "return m.backoff(0, 1)") == 375


WORDS = "a moving slow fast red yellow green cyan blue purple circle square triangle right down left up"


def test_arrow_keys_replace_the_direction_word(run):
    body = "return m.withWord(a, 'direction', m.directionOf('ArrowUp'))"
    assert run("words", body, "A slow red circle moving right.") == "a slow red circle moving up"
    assert run("words", body, "") == "a slow red circle moving up"
    assert run("words", "return m.withWord(a, 'colour', 'blue')", "a fast red square moving left") == (
        "a fast blue square moving left"
    )


def test_pickers_need_a_model_with_these_words(run):
    assert run("words", "return Object.keys(m.groupsOf(a))", WORDS.split()) == ["speed", "colour", "shape", "direction"]
    assert run("words", "return m.groupsOf(a)", []) is None
    assert run("words", "return m.groupsOf(a)", ["slow", "fast", "red", "circle"]) is None


def test_a_strip_of_any_length_has_few_thumbnails(run):
    body = """return [12, 575, 577, 28800].map(frames => { const blocks = m.blocksPerThumbnail(frames, 12);
      return [blocks, m.thumbnailFrames({fork_frame: 0, frames}, blocks * 12).length] })"""
    assert run("strip_layout", body) == [[1, 1], [1, 48], [2, 25], [64, 38]]
    own = "return m.thumbnailFrames({fork_frame: 30, frames: 72}, 12)"
    assert run("strip_layout", own) == [36, 48, 60], "a branch shows what its parent has not"


def test_prompts_lie_beneath_the_branch_they_belong_to(run):
    branch = {"fork_frame": 24, "frames": 60, "prompts": []}
    branch["prompts"] = [{"frame": f, "text": text} for f, text in ((0, "a"), (36, "b"), (36, "c"))]
    spans = run("strip_layout", "return m.promptSpans(a)", branch)
    assert spans == [{"frame": 24, "end": 36, "text": "a"}, {"frame": 36, "end": 60, "text": "b + c"}]


def test_children_come_below_their_parents(run):
    branches = [dict(id=0, parent=None), dict(id=1, parent=0), dict(id=2, parent=0), dict(id=3, parent=1)]
    body = "return m.ordered(a).map(({branch, depth}) => [branch.id, depth])"
    assert run("strip_layout", body, branches) == [[0, 0], [1, 1], [3, 2], [2, 1]]


def test_both_languages_have_the_same_texts(run):
    english = run("text_en", "return m.EN")
    chinese = run("text_zh", "return m.ZH")
    assert english.keys() == chinese.keys()
    for key, said in english.items():
        fields = [part.split("}")[0] for part in said.split("{")[1:]]
        assert sorted(fields) == sorted(part.split("}")[0] for part in chinese[key].split("{")[1:]), key
    used = "".join(path.read_text() for path in PAGE.glob("*.js") if not path.name.startswith("text_"))
    whole = [key for key in english if not key.startswith(("c_", "k_")) and not key.endswith(("Hint", "Long"))]
    unused = [key for key in whole if key not in used]
    assert unused == []
