"""ShapeBench scores of a student or teacher: 24 held-out and 24 trained captions, at several step counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from salt.checkpoints import load_student, read_checkpoint
from salt.errors import InputError
from salt.io.atomic import write_text
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.models.word_embedder import WordEmbedder
from salt.schedule import step_list
from salt.spec import StudentSpec
from train.data.shards import with_progress
from train.evaluation.sampling import DEFAULT_SPEC, decode_latents, load_vae, student_clips, teacher_clips
from train.shapes.bench import ClipScore, as_rows, score_clip, score_table, summarize
from train.shapes.world import HELD_OUT_SCENES, TRAIN_SCENES, Scene

PROMPTS = (*HELD_OUT_SCENES, *TRAIN_SCENES[::5])
TEACHER_STEPS = 50
CLIPS_PER_BATCH = 8
CLIP_FRAMES = 21  # latent frames of a reported clip: 81 pixel frames
DECODER_WARMUP = 3  # latent frames that the causal decoder sees before the last CLIP_FRAMES of a long clip
REPORTED_SEED = 2000  # of reported tables; salt-tiny's weights were chosen among candidates on other seeds

Scores = TypeVar("Scores")  # of a batch: a list, or one for each end of its clips


def sample_prompts(
    model: SaltTransformer3DModel,
    steps: int,
    prompts: Sequence[Scene] = PROMPTS,
    frames: int = CLIP_FRAMES,
    teacher: bool = False,
    seed: int = REPORTED_SEED,
    spec: StudentSpec = DEFAULT_SPEC,
) -> Iterator[tuple[Sequence[Scene], Tensor]]:
    """Scenes and latents [B, 16, frames, 8, 8] of one clip per prompt, CLIPS_PER_BATCH at a time.

    Seeds are fixed, so that a table can be reproduced. teacher: sample with guidance. spec: blocks, memory and shift.
    """
    words = WordEmbedder()
    device = next(model.parameters()).device
    for first in range(0, len(prompts), CLIPS_PER_BATCH):
        scenes = prompts[first : first + CLIPS_PER_BATCH]
        text = words.encode([scene.caption for scene in scenes]).to(device)
        yield scenes, (teacher_clips if teacher else student_clips)(model, text, steps, frames, seed + first, spec)


def _scored(vae: AutoencoderKLWan, scenes: Sequence[Scene], latents: Tensor, skip: int = 0) -> list[ClipScore]:
    """Scores of decoded clips without their first `skip` pixel frames."""
    pixels = decode_latents(vae, latents)[:, :, skip:].cpu()
    return [score_clip(clip, scene) for clip, scene in zip(pixels, scenes, strict=True)]


def score_model(
    model: SaltTransformer3DModel, vae: AutoencoderKLWan, steps: int, prompts: Sequence[Scene] = PROMPTS,
    frames: int = CLIP_FRAMES, teacher: bool = False, seed: int = REPORTED_SEED, spec: StudentSpec = DEFAULT_SPEC,
) -> list[ClipScore]:  # fmt: skip
    """Scores of one clip per prompt, decoded whole; see `sample_prompts`."""
    clips = sample_prompts(model, steps, prompts, frames, teacher, seed, spec)
    return [score for scenes, latents in clips for score in _scored(vae, scenes, latents)]


def score_ends(
    model: SaltTransformer3DModel,
    vae: AutoencoderKLWan,
    steps: int,
    prompts: Sequence[Scene] = PROMPTS,
    *,
    frames: int,
    seed: int = REPORTED_SEED,
    spec: StudentSpec = DEFAULT_SPEC,
) -> tuple[list[ClipScore], list[ClipScore]]:
    """Scores of the first and of the last 81 pixel frames of one long clip per prompt; see `sample_prompts`.

    frames: latent frames, at least CLIP_FRAMES + DECODER_WARMUP.
    """
    first: list[ClipScore] = []
    last: list[ClipScore] = []
    for scenes, latents in sample_prompts(model, steps, prompts, frames, seed=seed, spec=spec):
        first += _scored(vae, scenes, latents[:, :, :CLIP_FRAMES])
        # One pixel frame from the first latent frame decoded, four from each later one: this leaves 81.
        last += _scored(vae, scenes, latents[:, :, -CLIP_FRAMES - DECODER_WARMUP :], skip=4 * DECODER_WARMUP)
    return first, last


def split_rows(name: str, scores: list[ClipScore]) -> dict[str, list[ClipScore]]:
    """Rows of a table: all prompts, and the held-out ones alone."""
    held_out = {scene.caption for scene in HELD_OUT_SCENES}
    return {name: scores, f"{name}, held out": [s for s in scores if s.caption in held_out]}


def _batches(
    name: str, seeds: Sequence[int], prompts: Sequence[Scene], score: Callable[..., Scores]
) -> Iterator[Scores]:
    """What `score` returns for each batch of the prompts, for each seed, with a line on time left after each."""
    firsts = [(seed, i) for seed in seeds for i in range(0, len(prompts), CLIPS_PER_BATCH)]
    for seed, first in with_progress(firsts, name, f"batches of {CLIPS_PER_BATCH} clips"):
        yield score(prompts=prompts[first : first + CLIPS_PER_BATCH], seed=seed + first)


def _student_rows(
    model: SaltTransformer3DModel,
    vae: AutoencoderKLWan,
    steps: int,
    frames: int,
    seeds: Sequence[int],
    prompts: Sequence[Scene],
    spec: StudentSpec,
) -> dict[str, list[ClipScore]]:
    name = f"student, {steps} steps"
    if first_steps := spec.schedule.with_steps(step_list(steps, spec.rule)).first_steps:
        name += f", {len(first_steps)} in the first block"
    if frames <= CLIP_FRAMES:
        score = partial(score_model, model, vae, steps, frames=frames, spec=spec)
        return split_rows(name, [s for batch in _batches(name, seeds, prompts, score) for s in batch])
    ends = list(_batches(name, seeds, prompts, partial(score_ends, model, vae, steps, frames=frames, spec=spec)))
    first, last = ([s for pair in ends for s in pair[end]] for end in (0, 1))
    return split_rows(f"{name}, first {CLIP_FRAMES} of {frames}", first) | split_rows(
        f"{name}, last {CLIP_FRAMES} of {frames}", last
    )


def _load(path: Path, device: str) -> tuple[SaltTransformer3DModel, StudentSpec]:
    return load_student(path, dtype=torch.float32, device=device), read_checkpoint(path).spec or DEFAULT_SPEC


def evaluate(
    student: Path | None,
    vae: Path,
    out: Path,
    teacher: Path | None = None,
    steps: tuple[int, ...] = (2, 4, 8),
    device: str = "cpu",
    seeds: Sequence[int] = (REPORTED_SEED,),
    frames: int = CLIP_FRAMES,
    prompts: Sequence[Scene] = PROMPTS,
    first_steps: int | None = None,
) -> str:
    """Write `out`.md (the table, returned too) and `out`.json (every clip's verdicts and measurements).

    Prints the time left after each batch. first_steps: step count of a clip's first block, where it is more; None for
    the student's own. seeds: a clip of every prompt for each. frames: latent frames of the
    student's clips; where they are longer than CLIP_FRAMES, both ends are scored. Raises ValueError where the ends
    would overlap almost entirely.
    """
    if CLIP_FRAMES < frames < CLIP_FRAMES + DECODER_WARMUP:
        longest, long = CLIP_FRAMES, CLIP_FRAMES + DECODER_WARMUP
        raise InputError("frames", f"found {frames}, expected at most {longest}, or {long} or more to score both ends")
    decoder = load_vae(vae, device)
    rows: dict[str, Sequence[ClipScore]] = {}
    if teacher is not None:
        model, spec = _load(teacher, device)
        name = f"teacher, {TEACHER_STEPS} steps"
        score = partial(score_model, model, decoder, TEACHER_STEPS, teacher=True, spec=spec)
        rows |= split_rows(name, [s for batch in _batches(name, seeds, prompts, score) for s in batch])
    if student is not None:
        model, spec = _load(student, device)
        if first_steps is not None:
            if not spec.frames_per_block or first_steps <= min(steps):
                raise InputError("first_steps", "has no effect without blocks of fewer steps", first_steps)
            spec = replace(spec, first_steps=step_list(first_steps))
        for count in steps:
            rows |= _student_rows(model, decoder, count, frames, seeds, prompts, spec)
    table = score_table(rows)
    write_text(out.with_name(f"{out.name}.md"), table + "\n")
    full = {name: {"summary": summarize(scores), "clips": as_rows(scores)} for name, scores in rows.items()}
    write_text(out.with_name(f"{out.name}.json"), json.dumps(full) + "\n")
    return table
