"""salt-tiny from nothing: the stages in order, and the shipped files at the end.

vae -> latents -> teacher -> student (teacher forcing, the initial student, Salt's distillation, and once more beside a
judge of real clips) -> ship. Every stage takes up where it was killed and passes over what is done, so the one command
can be given again at any time.
"""

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
from train.experiments.tiny.adversarial import Finish, train_finish
from train.experiments.tiny.cpu_workers import run_workers
from train.experiments.tiny.latent_dataset import CLIPS_PER_SHARD, encode_clips
from train.experiments.tiny.ode_regression import train_start
from train.experiments.tiny.training_loop import ClipPhase
from train.monitoring.plots import plot_curve

STAGES = ("vae", "teacher", "student")
TEACHER_ASSETS = Path(__file__).parents[2] / "assets"
SHIPPED = "all"
# Of the student's steps: what latents of 8x8 want, where Wan's pictures want 5 (docs/study.md).
SHIFT = 3.0
# Beyond the study's arm: more updates, more of them at the two steps that are hardest, and an average over the last two
# hundred, because from one update to the next a student wanders further than it learns.
LONGER = (
    "optimisation.updates=1500",
    "optimisation.ema=0.995",
    "rollout.share={8: 0.2, 4: 0.3, 2: 0.5}",
    f"rollout.shift={SHIFT}",
)
# Relative positions keep a clip of any length within what training showed (docs/study.md).
SPEC = StudentSpec(steps=STEP_LISTS[4], shift=SHIFT, policy=MemoryPolicy("relative", window=12, sink=3))
WORDS = {"dim": 4096, "max_length": 16}
CURVES = {  # the plot kept next to the model card: stage folder, title
    "vae": "VAE: weighted reconstruction loss, PSNR on held-out clips",
    "teacher": "Teacher: flow matching",
    "forcing": "Student: teacher forcing",
    "start": "Student: regression on the causal teacher's trajectories",
    "finish": "Student: Salt beside a judge of real clips",
}


@dataclass(frozen=True)
class Budget:
    """How much of everything. `quick` shows that every stage learns, in minutes; its clips are no good yet."""

    vae: tuple[vae.Phase, ...]
    clips: int
    teacher: tuple[ClipPhase, ...]
    forcing: tuple[ClipPhase, ...]
    start: dict[str, int]
    distillation: tuple[str, ...]
    finish: Finish


BUDGETS = {
    "full": Budget(
        vae.FULL_PHASES,
        9120,
        teacher.FULL_PHASES,
        teacher_forcing.FORCING_PHASES,
        {"clips": 1024, "steps": 1000},
        LONGER,
        Finish(),
    ),
    "quick": Budget(
        vae.QUICK_PHASES,
        CLIPS_PER_SHARD,
        teacher.QUICK_PHASES,
        tuple(replace(phase, steps=100, batch=4) for phase in teacher_forcing.FORCING_PHASES[:2]),
        {"clips": 4, "steps": 10},
        ("optimisation.updates=2", "optimisation.compile=false"),
        Finish(waits=3, steps=3, compiled=False),
    ),
}


def _unless(done: Path, workers: int, stage: Callable[..., object], *arguments: object) -> None:
    if not (done / "config.json").exists():
        run_workers(workers, stage, *arguments)


def run_stage(stage: str, out: Path, budget: Budget, device: str = "cpu", workers: int = 1) -> None:
    """Run one stage in `out`. The stages before it must have left theirs there."""
    vae_folder, latents = out / "vae", out / "latents"
    if stage == "vae":
        _unless(vae_folder / "final", 1, vae.train_vae, vae_folder, budget.vae, 1, device)
        return
    _require(vae_folder / "frozen", "vae")
    if stage == "teacher":
        run_workers(workers, encode_clips, vae_folder / "frozen", latents, budget.clips, 7, device)
        _unless(
            out / "teacher/final", workers, teacher.train_teacher, out / "teacher", latents, budget.teacher, 2, device
        )
        return
    _require(out / "teacher" / "final", "teacher")
    forced = out / "forcing" / "final"
    _unless(
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
    _unless(out / "start/final", 1, partial(train_start, device=device, **budget.start), out / "start", forced)
    finished(out, budget, device)


def distilled(out: Path, budget: Budget) -> Path:
    """The student of the study's arm SHIPPED, seed 0, from this run's own initial student and causal teacher."""
    models = (f"models.student={out}/start/final", f"models.teacher={out}/forcing/final", f"models.vae={_vae(out)}")
    (arm,) = arms_named([SHIPPED])
    recipe = recipe_of(arm, 0, out, (*models, *budget.distillation))
    path = Path(recipe.run.out) / "export" / f"{arm.name}.safetensors"
    return path if path.exists() else distill(recipe, "single")


def finished(out: Path, budget: Budget, device: str = "cpu") -> Path:
    """The distilled student after its last stage."""
    student, forced = distilled(out, budget), out / "forcing/final"
    return train_finish(out / "finish", student, forced, out / "latents", budget.finish, SHIFT, device=device)


def _vae(out: Path) -> Path:
    """The autoencoder with the furthest trained decoder there is."""
    return next(f for f in (out / "vae/final", out / "vae/frozen") if f.exists())


def _require(folder: Path, stage: str) -> None:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: found nothing, expected the {stage} stage's result; run --stage {stage} first"
        )


def small(model: SaltTransformer3DModel) -> SaltTransformer3DModel:
    """`model` itself, matrices in float8 and the rest in float16: half the size, for what is only learned from.

    Moves the flow by 2.3 % (root mean square, measured on the teacher-forced stage).
    """
    for parameter in model.parameters():
        matrix = parameter.ndim == 2 and parameter.numel() >= 2**16
        parameter.data = parameter.data.to(torch.float8_e4m3fn if matrix else torch.float16)
    return model


def ship(out: Path, assets: Path, student_to: Path, budget: Budget) -> None:
    """Copy the results of `out`: `student_to`/{transformer,vae,model_index.json,*.png} in fp16, and both teachers in
    `assets`/{tiny_teacher,tiny_forced}; for ComfyUI, `out`/salt_tiny.safetensors, the student in Wan's names.
    """
    vae_model = AutoencoderKLWan.from_pretrained(_vae(out))
    vae_model.register_to_config(_name_or_path="salt-tiny")
    best = load_student(finished(out, budget), dtype=torch.float32)
    pipe = SaltPipeline(best, vae_model, student=SPEC, words=WORDS, default_size=(64, 64))
    pipe.to(torch.float16).save_pretrained(student_to)
    save_diffusers(best, student_to / "transformer", spec=SPEC)  # the same again, with the spec in the file itself
    save_wan(best, out / "salt_tiny.safetensors", spec=SPEC, dtype=torch.float16)
    whole = StudentSpec(frames_per_block=0)
    for name, stage, spec in (("teacher", "teacher", whole), ("forced", "forcing", StudentSpec())):
        model = SaltTransformer3DModel.from_pretrained(out / stage / "final")
        save_diffusers(small(model), assets / f"tiny_{name}", spec=spec)
    for stage, title in CURVES.items():
        if (out / stage / "curve.csv").exists():
            plot_curve(out / stage / "curve.csv", student_to / f"{stage}.png", title)
            shutil.copy(out / stage / "curve.csv", student_to / f"{stage}.csv")
