"""Video to video: SDEdit at a strength, the latents of a source video block by block, and what a call takes for one."""

import numpy as np
import pytest
import torch

from salt.errors import InputError
from salt.io.video import VideoWriter, read_video
from salt.models.streaming_encode import WanStreamEncoder
from salt.models.streaming_vae import WanStreamDecoder, encode_video
from salt.rollout import RolloutSettings
from salt.schedule import Schedule, step_list
from salt.spec import StudentSpec
from salt.video_in.strength import settings_at, source_of
from salt.video_in.video_latents import VideoLatents
from tests.helpers import tiny_system

PROMPT = "a fast red circle moving right"


@pytest.fixture(scope="module")
def pipe():
    return tiny_system.pipeline()


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    torch.manual_seed(5)
    return torch.rand(1, 3, 23, 32, 32) * 2 - 1


def call(pipe, **options):
    return pipe(PROMPT, **{"num_inference_steps": 4, "seed": 3, "output_type": "pt", **options})


def test_strength_1_is_text_to_video_bit_for_bit(pipe, clip):
    for fuse in (False, True):
        made, plain = call(pipe, video=clip, strength=1, fuse=fuse), call(pipe, num_frames=21, fuse=fuse)
        assert torch.equal(made.latents, plain.latents) and torch.equal(made.frames, plain.frames)


def test_strength_0_is_the_vae_round_trip_and_still_writes_the_memory(pipe, clip):
    steps, calls = [], []
    chunks = list(pipe.stream(PROMPT, video=clip, strength=0, num_inference_steps=4, seed=3, on_step=steps.append))
    latents = torch.cat([c.latents for c in chunks], dim=2)
    encoded = encode_video(pipe.vae, clip[:, :, :21])
    assert torch.allclose(latents, encoded, atol=1e-5)
    pixels = torch.cat([c.pixels for c in chunks], dim=2)
    assert torch.allclose(pixels, WanStreamDecoder(pipe.vae).decode(encoded), atol=1e-4)
    assert [(s.kind, s.steps) for s in steps] == [("context", 0)] * 2
    assert [c.block.nfe for c in chunks] == [0, 1] and chunks[0].memory.next_frame == 6
    again = call(pipe, video=clip, strength=0.2, callback_on_step_end=lambda *args: calls.append(args))
    assert torch.equal(again.latents, latents) and not calls, "no step of 1000, 750, 500, 250 is at or below 200"
    given = call(pipe, initial_latents=encoded[:, :, :3], num_frames=21, num_inference_steps=4)
    store, other = chunks[0].memory.store, given.memory.store
    assert torch.allclose(store.buffers[0][0][:, :3], other.buffers[0][0][:, :3], atol=1e-4)


@pytest.mark.parametrize(("strength", "steps"), [(0.25, 1), (0.6, 2), (0.75, 3), (0.8, 3), (1.0, 4)])
def test_blocks_start_at_the_first_step_at_or_below_the_strength(pipe, clip, strength, steps):
    seen = []
    chunks = list(
        pipe.stream(PROMPT, video=clip, strength=strength, num_inference_steps=4, seed=3, on_step=seen.append)
    )
    assert sum(s.kind == "denoise" for s in seen) == 2 * steps
    assert {s.steps for s in seen} == {steps}
    assert [c.block.nfe for c in chunks] == [steps, steps + 1]


def test_the_first_call_sees_the_noised_source(pipe, clip):
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("hidden_states", args[0] if args else None).clone()),
        with_kwargs=True,
    )
    try:
        noise = torch.randn(1, 16, 6, 4, 4)
        call(pipe, video=clip, strength=0.5, latents=noise)
    finally:
        handle.remove()
    sigma = Schedule(step_list(4)).sigmas[2]
    expected = (1 - sigma) * encode_video(pipe.vae, clip[:, :, :9]) + sigma * noise[:, :, :3]
    assert torch.allclose(seen[0], expected, atol=1e-5)


def test_fused_and_streamed_are_the_same_clip(pipe, clip):
    plain = call(pipe, video=clip, strength=0.6)
    fused = call(pipe, video=clip, strength=0.6, fuse=True)
    assert (plain.latents - fused.latents).abs().max() <= 1e-4
    assert not torch.allclose(plain.latents, call(pipe, num_frames=21).latents, atol=1e-2)


def test_steps_of_a_strength():
    settings = RolloutSettings(Schedule((900, 600, 300), 8.0), stepping=("sde", "ode"))
    assert settings_at(settings, 1) is settings and settings_at(settings, 0.9) is settings
    cut = settings_at(settings, 0.89)
    assert cut.schedule.steps == (600, 300) and cut.stepping == ("ode",)
    assert settings_at(settings, 0.299) is None and settings_at(settings, 0) is None
    krea = RolloutSettings(Schedule(step_list(4, "krea"), rule="krea"))
    found = settings_at(krea, 0.7)
    assert found.schedule.steps == (700, 466, 233, 0) and settings_at(found, 0.7) == found
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="strength: found .*, expected 0"):
            settings_at(settings, wrong)


