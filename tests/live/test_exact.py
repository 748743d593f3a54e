"""What is made after a rewind, fork or goto equals, to the bit, what a session makes that was never anywhere else."""

import pytest
import torch

from salt.live.controls import (
    Blend,
    Bookmark,
    Fork,
    Goto,
    Guidance,
    Nfe,
    Policy,
    Prompt,
    Rewind,
    Seed,
    WeightedPrompt,
)  # fmt: skip
from salt.live.engine import LiveEngine
from salt.live.history import default_budget, path_to
from salt.live.pipeline_host import PipelineHost
from salt.live.settings import LiveSettings
from tests.helpers import tiny_system

RED, BLUE, GREEN = "a red circle moving right", "a blue square moving up", "a green triangle moving left"
FREE = dict(nfe=2, pace="free")
POLICIES = [
    *("full", "window:9", "sink:3,window:12", "relative:3,window:12", "cyclic:9", "blended:3,window:9,blend:0.8"),
    *("sink:3,window:9,int8", "window:9,cpu"),
]


@pytest.fixture(scope="module")
def host():
    return PipelineHost(tiny_system.pipeline())


def play(engine, blocks, controls=()):
    """Make `blocks` blocks; controls: by the number of blocks that this call has made. Their latents, and frames."""
    controls, made = dict(controls), 0

    def gate():
        if made == blocks:
            return False
        for control in controls.get(made, ()):
            engine.apply(control)
        return True

    latents, frames = [], []
    for block in engine.blocks(gate):
        made += 1
        latents.append(block.latents)
        if block.frames is not None:
            frames.append(block.frames.wait().frames[0])
    return latents, frames


def steered(host, settings, decodes=False):
    return LiveEngine(host, settings, decodes)


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_after_a_rewind_the_blocks_are_those_of_a_run_that_never_went_further(host, policy):
    """From a snapshot (after 4 blocks) and from the beginning, with a recache and a guided part in between."""
    settings = LiveSettings(RED, policy=policy, **FREE)
    decodes = policy == "window:9"  # which is what takes the time
    before = {1: [Prompt.of(BLUE, "recache")], 2: [Guidance(2.0)], 4: [Guidance(1.0), Prompt.of(GREEN, blocks=3)]}
    straight, frames = play(steered(host, settings, decodes), 8, {**before, 7: [Seed(5)]})
    for back in (5, 3):
        engine = steered(host, settings, decodes)
        play(engine, 7, {**before, 6: [Prompt.of(RED, "cut"), Nfe(4)]})
        assert (path_to(engine.branch.block_before(3 * back))[0].index == 4) == (back == 5)
        seconds = engine.info.first_pixel_frame(3 * back) / engine.info.fps
        later = {b - back: c for b, c in before.items() if b >= back} | {7 - back: [Seed(5)]}
        again, again_frames = play(engine, 8 - back, {**later, 0: [Rewind(seconds + 0.01), *later.get(0, [])]})
        assert same(again, straight[back:]) and (not decodes or same(again_frames, frames[back:]))


CHANGES = {
    "recache": Prompt.of(BLUE, "recache"),
    "recache with the sink kept": Prompt((WeightedPrompt(BLUE),), "recache", keep_sink=True),
    "cut": Prompt.of(BLUE, "cut"),
    "blend": Prompt((WeightedPrompt(BLUE), WeightedPrompt(GREEN, 3.0)), blend=Blend(4, "slerp")),
    "guidance": Guidance(3.0),
    "policy": Policy("sink:3,window:9"),
    "nfe": Nfe(4),
    "seed": Seed(99),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_in_between_is_done_again_in_order(host, name):
    settings = LiveSettings(RED, policy="relative:3,window:12", **FREE)
    controls = {3: [CHANGES[name]]}
    straight, _ = play(steered(host, settings), 8, controls)
    plain, _ = play(steered(host, settings), 8)
    assert not torch.equal(straight[7], plain[7]), "the control changes something"
    engine = steered(host, settings)
    play(engine, 7, controls)
    again, _ = play(engine, 2, {0: [Fork(engine.info.first_pixel_frame(18) / 16)]})
    assert same(again, straight[6:])


def test_branches_and_bookmarks_go_on_where_they_were_left(host):
    settings = LiveSettings(RED, policy="window:9", **FREE)
    straight, _ = play(steered(host, settings), 8)
    engine = steered(host, settings)
    play(engine, 6, {3: [Bookmark("here")]})
    other, _ = play(engine, 3, {0: [Fork(0.6), Prompt.of(BLUE)]})
    assert engine.current == 2 and not torch.equal(other[0], straight[1])
    on, _ = play(engine, 2, {0: [Goto(branch=1)]})
    assert same(on, straight[6:])
    on, _ = play(engine, 2, {0: [Goto(bookmark=1)]})
    assert same(on, straight[3:5]) and engine.current == 3 and engine.branches[1].blocks == 8
    on, _ = play(engine, 1, {0: [Goto(branch=2, seconds=1.5), Prompt.of(RED)]})
    assert engine.current == 2 and engine.branches[2].blocks == 3


def test_without_budget_only_what_is_kept_can_be_gone_back_to(host):
    engine = steered(host, LiveSettings(RED, policy="window:9", rewind_budget=0, **FREE))
    play(engine, 30)
    with pytest.raises(ValueError, match="seconds: found"):
        engine.apply(Rewind(1.0))
    assert sum(1 for _ in engine.branch.tip.back()) <= 23 and engine.rewind_from(engine.branch) > 20
    engine.apply(Prompt.of(BLUE, "recache"))
    with pytest.raises(ValueError, match="policy needs the latents before it, which are not kept"):
        engine.apply(Policy("window:90"))
    play(engine, 1)


def test_the_budget_keeps_spread_snapshots_and_a_rewind_from_them_is_exact(host):
    settings = LiveSettings(RED, policy="window:9", **FREE)
    straight, _ = play(steered(host, settings), 26)
    engine = steered(host, settings)
    one = 2 * engine.live_model.geometry.layers * 9 * 4 * 2 * 16 * 4  # bytes of a snapshot
    engine.history.budget = 3 * one + sum(4 * x.numel() for x in straight)  # latents count first
    play(engine, 26)
    kept = [b.index for b in engine.branch.tip.back() if b.snapshot is not None]
    assert len(kept) == 3 and kept[0] == 23 and engine.history.snapshot_bytes == 3 * one
    again, _ = play(engine, 2, {0: [Rewind(engine.info.first_pixel_frame(3 * 14) / 16)]})
    assert same(again, straight[14:16])


def test_a_budget_that_nobody_gave_holds_some_snapshots_of_the_memory(host, monkeypatch):
    monkeypatch.setattr("salt.live.history.free_bytes", lambda device: 40 * 2**30)
    assert default_budget(2**30) == 8 * 2**30
    assert default_budget(4 * 2**30) == 10 * 2**30  # a quarter of what is free
    assert default_budget(2**20) == 2**27
    engine = steered(host, LiveSettings(RED, policy="window:9", **FREE))
    assert engine.settings.rewind_budget == engine.history.budget == 2**27
