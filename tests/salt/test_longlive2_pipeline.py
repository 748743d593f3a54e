"""A small model of LongLive 2.0's shape through the pipeline and the command line: VAE 2.2, 24 frames a second."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from salt import cli
from salt.checkpoints.longlive2 import LONGLIVE2
from salt.cli.prompt_batch import BatchClip, ClipRecord
from salt.errors import InputError
from salt.io.video_frames import video_info
from salt.memory.serialization import load_memory, read_clip_parts
from salt.models.streaming_vae import encode_video
from salt.pipeline.pipeline import SaltPipeline
from tests.helpers import golden_longlive2 as longlive2

WORDS = ("a", "red", "blue", "circle", "square", "the", "scene", "transitions")
SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def pipe() -> SaltPipeline:
    torch.manual_seed(8)
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=48, num_res_blocks=1, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, latents_mean=[0.1] * 48, latents_std=[1.5] * 48,
    ).eval()  # fmt: skip
    words = {"dim": 64, "max_length": 12, "vocabulary": WORDS}
    made = SaltPipeline(longlive2.student(), vae, student=LONGLIVE2, words=words)
    made.set_progress_bar_config(disable=True)
    return made


def clip(pipe: SaltPipeline, **options) -> torch.Tensor:
    found = pipe("a red circle", num_frames=61, seed=3, output_type="latent", **SIZE, **options)
    assert not isinstance(found, tuple) and isinstance(found.frames, torch.Tensor)
    return found.frames


def test_sizes_come_from_the_model(pipe):
    assert pipe.default_size == (704, 1280) and pipe.spatial_scale == 16
    assert clip(pipe).shape == (1, 48, 16, 4, 4)
    with pytest.raises(InputError, match="multiple of 32"):
        pipe("a red circle", num_frames=61, width=48, height=64)
    with pytest.raises(InputError, match=r"num_frames: found 60, expected 29 or 61 \(blocks of 32 frames"):
        pipe("a red circle", num_frames=60, **SIZE)


def test_the_sampler_draws_no_noise_and_steps_are_the_students(pipe):
    noise = torch.randn(1, 48, 16, 4, 4)
    two = [clip(pipe, latents=noise) for _ in range(2)]
    assert torch.equal(*two)
    assert not torch.equal(two[0], clip(pipe, latents=noise, stepping="ode"))


def test_an_image_is_the_first_frame_of_the_first_block(pipe):
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    made = clip(pipe, image=pixels)
    assert made.shape == clip(pipe).shape
    torch.testing.assert_close(made[:, :, :1], encode_video(pipe.vae, pixels[:, :, None]))


def test_a_shot_reads_the_prefix_in_its_first_block_alone(pipe):
    shot = clip(pipe, prompt_schedule=[(1.25, "a blue square", "shot")])
    kept = clip(pipe, prompt_schedule=[(1.25, "a blue square", "keep")])
    assert torch.equal(shot[:, :, :8], kept[:, :, :8]) and not torch.equal(shot[:, :, 8:], kept[:, :, 8:])
    prefixed = clip(pipe, prompt_schedule=[(1.25, LONGLIVE2.shot_prefix + "a blue square", "shot")])
    assert torch.equal(shot, prefixed)
    with pytest.raises(InputError, match="prompt_schedule: found a shot with the memory policy full"):
        clip(pipe, prompt_schedule=[(1.25, "a blue square", "shot")], memory_policy="full")


def test_command_line(pipe, tmp_path: Path, capsys):
    pipe.save_pretrained(tmp_path / "pipe")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "start.png")
    arguments = ["generate", "a red circle", "--model", tmp_path / "pipe", "--seconds", 2.5, "--width", 64]
    arguments += ["--height", 64, "--image", tmp_path / "start.png", "--prompt-at", 1.25, "a blue square"]
    arguments += ["--switch", "shot", "--save-memory", tmp_path / "clip.safetensors", "-o", tmp_path / "clip.mp4"]
    assert cli.main([str(a) for a in arguments]) in (0, None)
    info = video_info(tmp_path / "clip.mp4")
    assert info.fps == 24 and (info.width, info.height) == (64, 64)
    ClipRecord("a red circle", 0, 61, "key").write(tmp_path / "clip.json")
    finished = BatchClip("a red circle", 0, "key", tmp_path / "clip.json")
    assert finished.fault() == "", "a batch knows a clip of this rate again"
    assert [part["fps"] for part in read_clip_parts(tmp_path / "clip.safetensors")] == [24]
    memory = load_memory(tmp_path / "clip.safetensors")
    assert [(shot.start, shot.pinned) for shot in memory.shots] == [(8, 8)]
    assert cli.main(["inspect", str(tmp_path / "clip.safetensors")]) in (0, None)
    assert "shots:8,window:32,offset:8" in capsys.readouterr().out