def test_a_video_is_encoded_as_it_is_asked_for(pipe, clip):
    encoder, given = WanStreamEncoder(pipe.vae), []
    frames = (given.append(1) or frame for frame in clip.split(1, dim=2))
    latents = VideoLatents(encoder, frames)
    whole, kept = encode_video(pipe.vae, clip[:, :, :21]), []
    for start in (0, 1, 1, 3):
        assert torch.allclose(latents(start, 2), whole[:, :, start : start + 2], atol=1e-5)
        kept.append(len(given))
    assert kept == [5, 9, 9, 17] and latents.kept.shape[2] == 2
    assert latents(5, 1).shape[2] == 1 and latents(6, 1).shape[2] == 1, "filled with its last frame"
    with pytest.raises(InputError, match="video ended after 23 frames, expected 29"):
        latents(7, 1)
    with pytest.raises(
        InputError, match="video: found 6 latent frames from 3 on, expected those up to latent frame 10"
    ):
        source_of(whole, 3)(9, 1)


def test_what_a_video_may_be(pipe, clip, tmp_path):
    uint8 = ((clip[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    expected = call(pipe, video=uint8.float().div(127.5).sub(1).permute(3, 0, 1, 2), strength=0).latents
    for video in (uint8, uint8[None], uint8.numpy(), uint8.numpy() / np.float32(255), pictures(uint8)):
        assert torch.allclose(call(pipe, video=video, strength=0).latents, expected, atol=1e-4)
    path = tmp_path / "in.mp4"
    with VideoWriter(path, fps=16) as writer:
        writer.write(clip[0])
    found = call(pipe, video=path, strength=0)
    assert torch.allclose(found.latents, encode_video(pipe.vae, read_video(path, (32, 32))[:, :, :21]), atol=1e-4)
    two = pipe([PROMPT] * 2, video=torch.cat([clip, -clip]), strength=0, seed=3, output_type="pt")
    assert torch.allclose(two.latents[:1], call(pipe, video=clip, strength=0).latents, atol=1e-4)
    assert two.latents.shape[0] == 2 and not torch.allclose(two.latents[0], two.latents[1], atol=1e-2)


def pictures(uint8):
    from PIL import Image

    return [Image.fromarray(frame.numpy()) for frame in uint8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5, "video": None}, "strength has no effect without `video`"),
        ({"strength": 1.5}, "strength: found 1.5, expected 0"),
        ({"image": torch.zeros(3, 32, 32)}, "video cannot be combined with `image`"),
        ({"seconds": 2.0}, r"seconds: found 2 s, expected at most the video's 23 \(1.438 s\)"),
        ({"num_frames": 33}, "num_frames: found 33 frames, expected at most the video's 23"),
        ({"num_frames": 20}, "num_frames: found 20, expected 9 or 21"),
        ({"video": torch.zeros(1, 3, 8, 32, 32)}, "video: found 8 frames at 16 a second, expected at least 9"),
        ({"video": torch.zeros(8, 32, 32)}, r"video: found float32 of shape \[8, 32, 32\], expected a path"),
        ({"video": torch.full((3, 9, 32, 32), 200.0)}, "video: found values from 200 to 200"),
        ({"video": 7}, "video: found int, expected a path"),
        ({"video": torch.zeros(3, 3, 9, 32, 32)}, "video: found a batch of 3, expected 1"),
    ],
)
def test_refusals(pipe, clip, options, message):
    with pytest.raises(InputError, match=message) as found:
        call(pipe, **{"video": clip, **options})
    assert len(str(found.value)) <= 400


def test_wrong_files(pipe, tmp_path):
    text, picture = tmp_path / "text.mp4", tmp_path / "picture.png"
    text.write_text("no video")
    picture.write_bytes(b"")
    for path, message in (
        (text, "text.mp4: cannot be read as a video"),
        (picture, "found the picture .*picture.png, expected a video"),
        (tmp_path / "none.mp4", "none.mp4"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            call(pipe, video=path)


def test_lengths(pipe, clip):
    assert call(pipe, video=clip, strength=0).latents.shape[2] == 6, "21 of 23 frames"
    assert call(pipe, video=clip, strength=0, num_frames=9).latents.shape[2] == 3
    assert call(pipe, video=clip, strength=0, seconds=0.6).latents.shape[2] == 6
    assert call(pipe, video=clip, strength=0, seconds=1.4375).latents.shape[2] == 6, "no more than it fills"
    fast = tiny_system.pipeline(spec=StudentSpec(fps=24))
    assert call(fast, video=clip, strength=0, seconds=0.5).latents.shape[2] == 6, "12 frames: 21 in whole blocks"
