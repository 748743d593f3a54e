"""salt-tiny from nothing: the stages in order, and the shipped files at the end.

vae -> latents -> teacher -> student (teacher forcing, then self-rollout) -> ship. Every stage takes up where it was
killed and passes over what is done, so the one command can be given again at any time.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from salt.checkpoints import save_diffusers, save_wan
from salt.pipeline import SaltPipeline
from salt.schedule import STEP_LISTS
from salt.spec import StudentSpec
from salt.student import SaltTransformer3DModel
from train.plots import plot_curve
from train.tiny import student, teacher, vae
from train.tiny.latents import SHARD, make_latents
from train.tiny.parallel import run_workers
from train.tiny.teacher import ClipPhase

STAGES = ("vae", "teacher", "student")
STUDENT_ASSETS = Path(__file__).parents[2] / "salt" / "assets" / "tiny"
TEACHER_ASSETS = Path(__file__).parents[1] / "assets" / "tiny_teacher"
WORDS = {"dim": 4096, "max_length": 16}
CURVES = {  # the plot kept next to the model card: stage folder, title
    "vae": "VAE: weighted reconstruction loss, PSNR on held-out clips",
    "teacher": "Teacher: flow matching",
    "forcing": "Student: teacher forcing",
    "rollout": "Student: self-rollout (DMD)",
}


@dataclass(frozen=True)
class Budget:
    """How much of everything. `quick` shows that every stage learns, in minutes; its clips are no good yet."""

    vae: tuple[vae.Phase, ...]
    clips: int
    teacher: tuple[ClipPhase, ...]
    forcing: tuple[ClipPhase, ...]
    rollout: student.RolloutTraining


BUDGETS = {
    "full": Budget(vae.FULL, 2400, teacher.FULL, student.FORCING, student.RolloutTraining()),
    "quick": Budget(
        vae.QUICK,
        SHARD,
        teacher.QUICK,
        tuple(replace(phase, steps=100, batch=4) for phase in student.FORCING),
        replace(student.RolloutTraining(), steps=6, imitation=12, batch=4),
    ),
}


def _unless(done: Path, workers: int, stage: Callable[..., object], *arguments: object) -> None:
    if not (done / "config.json").exists():
        run_workers(workers, stage, *arguments)


def run_stage(stage: str, out: Path, budget: Budget, device: str = "cpu", workers: int = 1) -> None:
    """Run one stage in `out`. The stages before it must have left theirs there."""
    vae_folder, latents, rolled = out / "vae", out / "latents", out / "rollout"
    if stage == "vae":
        _unless(vae_folder / "final", 1, vae.train_vae, vae_folder, budget.vae, 1, device)
        return
    _require(vae_folder / "frozen", "vae")
    if stage == "teacher":
        run_workers(workers, make_latents, vae_folder / "frozen", latents, budget.clips, 7, device)
        _unless(
            out / "teacher/final", workers, teacher.train_teacher, out / "teacher", latents, budget.teacher, 2, device
        )
        return
    _require(out / "teacher" / "final", "teacher")
    forced = out / "forcing" / "final"
    _unless(
        forced,
        workers,
        student.train_forcing,
        out / "forcing",
        out / "teacher/final",
        latents,
        budget.forcing,
        3,
        device,
    )
    _unless(rolled / "final", workers, student.train_rollout, rolled, forced, budget.rollout, 4, device)


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


def ship(out: Path, student_to: Path, teacher_to: Path) -> None:
    """Copy the results of `out` in fp16: `student_to`/{transformer,vae,model_index.json,*.png} and the teacher; for
    ComfyUI, `out`/salt_tiny.safetensors, the student in Wan's names.

    Takes the furthest there is of each: the decoder's last state, and for the student its last finished stage.
    """
    folder = next(f for f in (out / "vae/final", out / "vae/frozen") if f.exists())
    vae_model = AutoencoderKLWan.from_pretrained(folder)
    vae_model.register_to_config(_name_or_path="salt-tiny")
    stages = (out / "rollout/final", out / "forcing/final", out / "teacher/final")
    best = SaltTransformer3DModel.from_pretrained(next(f for f in stages if f.exists()))
    spec = StudentSpec(steps=STEP_LISTS[8])
    pipe = SaltPipeline(best, vae_model, student=spec, words=WORDS, default_size=(64, 64))
    pipe.to(torch.float16).save_pretrained(student_to)
    save_diffusers(best, student_to / "transformer", spec=spec)  # the same again, with the spec in the file itself
    save_wan(best, out / "salt_tiny.safetensors", spec=spec, dtype=torch.float16)
    teacher_model = SaltTransformer3DModel.from_pretrained(out / "teacher/final")
    bidirectional = StudentSpec(frames_per_block=0)
    save_diffusers(teacher_model, teacher_to, spec=bidirectional, dtype=torch.float16)
    for stage, title in CURVES.items():
        if (out / stage / "curve.csv").exists():
            plot_curve(out / stage / "curve.csv", student_to / f"{stage}.png", title)
            shutil.copy(out / stage / "curve.csv", student_to / f"{stage}.csv")
