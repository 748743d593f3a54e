"""What does not hold a block up: its decoding begins before its context pass, and texts are encoded beside blocks."""

import threading

import pytest
import torch

from salt.live.controls import Pause, Prompt, Step
from salt.live.engine import LiveEngine
from salt.live.mailbox import Mailbox
from salt.live.messages import Applied, Refused, Superseded
from salt.live.pipeline_host import PipelineHost
from salt.live.replay import play, replay_engine
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from salt.models import async_decoder
from tests.helpers import tiny_system
from tests.live.test_exact import play as run

RED, BLUE, GREEN = "a red circle moving right", "a blue square moving up", "a green triangle moving left"
FREE = dict(nfe=2, pace="free")


@pytest.fixture(scope="module")
def host():
    return PipelineHost(tiny_system.pipeline())


def test_decoding_of_a_block_begins_before_its_context_pass(host, monkeypatch):
    """In a live session and in a pipeline that overlaps: on CUDA it is on a stream of its own."""
    calls, begin, model = [], async_decoder.AsyncDecoder.begin, host.model

    def decode(self, latents):
        calls.append("decode")
        return begin(self, latents)

    class Watched:
        def __call__(self, inputs):
            calls.append("context" if inputs.memory.segments[0].writes else "denoise")
            return model(inputs)

    monkeypatch.setattr(async_decoder.AsyncDecoder, "begin", decode)
    monkeypatch.setattr(host, "model", Watched())
    run(LiveEngine(host, LiveSettings(RED, **FREE)), 3)
    assert calls[:12] == ["denoise", "denoise", "decode", "context"] * 3
    calls.clear()
    monkeypatch.setattr(async_decoder.AsyncDecoder, "overlaps", True)

    def step(step):
        calls.append(step.kind)

    list(host.pipe.stream(RED, num_frames=33, num_inference_steps=2, seed=0, on_step=step))
    assert calls == ["denoise", "denoise", "decode", "context"] * 3


class SlowText(PipelineHost):
    """A host whose texts take as long as a test wants. asked: texts that were begun."""

    def __init__(self, pipe):
        super().__init__(pipe)
        self.go, self.asked = {text: threading.Event() for text in (BLUE, GREEN)}, []

    @property
    def encode_beside(self):
        def encode(text):
            self.asked.append(text)
            assert self.go[text].wait(30)
            if text == GREEN:
                raise ValueError("found embeddings that are not finite")
            return lambda: self.encode(text)

        return encode


def session_of(host, at, frames=18, **settings):
    """A session that calls `at[made]` at the start of the block after so many."""
    session = LiveSession(host, LiveSettings(RED, frames=frames, **FREE, **settings))
    gate, at = session._gate, dict(at)
    session._gate = lambda: (at.pop(session.engine.made, lambda: None)(), gate())[1]
    viewer = session.subscribe()
    return session, viewer


def receipts(viewer):
    messages = iter(viewer.get, None)
    return [m for m in messages if isinstance(m, (Applied, Superseded, Refused))]


def until_encoded(session, control):
    def wait():
        with session._mailbox.changed:
            assert session._mailbox.changed.wait_for(lambda: session._texts.is_ready(control), 30)

    return wait


def test_blocks_are_made_while_a_prompt_is_encoded_and_the_replay_is_exact():
    host = SlowText(tiny_system.pipeline())
    control = Prompt.of(BLUE, "recache")
    made = []
    session, viewer = session_of(
        host,
        {
            1: lambda: session.send(control),
            3: lambda: (made.append(session.engine.log[:]), host.go[BLUE].set(), until_encoded(session, control)()),
        },
    )
    session.run()
    assert made == [[]] and host.asked == [BLUE], "two blocks were made meanwhile"
    (applied,) = receipts(viewer)
    assert (applied.control, applied.block, applied.frame) == ("prompt", 3, 33)
    assert session.engine.log == [(3, control)] and not session._texts._thread.is_alive()
    result, replay = session.result(), session.replay()
    again = [block.latents for block in play(replay_engine(host, replay), replay)]
    assert torch.equal(torch.cat(again, dim=2), result.latents)
    plain = LiveEngine(host, LiveSettings(RED, **FREE), False)
    assert torch.equal(torch.cat(run(plain, 6, {3: [control]})[0], dim=2), result.latents)


def test_a_later_prompt_supersedes_one_that_is_being_encoded_and_a_fault_is_a_refusal():
    host = SlowText(tiny_system.pipeline())
    blue, green = Prompt.of(BLUE), Prompt.of(GREEN)

    def second():
        session.send(green)
        host.go[BLUE].set()
        host.go[GREEN].set()
        until_encoded(session, green)()

    session, viewer = session_of(host, {1: lambda: session.send(blue), 2: second})
    session.run()
    superseded, refused = receipts(viewer)
    assert isinstance(superseded, Superseded) and session.state().status == "stopped"
    assert (
        refused.message == "prompt cannot be encoded: found embeddings that are not finite" and not session.engine.log
    )


def test_a_step_is_made_under_the_prompt_that_was_sent_before_it():
    host = SlowText(tiny_system.pipeline())
    threading.Timer(0.2, host.go[BLUE].set).start()
    session, viewer = session_of(host, {1: lambda: [session.send(c) for c in (Pause(), Prompt.of(BLUE), Step())]}, 6)
    session.run()
    applied = {r.control: r.block for r in receipts(viewer) if isinstance(r, Applied)}
    assert applied["prompt"] == 1 and session.engine.branch.tip.choice.prompt.texts() == {BLUE: 1.0}


def test_a_text_that_is_known_or_a_table_of_words_is_ready_at_once(host):
    assert host.encode_beside is None and LiveSession(host, LiveSettings(RED))._texts.is_ready(Prompt.of(BLUE))
    slow = SlowText(tiny_system.pipeline())
    session = LiveSession(slow, LiveSettings(RED))
    assert not session._texts.is_ready(Prompt.of(BLUE))
    session.engine.planner.conditionings.of(BLUE)
    assert session._texts.is_ready(Prompt.of(BLUE)) and not slow.asked
    mailbox = Mailbox()
    mailbox.send(Prompt.of(GREEN), "")
    assert mailbox.take(False, lambda control: False) == [] and len(mailbox.take(False)) == 1
