"""Scores on ShapeBench: 48 prompts, the 24 held-out captions and 24 trained ones, at several step counts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from salt.checkpoints import load_student, read_checkpoint
from salt.conditioning import Conditioning
from salt.models.transformer_salt import CausalModel, SaltTransformer3DModel
from salt.models.word_embedder import WordEmbedder
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.sampling import BidirectionalModel, sample_bidirectional
from salt.schedule import Schedule
from salt.spec import StudentSpec
from train.experiments.tiny.run_state import placed
from train.experiments.tiny.teacher import sample_teacher
from train.experiments.tiny.vae import channels_last, decode, wan_statistics
from train.shapes.bench import ClipScore, as_rows, score_clip, score_table, summarize
from train.shapes.world import HELD_OUT_SCENES, TRAIN_SCENES, Scene

PROMPTS = (*HELD_OUT_SCENES, *TRAIN_SCENES[::5])
TEACHER_STEPS = 50
TEACHER_GUIDANCE = 2.0  # of whole clips; 1 is none
BLOCK_GUIDANCE = 2.5  # of a causal teacher, as in the trajectories of the initial student (`start.py`)
BATCH = 8
SHORT = 21  # latent frames
WARM = 3  # latent frames that the causal decoder sees before the last SHORT ones
SPEC = StudentSpec()  # of a student that does not say
SEED = 2000  # of reported tables; salt-tiny's weights were chosen among candidates on 1000


def load_vae(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """The VAE of a diffusers folder, laid out for speed, frozen."""
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype)
    return placed(channels_last(vae), device).requires_grad_(False)


def _transformer(path: Path, device: str) -> SaltTransformer3DModel:
    return placed(load_student(path, dtype=torch.float32), device)


@torch.no_grad()
def decode_latents(vae: AutoencoderKLWan, latents_BCFHW: Tensor) -> Tensor:
    """Normalised latents to pixels [B, 3, 4F-3, 64, 64] in [-1, 1]."""
    mean, std = (s.to(latents_BCFHW) for s in wan_statistics(vae))
    return decode(vae, (latents_BCFHW * std + mean).to(vae.dtype)).float().clamp(-1, 1)


@torch.no_grad()
def student_clips(
    student: SaltTransformer3DModel,
    text: Tensor,
    steps: int,
    frames: int,
    seed: int,
    spec: StudentSpec = SPEC,
) -> Tensor:
    """Latents [B, 16, frames, 8, 8] as the student makes them by its spec; clip i has seed `seed` + i."""
    settings = RolloutSettings(schedule=Schedule.of(steps, spec.shift))
    if spec.frames_per_block == 0:
        noise = SeededNoise(seed, text.shape[0], 16, 8, 8, device=text.device)
        settings = replace(settings, stepping="ode")
        return sample_bidirectional(BidirectionalModel(student), Conditioning(text), noise, frames, settings)
    return _in_blocks(student, text, frames, seed, spec, settings)


@torch.no_grad()
def teacher_clips(
    teacher: SaltTransformer3DModel, text: Tensor, steps: int, frames: int, seed: int, spec: StudentSpec
) -> Tensor:
    """Latents [B, 16, frames, 8, 8] of a teacher: Euler steps with guidance, whole clips or in blocks as `spec` says.

    Noise as in `student_clips`, but for whole clips.
    """
    if spec.frames_per_block == 0:
        return sample_teacher(teacher, text, frames, steps, TEACHER_GUIDANCE, torch.Generator().manual_seed(seed))
    settings = RolloutSettings(schedule=Schedule.of(steps, spec.shift), stepping="ode", guidance=BLOCK_GUIDANCE)
    return _in_blocks(teacher, text, frames, seed, spec, settings)


def _in_blocks(
    model: SaltTransformer3DModel, text: Tensor, frames: int, seed: int, spec: StudentSpec, settings: RolloutSettings
) -> Tensor:
    """A rollout by `settings`, in blocks and with the memory of `spec`; clip i has seed `seed` + i."""
    batch = text.shape[0]
    noise = SeededNoise(seed, batch, 16, 8, 8, device=text.device)
    memory = model.new_memory(spec.policy, batch, 8, 8, frames)
    settings = replace(
        settings,
        frames_per_block=spec.frames_per_block,
        independent_first_frame=spec.independent_first_frame,
        fuse=True,
    )
    negative = Conditioning(torch.zeros_like(text)) if settings.guidance != 1 else None
    blocks = rollout(CausalModel(model), Conditioning(text), memory, noise, frames, settings, negative=negative)
    return torch.cat([block.latents for block in blocks], dim=2)


Clips = Iterator[tuple[tuple[Scene, ...], Tensor]]


def sample_prompts(
    model: SaltTransformer3DModel,
    steps: int,
    prompts: tuple[Scene, ...] = PROMPTS,
    frames: int = SHORT,
    teacher: bool = False,
    seed: int = SEED,
    spec: StudentSpec = SPEC,
) -> Clips:
    """Latents [B, 16, frames, 8, 8] of one clip per prompt, BATCH at a time. Seeds are fixed, so a table can be made
    again.

    teacher: sampled with guidance. spec: how the model makes clips.
    """
    words = WordEmbedder()
    device = next(model.parameters()).device
    for first in range(0, len(prompts), BATCH):
        scenes = prompts[first : first + BATCH]
        text = words.encode([scene.caption for scene in scenes]).to(device)
        yield scenes, (teacher_clips if teacher else student_clips)(model, text, steps, frames, seed + first, spec)


def _scored(vae: AutoencoderKLWan, scenes: Sequence[Scene], latents: Tensor, skip: int = 0) -> list[ClipScore]:
    pixels = decode_latents(vae, latents)[:, :, skip:].cpu()
    return [score_clip(clip, scene) for clip, scene in zip(pixels, scenes, strict=True)]


def score_model(
    model: SaltTransformer3DModel, vae: AutoencoderKLWan, steps: int, *args: Any, **options: Any
) -> list[ClipScore]:
    """Every clip of `sample_prompts` (same arguments), decoded and scored whole."""
    return [s for scenes, z in sample_prompts(model, steps, *args, **options) for s in _scored(vae, scenes, z)]


def score_ends(
    model: SaltTransformer3DModel, vae: AutoencoderKLWan, steps: int, **options: Any
) -> tuple[list[ClipScore], list[ClipScore]]:
    """As `score_model`, of the first and of the last 81 pixel frames of clips longer than SHORT latent frames."""
    first: list[ClipScore] = []
    last: list[ClipScore] = []
    for scenes, latents in sample_prompts(model, steps, **options):
        first += _scored(vae, scenes, latents[:, :, :SHORT])
        last += _scored(vae, scenes, latents[:, :, -SHORT - WARM :], skip=4 * WARM)  # as many pixel frames again
    return first, last


def split_rows(name: str, scores: list[ClipScore]) -> dict[str, list[ClipScore]]:
    """All prompts, and the held-out ones alone, as rows of a table."""
    held_out = {scene.caption for scene in HELD_OUT_SCENES}
    return {name: scores, f"{name}, held out": [s for s in scores if s.caption in held_out]}


def _student_rows(
    model: SaltTransformer3DModel,
    vae: AutoencoderKLWan,
    steps: int,
    frames: int,
    seeds: Sequence[int],
    spec: StudentSpec,
) -> dict[str, list[ClipScore]]:
    name = f"student, {steps} steps"
    if frames <= SHORT:
        scores = [s for seed in seeds for s in score_model(model, vae, steps, frames=frames, seed=seed, spec=spec)]
        return split_rows(name, scores)
    ends = [score_ends(model, vae, steps, frames=frames, seed=seed, spec=spec) for seed in seeds]
    first, last = ([s for pair in ends for s in pair[end]] for end in (0, 1))
    return split_rows(f"{name}, first {SHORT} of {frames}", first) | split_rows(
        f"{name}, last {SHORT} of {frames}", last
    )


def evaluate(
    student: Path | None,
    vae: Path,
    out: Path,
    teacher: Path | None = None,
    steps: tuple[int, ...] = (2, 4, 8),
    device: str = "cpu",
    seeds: Sequence[int] = (SEED,),
    frames: int = SHORT,
) -> str:
    """Write `out`.md (the table, returned too) and `out`.json (every clip's verdicts and measurements).

    seeds: a clip of every prompt for each. frames: latent frames of the student's clips; where they are longer than
    SHORT, both ends are scored. Raises ValueError where those would be one.
    """
    if SHORT < frames < SHORT + WARM:
        raise ValueError(f"frames: found {frames}, expected up to {SHORT}, or from {SHORT + WARM} on (two ends)")
    decoder = load_vae(vae, device)
    rows: dict[str, Sequence[ClipScore]] = {}
    if teacher is not None:
        model, spec = _transformer(teacher, device), read_checkpoint(teacher).spec or SPEC
        options = {"teacher": True, "spec": spec}
        scores = [s for seed in seeds for s in score_model(model, decoder, TEACHER_STEPS, seed=seed, **options)]
        rows |= split_rows(f"teacher, {TEACHER_STEPS} steps", scores)
    if student is not None:
        model, spec = _transformer(student, device), read_checkpoint(student).spec or SPEC
        for count in steps:
            rows |= _student_rows(model, decoder, count, frames, seeds, spec)
    table = score_table(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(table + "\n")
    full = {name: {"summary": summarize(scores), "clips": as_rows(scores)} for name, scores in rows.items()}
    out.with_suffix(".json").write_text(json.dumps(full) + "\n")
    return table
