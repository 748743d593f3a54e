"""A simulated viewer's playback, and what is made of its figures. Times are numbers here, not a clock."""

import argparse

import pytest

from benchmarks.stream.client import PromptTimes, Viewing
from benchmarks.stream.command import rows, seconds
from benchmarks.stream.measures import percentiles, viewer_figures
from benchmarks.stream.player import Batch, Player


def batch(index, count=12, generation=0, event=0, frame=None):
    return Batch(generation, event, index if frame is None else frame, index, count)


def test_a_block_in_time_is_no_underrun_and_a_late_one_is():
    player = Player(16)
    player.arrived(batch(0), 10.0)
    player.advance(10.01)
    player.arrived(batch(12), 10.7)
    player.advance(11.49)
    assert (player.played, player.underruns, player.late) == (23, 0, 0)
    player.advance(11.9)
    assert player.underruns == 1
    player.arrived(batch(24), 11.99)  # the first was due at 11.5
    assert player.underruns == 1 and player.late == 8 and player.dry_seconds == pytest.approx(0.49)
    player.advance(12.2)
    assert player.played == 27, "playback has begun again"


def test_few_frames_wait_for_more_at_first():
    player = Player(16)
    player.arrived(batch(0, 2), 0.0)
    player.advance(0.3)
    assert player.shown == 0
    player.advance(0.4)
    assert player.shown == 1


def test_frames_older_than_a_control_are_left_out_but_for_three():
    player = Player(16)
    player.arrived(batch(0), 0.0)
    player.advance(0.0)
    player.applied(0, 12)
    assert player.left_out == 0, "what follows is not here"
    player.arrived(batch(12, event=1), 0.01)
    assert player.left_out == 8
    player.advance(0.24)
    assert player.played == 11
    player.advance(0.26)
    assert player.shown_events[-1] == (1, 0.25)
    player.arrived(batch(24, generation=1, frame=0), 0.27)
    player.advance(0.27)
    assert player.left_out == 8 + 11 and player.played == 24


def test_figures_of_a_viewing():
    assert percentiles([3, 1, 2, 4], 50, 95) == {"p50": 2, "p95": 4} and percentiles([], 50) == {}
    viewing = Viewing(Player(16), 1.0, [2.0, 2.75, 3.75], [9, 21, 33])
    viewing.prompts = [PromptTimes(0.0, 1, 0.5, 0.75), PromptTimes(1.0, 2)]
    figures = viewer_figures(viewing, 0.5)
    assert figures["first_frame_s"] == 1.5 and figures["block_gap_s"] == {"p50": 0.75, "p95": 1.0, "p99": 1.0}
    assert (figures["prompts"], figures["prompts_answered"]) == (2, 1)
    assert figures["prompt_to_frame_s"] == {"p50": 0.5, "p95": 0.5, "p100": 0.5}
    assert rows({"crowd": {"viewers": 8, "ratio": 0.97}}) == [("rate with 8 viewers over one", "0.97", "0.90")]


def test_times_of_options():
    assert [seconds(text) for text in ("20", "20s", "1.5min", "0")] == [20, 20, 90, 0]
    with pytest.raises(argparse.ArgumentTypeError, match="found '1h', expected a time such as 20s or 10min"):
        seconds("1h")
