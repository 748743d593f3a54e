"""A live session from start to stop: receipts, state, pause and step, viewers."""

import threading

import pytest

from salt.errors import InputError
from salt.live import engine, mailbox
from salt.live.controls import Goto, Nfe, Pause, Prompt, Resume, Rewind, Step, Stop, read_control
from salt.live.messages import Applied, FrameBatch, Refused, State, Superseded
from salt.live.pipeline_host import PipelineHost
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from tests.helpers import tiny_system

RED, BLUE = "a red circle moving right", "a blue square moving up"


@pytest.fixture(scope="module")
def host():
    return PipelineHost(tiny_system.pipeline())


def messages(viewer):
    found = []
    while (message := viewer.get()) is not None:
        found.append(message)
    return found


def wait_for(viewer, condition, seconds=20.0):
    """The messages until one fulfils the condition."""
    seen = []
    while True:
        message = viewer.get(seconds)
        assert message is not None, f"nothing came after {seen[-3:]}"
        seen.append(message)
        if condition(message):
            return seen


def test_a_session_plays_to_its_length_and_every_control_has_its_receipt(host):
    session = LiveSession(host, LiveSettings(RED, nfe=2, pace="free", frames=9))
    viewer = session.subscribe(batches=10)
    first, second = session.send(Prompt.of(RED, "cut")), session.send(Prompt.of(BLUE))
    nfe = session.send(Nfe(4), "someone")
    session.run()
    got = messages(viewer)
    batches = [m for m in got if isinstance(m, FrameBatch)]
    assert [b.frames.shape for b in batches] == [(9, 32, 32, 3), (12, 32, 32, 3), (12, 32, 32, 3)]
    assert [(b.block, b.first_frame, b.play_index, b.event) for b in batches] == [
        (0, 0, 0, nfe), (1, 9, 9, nfe), (2, 21, 21, nfe)
    ]  # fmt: skip
    assert Superseded(first, second) in got
    receipts = [m for m in got if isinstance(m, Applied)]
    assert [(r.event, r.control, r.block, r.frame) for r in receipts] == [(second, "prompt", 0, 0), (nfe, "nfe", 0, 0)]
    state = session.state()
    assert (state.status, state.block, state.frame, state.nfe, state.prompts[0].text) == ("stopped", 3, 33, 4, BLUE)
    with pytest.raises(InputError, match="the session has stopped"):
        session.send(Stop())


def test_pause_step_resume_and_stop(host):
    session = LiveSession(host, LiveSettings(RED, nfe=2, pace="free"))
    viewer = session.subscribe(batches=10)
    session.send(Pause())
    session.start()
    wait_for(viewer, lambda m: isinstance(m, State) and m.status == "paused")
    session.send(Step())
    wait_for(viewer, lambda m: isinstance(m, FrameBatch) and m.block == 0)
    assert session.state().block == 1 and session.state().status == "paused"
    session.send(Resume())
    wait_for(viewer, lambda m: isinstance(m, FrameBatch) and m.block == 3)
    session.close()
    assert session.state().status == "stopped" and viewer.closed
    assert not [t for t in threading.enumerate() if t.name.startswith("salt-live")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"control": "prompt"}, "prompts is missing from the control prompt"),
        ({"control": "dance"}, "control: found 'dance', expected one of prompt, seed"),
        ({"control": "nfe", "nfe": 3}, "nfe: found 3, expected 1, 2, 4 or 8"),
        ({"control": "seed", "seed": 1.5}, "seed: found 1.5, expected an integer"),
        ({"control": "rewind", "seconds": -1}, "seconds: found -1, expected 0 to"),
        ({"control": "rewind", "seconds": float("nan")}, "seconds: found nan, expected a finite number"),
        ({"control": "goto"}, "goto needs a bookmark or a branch"),
        ({"control": "prompt", "prompts": [{"text": "x" * 5000}]}, "text: found 5,000 characters"),
        ({"control": "prompt", "prompts": [{"text": "a", "weight": 0}]}, "weight: found 0, expected above 0"),
        ({"control": "prompt", "prompts": [{"text": "a"}], "blend": {"blocks": 999}}, "blocks: found 999"),
        ({"control": "policy", "policy": "ring:3"}, "memory_policy: found 'ring:3'"),
        ({"control": "nfe", "nfe": 2, "steps": 2}, "nfe: found 'steps', expected only nfe"),
        ({"control": "pause", "now": 1}, "pause: found 'now', expected no fields"),
        ({"control": "prompt", "prompts": [{"text": "a", "wait": 1}]}, "prompts[0]: found 'wait', expected only text,"),
        (
            {"control": "prompt", "prompts": [{"text": "a"}], "blend": {"block": 4}},
            "blend: found 'block', expected only",
        ),
        ([], "control: found None"),
    ],
)
def test_a_control_that_is_wrong_is_refused_by_its_field(values, message):
    with pytest.raises(InputError) as error:
        read_control(values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("prompt", "x" * 5000), ("negative", "x" * 5000), ("nfe", 3), ("lead", 0)]
)
def test_a_setting_that_is_wrong_is_refused_by_its_field(field, value):
    with pytest.raises(InputError, match=f"^{field}: found .*, expected (at most|1, 2|1 to)"):
        LiveSettings(**{"prompt": RED, field: value})


def test_a_word_that_the_model_does_not_know_is_refused_when_it_is_sent(host):
    session = LiveSession(host, LiveSettings(RED))
    with pytest.raises(InputError, match="prompt cannot be encoded: unknown word 'zebra'"):
        session.send(Prompt.of("a zebra"))
    with pytest.raises(InputError, match="prompt: found an empty one"):
        session.send(Prompt.of(" "))
    with pytest.raises(InputError, match="negative cannot be encoded: unknown word 'zebra'"):
        LiveSession(host, LiveSettings(RED, negative="a zebra"))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((33, 32), r"width: found 33 pixels, expected a multiple of 16 \(32 or 48\)"),
        ((2**22, 2**22), "width: found too"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(host, size, message):
    assert PipelineHost(host.pipe, 48, 32).info.width == 48
    with pytest.raises(InputError, match=message):
        PipelineHost(host.pipe, *size)


def test_a_place_that_is_not_there_is_refused_in_its_turn(host):
    session = LiveSession(host, LiveSettings(RED, nfe=2, pace="free", frames=3))
    viewer = session.subscribe()
    session.send(Rewind(99)), session.send(Goto(branch=7))
    session.run()
    refused = {m.field: m.message for m in messages(viewer) if type(m).__name__ == "Refused"}
    assert refused == {
        "seconds": "seconds: found 99, expected 0 to 0", "branch": "branch: found no branch 7"
    }  # fmt: skip


def test_a_session_takes_a_bounded_number_of_controls_and_can_still_be_stopped(host, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_EVENTS", 2)
    monkeypatch.setattr(engine, "MAX_LOG", 1)
    session = LiveSession(host, LiveSettings(RED, nfe=2, pace="free"))
    viewer = session.subscribe()
    session.send(Nfe(2)), session.send(Prompt.of(BLUE))
    with pytest.raises(InputError, match="found 2 controls in this session, which is the most"):
        session.send(Nfe(4))
    session.start()
    wait_for(viewer, lambda m: isinstance(m, Refused) and "found 1 controls in the replay" in m.message)
    session.close()
    assert session.state().status == "stopped"
