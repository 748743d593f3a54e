"""The lead over who watches, and what a slow viewer loses. Time is a number here, not a clock."""

import numpy as np
import pytest

from salt.live import pacing, viewers
from salt.live.messages import Dropped, FrameBatch, State
from salt.live.pacing import Pacer
from salt.live.pipeline_host import PipelineHost
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from salt.live.viewers import STALE_SECONDS, Viewer, Viewers
from tests.helpers import tiny_system


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    monkeypatch.setattr(viewers, "time", clock)
    return clock


def test_the_lead_is_over_the_fastest_viewer(clock):
    pacer, fast, slow, silent = Pacer("realtime", 16), Viewer("fast"), Viewer("slow"), Viewer("silent")
    pacer.made = 33
    fast.played(20), slow.played(3)
    assert pacer.lead([fast, slow, silent]) == 12 and pacer.seconds_to_wait([fast, slow, silent], 12) == 0
    pacer.made = 45
    assert pacer.seconds_to_wait([fast, slow, silent], 12) == 12 / 16
    fast.played(32)
    assert pacer.seconds_to_wait([fast, slow], 12) == 0
    pacer.made, pacer.pace = 999, "free"
    assert pacer.seconds_to_wait([fast, slow], 12) == 0


def test_a_clock_plays_while_nobody_does(clock):
    pacer, viewer = Pacer("realtime", 16), Viewer("one")
    pacer.made = 21
    assert pacer.lead([viewer]) == 21
    clock.now += 0.5
    assert pacer.lead([viewer]) == 13
    clock.now += 60
    assert pacer.lead([]) == 0, "what is not made is not played"
    pacer.made += 12
    assert pacer.lead([]) == 12
    viewer.played(24)
    assert pacer.lead([viewer]) == 8
    clock.now += STALE_SECONDS  # its page is hidden
    assert pacer.lead([viewer]) == 0


def test_after_a_rewind_nothing_that_was_made_before_counts(clock):
    pacer, viewer = Pacer("realtime", 16), Viewer("one")
    pacer.made = 60
    viewer.put(batch(48, 12)), viewer.played(10)
    pacer.cut_over(), viewer.cut_over(60)
    assert pacer.lead([viewer]) == pacer.lead([]) == 0 and viewer.get() is None and viewer.dropped == 0
    viewer.played(12)  # on its way when the cut came
    assert pacer.lead([viewer]) == 0


def batch(index, count):
    return FrameBatch(0, 1, 0, 0, index, index, False, np.zeros((count, 2, 2, 3), np.uint8))


def test_a_slow_viewer_loses_the_oldest_frames_and_is_told(clock):
    viewer, everyone = Viewer("slow", batches=2), Viewers()
    everyone.add(viewer)
    for index in (0, 9, 21, 33):
        everyone.put(batch(index, 12 if index else 9))
    assert viewer.get() == Dropped(21, 21) and everyone.drops == 21
    assert [viewer.get().play_index for _ in range(2)] == [21, 33] and viewer.get() is None
    viewer.played(33, dropped=5)
    everyone.remove(viewer)
    assert everyone.drops == 26 and len(everyone) == 0 and viewer.closed
    viewer.put(batch(50, 1))
    assert viewer.get() is None


def test_a_viewer_that_reads_nothing_holds_nothing_back():
    session = LiveSession(
        PipelineHost(tiny_system.pipeline()), LiveSettings("a red circle", nfe=2, pace="free", frames=36)
    )
    viewer, called = session.subscribe(batches=1), []
    viewer.on_message = lambda: called.append(1)
    session.run()
    got = [viewer.get() for _ in range(4)]
    assert isinstance(got[0], State) and got[0].status == "stopped"
    assert got[1] == Dropped(129, 129) and got[2].first_frame == 129 and got[3] is None
    assert session.state().drops == 129 and len(called) > 12
