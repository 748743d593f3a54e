"""Trains salt-tiny from scratch: all stages in order, and the files that are shipped.

vae -> latents -> teacher -> student (teacher forcing, ODE regression, Salt's distillation, adversarial stage) -> ship.
Every stage resumes where it was interrupted and skips what is finished, so the command can be repeated at any time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from salt.checkpoints import load_student, save_diffusers, save_wan
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.pipeline import SaltPipeline
from salt.schedule import STEP_LISTS
from salt.spec import StudentSpec
from train.distill import distill
from train.experiments.ablation.arms import arms_named
from train.experiments.ablation.runner import recipe_of
from train.experiments.tiny import teacher, teacher_forcing, vae
from train.experiments.tiny.adversarial import AdversarialStage, train_adversarial
from train.experiments.tiny.cpu_workers import run_workers
from train.experiments.tiny.latent_dataset import CLIPS_PER_SHARD, encode_clips
from train.experiments.tiny.ode_regression import train_start
from train.experiments.tiny.training_loop import ClipPhase
from train.monitoring.plots import plot_curve

STAGES = ("vae", "teacher", "student")
TEACHER_ASSETS = Path(__file__).parents[2] / "assets"
DISTILLED_ARM = "all"  # of the study
# Of the student's steps: fits latents of 8x8, where Wan's frame sizes take 5 (docs/study.md).
SHIFT = 3.0
# Beyond the study's arm: more updates, more of them at 2 steps, and an average over the last two hundred, because
# single updates move a student further than it learns in them.
DISTILLATION = (
    "optimisation.updates=1500",
    "optimisation.ema=0.995",
    "rollout.share={8: 0.2, 4: 0.3, 2: 0.5}",
    f"rollout.shift={SHIFT}",
)
# Relative positions keep clips of any length within the positions seen in training (docs/study.md).
SPEC = StudentSpec(steps=STEP_LISTS[4], shift=SHIFT, policy=MemoryPolicy("relative", window=12, sink=3))
WORDS = {"dim": 4096, "max_length": 16}
CURVES = {  # plots beside the model card: stage folder, title
    "vae": "VAE: weighted reconstruction loss, PSNR on held-out clips",
    "teacher": "Teacher: flow matching",
    "forcing": "Student: teacher forcing",
    "start": "Student: regression on the causal teacher's trajectories",
    "finish": "Student: Salt and a discriminator on real clips",
}


@dataclass(frozen=True)
class Budget:
    """Lengths of all stages. `quick` takes minutes and shows that every stage learns; its clips are still poor."""

    vae: tuple[vae.Phase, ...]
    clips: int
    teacher: tuple[ClipPhase, ...]
    forcing: tuple[ClipPhase, ...]
    start: dict[str, int]
    distillation: tuple[str, ...]
    adversarial: AdversarialStage


BUDGETS = {
    "full": Budget(
        vae.FULL_PHASES,
        9120,
        teacher.FULL_PHASES,
        teacher_forcing.FORCING_PHASES,
        {"clips": 1024, "steps": 1000},
        DISTILLATION,
        AdversarialStage(),
    ),
    "quick": Budget(
        vae.QUICK_PHASES,
        CLIPS_PER_SHARD,
        teacher.QUICK_PHASES,
        tuple(replace(phase, steps=100, batch=4) for phase in teacher_forcing.FORCING_PHASES[:2]),
        {"clips": 4, "steps": 10},
        ("optimisation.updates=2", "optimisation.compile=false"),
        AdversarialStage(warmup=3, steps=3, compiled=False),
    ),
}


def _run_unless_done(final: Path, workers: int, stage: Callable[..., object], *arguments: object) -> None:
    """Run a stage in `workers` processes unless its result is in `final`."""
    if not (final / "config.json").exists():
        run_workers(workers, stage, *arguments)


def run_stage(stage: str, out: Path, budget: Budget, device: str = "cpu", workers: int = 1) -> None:
    """Run one stage in `out`. Raises FileNotFoundError where the result of the stage before it is missing."""
    vae_folder, latents = out / "vae", out / "latents"
    if stage == "vae":
        _run_unless_done(vae_folder / "final", 1, vae.train_vae, vae_folder, budget.vae, 1, device)
        return
    _require(vae_folder / "frozen", "vae")
    if stage == "teacher":
        run_workers(workers, encode_clips, vae_folder / "frozen", latents, budget.clips, 7, device)
        _run_unless_done(
            out / "teacher/final", workers, teacher.train_teacher, out / "teacher", latents, budget.teacher, 2, device
        )
        return
    _require(out / "teacher" / "final", "teacher")
    forced = out / "forcing" / "final"
    _run_unless_done(
        forced,
        workers,
        teacher_forcing.train_forcing,
        out / "forcing",
        out / "teacher/final",
        latents,
        budget.forcing,
        3,
        device,
    )
    _run_unless_done(out / "start/final", 1, partial(train_start, device=device, **budget.start), out / "start", forced)
    train_student(out, budget, device)


def distill_student(out: Path, budget: Budget) -> Path:
    """Distil this run's initial student as the study's DISTILLED_ARM, seed 0; returns the student's file."""
    models = (f"models.student={out}/start/final", f"models.teacher={out}/forcing/final", f"models.vae={_vae(out)}")
    (arm,) = arms_named([DISTILLED_ARM])
    recipe = recipe_of(arm, 0, out, (*models, *budget.distillation))
    path = Path(recipe.run.out) / "export" / f"{arm.name}.safetensors"
    return path if path.exists() else distill(recipe, "single")


