"""A rebuilt memory in pipelines and live sessions: frames are decoded, encoded again, and rewound with the clip."""

import pytest
import torch

from salt.acceleration.finite_check import FiniteFlag
from salt.errors import InputError
from salt.live.controls import Guidance, Policy, Prompt, Rewind
from salt.live.engine import LiveEngine
from salt.live.pipeline_host import PipelineHost
from salt.live.settings import LiveSettings
from salt.models.async_decoder import PendingFrames
from salt.models.head_encoder import HeadEncoder, LatestPixels
from tests.helpers import tiny_system

RED, BLUE = "a red circle moving right", "a blue square moving up"


@pytest.fixture(scope="module")
def pipe():
    return tiny_system.pipeline()


@pytest.mark.parametrize("policy", ["rebuild:3", "rebuild:6"])
def test_a_pipeline_encodes_its_own_decoded_frames(pipe, policy):
    options = dict(seed=1, num_inference_steps=2, memory_policy=policy)
    whole = pipe(RED, num_frames=57, output_type="latent", **options)
    assert torch.equal(torch.cat([c.latents for c in pipe.stream(RED, num_frames=57, **options)], dim=2), whole.latents)
    kept = pipe(RED, num_frames=57, output_type="latent", **{**options, "memory_policy": f"{policy},keep"})
    assert not torch.equal(kept.latents[:, :, -3:], whole.latents[:, :, -3:])
    first = pipe(RED, num_frames=33, output_type="latent", **options)
    memory = first.memory
    options = dict(seed=1, num_inference_steps=2, num_frames=24, output_type="latent")
    rest = pipe(RED, memory=memory.fork(), history_latents=first.latents, **options)
    again = torch.cat([first.latents, rest.latents], dim=2)
    assert torch.allclose(again, whole.latents, atol=1e-4)
    memory.trim(6)
    rest = pipe(RED, memory=memory, history_latents=first.latents[:, :, :6], **{**options, "num_frames": 36})
    again = torch.cat([first.latents[:, :, :6], rest.latents], dim=2)
    assert torch.allclose(again[:, :, : whole.latents.shape[2]], whole.latents[:, :, : again.shape[2]], atol=1e-4)


def test_a_start_image_is_a_still_of_as_many_frames_as_the_memory_is_rebuilt_from(pipe):
    options = dict(seed=1, num_inference_steps=2, num_frames=21, output_type="latent")
    image = torch.rand(3, 32, 32) * 2 - 1
    found = pipe(RED, image=image, memory_policy="rebuild:3", **options)
    assert found.memory.clean.given == 3 and found.latents.shape[2] == 6
    still = image[None, :, None].expand(-1, -1, 9, -1, -1)
    assert torch.equal(found.latents, pipe(RED, image=still, memory_policy="rebuild:3", **options).latents)


def play(engine, blocks, controls):
    made, latents = 0, []

    def gate():
        for control in controls.get(made, ()) if made < blocks else ():
            engine.apply(control)
        return made < blocks

    for block in engine.blocks(gate):
        made += 1
        latents.append(block.latents)
    return latents


@pytest.mark.parametrize("policy", ["rebuild:3", "rebuild:6,keep"])
def test_a_rewound_session_goes_on_as_if_it_had_never_been_further(pipe, policy):
    host, settings = PipelineHost(pipe), LiveSettings(RED, nfe=2, pace="free", policy=policy)
    before = {1: [Prompt.of(BLUE, "recache")], 2: [Guidance(2.0)], 4: [Guidance(1.0)]}
    straight = play(LiveEngine(host, settings, decodes=False), 8, {**before, 6: [Guidance(3.0)]})
    for back in (5, 3):  # after a snapshot, and from the beginning
        engine = LiveEngine(host, settings, decodes=False)
        play(engine, 7, {**before, 6: [Prompt.of(RED, "cut")]})
        seconds = engine.info.first_pixel_frame(3 * back) / engine.info.fps + 0.01
        later = {b - back: c for b, c in before.items() if b >= back} | {6 - back: [Guidance(3.0)]}
        again = play(engine, 8 - back, {**later, 0: [Rewind(seconds), *later.get(0, [])]})
        assert all(torch.equal(a, b) for a, b in zip(again, straight[back:], strict=True))


def test_a_session_changes_to_a_rebuilt_memory_and_back(pipe):
    settings = LiveSettings(RED, nfe=2, pace="free", policy="window:9")
    changes = {2: [Policy("rebuild:3")], 5: [Policy("window:9")]}
    engine = LiveEngine(PipelineHost(pipe), settings)
    latents = play(engine, 7, changes)
    assert len(latents) == 7 and engine.memories.memory.held == tuple(range(12, 21))
    with pytest.raises(InputError, match="policy: found one that encodes decoded frames"):
        play(LiveEngine(PipelineHost(pipe), settings, decodes=False), 7, changes)


@pytest.mark.parametrize(
    ("pixels", "shown"), [(9, 0), (12, 3), (21, 12)], ids=["first block", "later", "after a start"]
)
def test_the_last_pixel_frame_of_a_block_s_first_latent_frame_is_encoded(pixels, shown):
    video = torch.arange(pixels).view(1, 1, -1, 1, 1).expand(1, 3, -1, 8, 8) / pixels
    encoder = HeadEncoder(lambda latents: video, lambda image: image, 4)
    assert torch.equal(encoder(torch.zeros(1, 16, 3, 1, 1)), video[:, :, shown : shown + 1])


def test_frames_that_were_decoded_for_the_clip_are_not_decoded_again():
    decoded, first, later = [], torch.zeros(1), torch.ones(1)

    def pending(latents):
        decoded.append(latents)
        return PendingFrames(latents, latents, FiniteFlag.of(latents))

    latest = LatestPixels(pending)
    latest.keep(first, pending(first))
    assert latest(first) is first and len(decoded) == 1
    latest.keep(first, pending(first))
    assert latest(later) is later and len(decoded) == 3, "other latents than those that were decoded last"
