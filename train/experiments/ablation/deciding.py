"""The deciding experiment (group 5): its starts, trainings and scores, one small JSON per arm and training seed.

All arms and seeds begin with one start. Clips are as long as the training's rollouts; every list of noise samples its
own part of the prompts, so that all prompts are sampled under as many lists.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from salt.checkpoints import load_student, read_checkpoint
from salt.conditioning import Conditioning
from salt.io.atomic import write_text
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.models.word_embedder import WordEmbedder
from salt.semigroup_defect import OPERATORS
from salt.spec import StudentSpec
from train.config.recipe import Recipe
from train.distill import distill, trainer_of
from train.evaluation.sampling import decode_latents, load_vae
from train.evaluation.semigroup_defect import DefectSettings, measure_defect
from train.evaluation.shapebench import PROMPTS, sample_prompts
from train.experiments.ablation.arms import CURVED_START, FORCED, Arm
from train.experiments.ablation.curved_start import FRAMES, train_curved_start
from train.experiments.ablation.scaled_semigroup import ScaledSemigroupTrainer
from train.export import recipe_hash
from train.shapes.bench import score_clip
from train.shapes.drawn_distance import drawn_distance

STEP_COUNTS = (4, 2)
NOISE_LISTS = 12
PARTS = 3  # list k samples every PARTS-th prompt, from the (k mod PARTS)-th on
FIRST_SEED, SEEDS_PER_LIST = 20000, 100  # of a list's noise; used by no other table
DEFECT_PROMPTS = 16
VERDICTS = ("color", "shape", "direction", "speed", "count", "passed")


def record_path(out: Path, arm: Arm, seed: int) -> Path:
    return out / "deciding" / f"{arm.name}-seed-{seed}.json"


def run_deciding_arm(arm: Arm, recipe: Recipe, out: Path) -> None:
    """Train (or resume) and score one arm of one seed, unless its scores are recorded."""
    path = record_path(out, arm, recipe.run.seed)
    if path.exists():
        return
    if not (CURVED_START / "final").exists():
        train_curved_start(CURVED_START, Path(FORCED))
    began = time.process_time()
    make = partial(ScaledSemigroupTrainer, share=arm.sc_share) if arm.sc_share else trainer_of
    student = distill(recipe, "single", make=make)
    trained = time.process_time()
    found = score_student(student, Path(recipe.models.vae))
    facts = {
        "arm": arm.name,
        "seed": recipe.run.seed,
        "recipe": recipe_hash(replace(recipe, run=replace(recipe.run, seed=0))),
        "updates": recipe.optimisation.updates,
        "start": weights_digest(CURVED_START / "final/diffusion_pytorch_model.safetensors"),
        "student": weights_digest(student),
        "processor_s": {"training": round(trained - began), "scores": round(time.process_time() - trained)},
    }
    write_text(path, json.dumps({**facts, **found}, indent=1) + "\n")


def weights_digest(path: Path) -> str:
    """The sha256 of a file of weights: its tensors, or `final` of the curved start."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def score_student(path: Path, vae: Path) -> dict[str, Any]:
    """Every clip's verdicts (a digit each) and its distance to the drawn clip, by step count, and the mean defects.

    Clips are in order of lists, then prompts. Decoded in bfloat16, as in the study's other tables.
    """
    spec = read_checkpoint(path).spec or StudentSpec()
    student, decoder = load_student(path, dtype=torch.float32), load_vae(vae, dtype=torch.bfloat16)
    clips = {str(count): score_steps(student, decoder, count, spec) for count in STEP_COUNTS}
    text = Conditioning(WordEmbedder().encode([s.caption for s in PROMPTS[:: len(PROMPTS) // DEFECT_PROMPTS]]))
    defects = measure_defect(student, text, DefectSettings.of(spec, frames=FRAMES, height=8, width=8))
    return {"defect": {o: fmean(v for (_, by), v in defects.items() if by == o) for o in OPERATORS}, "clips": clips}


def score_steps(student: SaltTransformer3DModel, decoder: Any, count: int, spec: StudentSpec) -> dict[str, Any]:
    """The clips of one step count."""
    verdicts: dict[str, str] = dict.fromkeys(VERDICTS, "")
    distances: list[float] = []
    for k in range(NOISE_LISTS):
        scenes = PROMPTS[k % PARTS :: PARTS]
        sampled = sample_prompts(student, count, scenes, FRAMES, seed=FIRST_SEED + SEEDS_PER_LIST * k, spec=spec)
        for part, latents in sampled:
            for pixels, scene in zip(decode_latents(decoder, latents), part, strict=True):
                score = score_clip(pixels, scene)
                verdicts = {name: row + str(int(getattr(score, name))) for name, row in verdicts.items()}
                distances.append(round(drawn_distance(pixels, scene), 4))
    return {**verdicts, "distance": distances}