def train_student(out: Path, budget: Budget, device: str = "cpu") -> Path:
    """Distillation and the adversarial stage; returns the student's file."""
    student, forced = distill_student(out, budget), out / "forcing/final"
    return train_adversarial(out / "finish", student, forced, out / "latents", budget.adversarial, SHIFT, device=device)


def _vae(out: Path) -> Path:
    """The VAE with the most trained decoder that exists."""
    return next(f for f in (out / "vae/final", out / "vae/frozen") if f.exists())


def _require(folder: Path, stage: str) -> None:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no result of the {stage} stage; run --stage {stage} first")


def quantize_for_shipping(model: SaltTransformer3DModel) -> SaltTransformer3DModel:
    """Cast `model` in place: matrices to float8, all else to float16. Half the size, for teachers.

    Changes the flow by 2.3 % (root mean square, measured on the causal teacher).
    """
    for parameter in model.parameters():
        matrix = parameter.ndim == 2 and parameter.numel() >= 2**16
        parameter.data = parameter.data.to(torch.float8_e4m3fn if matrix else torch.float16)
    return model


def ship(out: Path, assets: Path, student_to: Path, budget: Budget) -> None:
    """Export the results of `out`.

    `student_to`: the pipeline in fp16 and its training curves. `assets`: both teachers, in float8. `out`:
    salt_tiny.safetensors, the student in Wan's names, for ComfyUI.
    """
    vae_model = AutoencoderKLWan.from_pretrained(_vae(out))
    vae_model.register_to_config(_name_or_path="salt-tiny")
    student = load_student(train_student(out, budget), dtype=torch.float32)
    pipe = SaltPipeline(student, vae_model, student=SPEC, words=WORDS, default_size=(64, 64))
    pipe.to(torch.float16).save_pretrained(student_to)
    save_diffusers(student, student_to / "transformer", spec=SPEC)  # again, with the spec in the file itself
    save_wan(student, out / "salt_tiny.safetensors", spec=SPEC, dtype=torch.float16)
    whole = StudentSpec(frames_per_block=0)
    for name, stage, spec in (("teacher", "teacher", whole), ("forced", "forcing", StudentSpec())):
        model = SaltTransformer3DModel.from_pretrained(out / stage / "final")
        save_diffusers(quantize_for_shipping(model), assets / f"tiny_{name}", spec=spec)
    for stage, title in CURVES.items():
        if (out / stage / "curve.csv").exists():
            plot_curve(out / stage / "curve.csv", student_to / f"{stage}.png", title)
            shutil.copy(out / stage / "curve.csv", student_to / f"{stage}.csv")
