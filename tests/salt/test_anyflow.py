"""AnyFlow-FAR: equal to diffusers' own pipeline on random weights, for any step count, start and number of blocks."""

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch

from salt.checkpoints import CheckpointError, read_checkpoint
from salt.cli import main
from salt.errors import InputError
from salt.memory import KVMemory, MemoryPolicy, load_memory, save_memory
from salt.memory.far import FarMemory
from salt.memory.inspect import as_text
from salt.models.anyflow import AnyFlowTransformer3DModel
from salt.pipeline import SaltPipeline
from tests.helpers import tiny_system

pytestmark = pytest.mark.skipif(not hasattr(diffusers, "AnyFlowFARPipeline"), reason="diffusers has no AnyFlow-FAR")
TOLERANCE = 5e-5
SIZE = {"height": 48, "width": 80}  # 6 x 10 latents: their larger patches do not fill them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_system.anyflow_folder(tmp_path_factory.mktemp("anyflow") / "model")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SaltPipeline:
    loaded = SaltPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def reference(folder: Path):
    loaded = diffusers.AnyFlowFARPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def embeds(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(seed))


def noise(frames: int) -> torch.Tensor:
    return torch.randn(1, 16, frames, 6, 10, generator=torch.Generator().manual_seed(5))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def expected_latents(reference, partition, steps, start=None, guidance=1.0):
    frames = sum(partition)
    negative = {"negative_prompt_embeds": embeds(1)} if guidance > 1 else {}
    return reference(
        prompt_embeds=embeds(), latents=noise(frames), num_frames=4 * frames - 3, num_inference_steps=steps, **SIZE,
        chunk_partition=list(partition), video_latents=None if start is None else start.transpose(1, 2),
        guidance_scale=guidance, output_type="latent", return_dict=False, **negative,
    )[0]  # fmt: skip


@pytest.mark.parametrize(
    ("partition", "steps", "guidance"),
    [((1, 3, 3, 3, 3), 2, 1.0), ((1, 3, 3), 3, 2.5), pytest.param((1, 3, 3, 3, 3, 3), 4, 2.0, marks=pytest.mark.slow)],
)
def test_text_to_video_equals_diffusers(pipe, reference, partition, steps, guidance):
    frames = sum(partition)
    negative = {"negative_prompt_embeds": embeds(1)} if guidance > 1 else {}
    found = pipe(
        prompt_embeds=embeds(), latents=noise(frames), num_frames=4 * frames - 3, num_inference_steps=steps,
        guidance_scale=guidance, output_type="latent", **SIZE, **negative,
    )  # fmt: skip
    expected = expected_latents(reference, partition, steps, guidance=guidance)
    assert error(found.frames, expected) < TOLERANCE
    assert isinstance(found.memory, FarMemory) and found.memory.held == tuple(range(frames))


@pytest.mark.parametrize("given", [1, 4])
def test_image_and_video_starts_equal_diffusers(pipe, reference, given):
    """An image is one clean latent frame, a clip of 13 frames four of them: they are encoded, not generated."""
    start = torch.randn(1, 16, given, 6, 10, generator=torch.Generator().manual_seed(9))
    partition = (1, 3, 3, 3)
    found = pipe(
        prompt_embeds=embeds(), initial_latents=start, latents=noise(10)[:, :, given:], num_frames=37,
        num_inference_steps=2, output_type="latent", **SIZE,
    )  # fmt: skip
    assert error(found.frames, expected_latents(reference, partition, 2, start)) < TOLERANCE


def made(pipe, frames, **options):
    generator = torch.Generator().manual_seed(1)
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": generator, **SIZE, **options}
    return pipe(prompt_embeds=embeds(), num_frames=frames, **options)


