"""Scores of an arm's student: prompt following, picture quality, motion, long clips, semigroup defect."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from salt.checkpoints import load_student, read_checkpoint
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.word_embedder import WordEmbedder
from salt.semigroup_defect import OPERATORS
from salt.spec import StudentSpec
from train.evaluation.sampling import load_vae
from train.evaluation.semigroup_defect import DefectSettings, measure_defect
from train.evaluation.shapebench import CLIP_FRAMES, PROMPTS, score_model
from train.shapes.bench import ClipScore
from train.shapes.world import SPEEDS, parse_caption

STEP_COUNTS = (4, 2)
SINK_WINDOW = "sink+window"
SINK_WINDOW_POLICY = MemoryPolicy("sink", window=12, sink=3)
LONG_CLIP_FRAMES = 120  # latent
STUDY_SEED = 5000  # used by no other table


def summarize_scores(scores: list[ClipScore]) -> dict[str, float]:
    """Shares and means over clips.

    semantics: mean of the verdicts on content. quality: mean of those on sharpness, steadiness and drift. motion:
    distance travelled, relative to the prompt's (1 is right; consistent frames can hide lost motion). drift: change of
    the object's appearance from the clip's first fifth to its last (0 is right).
    """
    return {
        "passed": fmean(s.passed for s in scores),
        "semantics": fmean(fmean((s.color, s.shape, s.direction, s.speed, s.count)) for s in scores),
        "quality": fmean(fmean((s.sharp, s.steady, s.no_drift)) for s in scores),
        "motion": fmean(s.pixels_per_frame / SPEEDS[parse_caption(s.caption).speed] for s in scores),
        "drift": fmean(s.drift for s in scores),
        "color": fmean(s.color for s in scores),
        "shape": fmean(s.shape for s in scores),
        "direction": fmean(s.direction for s in scores),
        "count": fmean(s.count for s in scores),
    }


def score_student(path: Path, vae: Path, prompts: int = len(PROMPTS), device: str = "cpu") -> dict[str, Any]:
    """Scores of an exported student by `NFE / memory / latent frames`, and its semigroup defects.

    prompts: of ShapeBench's list, held-out ones first; every second with sink + window, every eighth for long clips.
    Clips are decoded in bfloat16, which changes a pixel by 0.0015 of 2 on average.
    """
    spec = read_checkpoint(path).spec or StudentSpec()
    student = load_student(path, dtype=torch.float32, device=device)
    decoder = load_vae(vae, device, torch.bfloat16)
    memories = (
        {"full": MemoryPolicy(), SINK_WINDOW: SINK_WINDOW_POLICY} if spec.frames_per_block else {"none": spec.policy}
    )
    if spec.policy.relative:
        memories = {"relative": spec.policy}
    by_setting: dict[str, dict[str, float]] = {}
    for steps in STEP_COUNTS:
        for name, policy in memories.items():
            for frames in (CLIP_FRAMES, LONG_CLIP_FRAMES) if spec.frames_per_block else (CLIP_FRAMES,):
                share = 8 if frames == LONG_CLIP_FRAMES else 2 if name == SINK_WINDOW else 1
                scenes = PROMPTS[:prompts][::share]
                sampled_as = StudentSpec(spec.frames_per_block, spec.steps, spec.shift, policy)
                scores = score_model(student, decoder, steps, scenes, frames, seed=STUDY_SEED, spec=sampled_as)
                by_setting[f"{steps} / {name} / {frames}"] = summarize_scores(scores)
    text = Conditioning(WordEmbedder().encode([s.caption for s in PROMPTS[: min(prompts, 8)]]).to(device))
    settings = DefectSettings.of(spec, frames=CLIP_FRAMES, height=8, width=8)
    defects = measure_defect(student, text, settings)
    means = {o: fmean(v for (_, by), v in defects.items() if by == o) for o in OPERATORS}
    return {"scores": by_setting, "defect": means}