def test_a_memory_saves_forks_and_extends(pipe, tmp_path, capsys):
    whole, first = made(pipe, 49), made(pipe, 25)
    save_memory(first.memory, tmp_path / "clip.safetensors")
    loaded = load_memory(tmp_path / "clip.safetensors", fingerprint=first.memory.fingerprint)
    fork = first.memory.fork()
    rest = [made(pipe, 21, memory=memory).frames for memory in (first.memory, loaded, fork)]
    assert all(torch.equal(torch.cat([first.frames, part], 2), whole.frames) for part in rest)
    assert whole.memory.context.far == 7 and whole.memory.context.blocks == (3, 3)
    full_bytes = 2 * 2 * 32 * 4 * 13 * 15
    assert whole.memory.nbytes < 0.7 * full_bytes + whole.memory.context.latents.numel() * 4
    assert main(["inspect", str(tmp_path / "clip.safetensors")]) == 0
    assert "far:2" in capsys.readouterr().out
    assert "in large patches 0-6, in usual ones 7-12" in as_text(loaded, 16)


def test_what_its_memory_does_not_allow_is_one_sentence(pipe, folder, tmp_path, capsys):
    memory = made(pipe, 37).memory
    with pytest.raises(InputError, match="frame: found 4, expected 0 or 10: a memory of far:2 has older blocks"):
        memory.trim(4)
    memory.trim(10)
    memory.trim(0)
    assert memory.held == () and memory.nbytes == 0
    with pytest.raises(InputError, match="memory_policy: found window:9, expected far:2, the memory that AnyFlow"):
        made(pipe, 13, memory_policy="window:9")
    with pytest.raises(InputError, match="memory_policy: found far with int8"):
        MemoryPolicy.parse("far:2,int8")
    with pytest.raises(InputError, match="found far:2, which only AnyFlow-FAR has"):
        tiny_system.pipeline()("a red circle", num_frames=9, memory_policy="far:2")
    with pytest.raises(InputError, match="policy: found far:2"):
        KVMemory(MemoryPolicy.parse("far:2"), memory.geometry)
    with pytest.raises(InputError, match="prompt_schedule: found recache, expected keep or cut"):
        pipe("a red circle", num_frames=25, prompt_schedule=[(0.5, "a circle", "recache")], **SIZE)
    with pytest.raises(InputError, match="prefer: found a preset that compiles, expected exact"):
        pipe.set_acceleration("fast")
    with pytest.raises(CheckpointError, match="holds AnyFlow-FAR's transformer, which is read as a part of"):
        read_checkpoint(folder / "transformer")
    assert main(["generate", "a red circle", "--model", str(folder), "--memory", "window:9"]) == 2
    assert "--memory: found window:9" in capsys.readouterr().err


def test_the_command_line_plays_a_folder(folder, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    command = ["generate", "a red circle moving right", "--model", str(folder), "--frames", "13", "--nfe", "3"]
    command += ["--width", "80", "--height", "48", "-o", str(clip), "--save-memory", str(tmp_path / "m.safetensors")]
    assert main(command) == 0 and clip.stat().st_size > 0
    more = ["generate", "a red circle moving right", "--model", str(folder), "--frames", "12", "-o", str(clip)]
    assert main([*more, "--extend", str(tmp_path / "m.safetensors")]) == 0
    assert load_memory(tmp_path / "m.safetensors").held == (0, 1, 2, 3)


def test_a_transformer_alone_is_played_with_other_components(pipe, folder):
    alone = SaltPipeline.from_single_file(folder / "transformer", parts=folder)
    assert alone.spec == replace(pipe.spec, shift=5.0)
    assert torch.equal(made(alone, 13, shift=3.0).frames, made(pipe, 13).frames)


def test_a_saved_pipeline_is_read_by_diffusers(pipe, folder, tmp_path):
    assert pipe.spec.shift == 3.0 and str(pipe.spec.policy) == "far:2" and pipe.spec.independent_first_frame
    pipe.save_pretrained(tmp_path / "again")
    again = SaltPipeline.from_pretrained(tmp_path / "again")
    assert again.spec == pipe.spec and isinstance(again.transformer, AnyFlowTransformer3DModel)
    theirs = diffusers.AnyFlowFARTransformer3DModel.from_pretrained(tmp_path / "again", subfolder="transformer")
    ours, saved = pipe.transformer.state_dict(), theirs.state_dict()
    assert ours.keys() == saved.keys() and all(torch.equal(ours[name], saved[name]) for name in ours)
