"""The arms of the study: overrides of the recipe `tiny`. All arms of a group share initial student and teacher.

Groups 1 to 3 are the paper's ablations (arXiv 2604.03118, section 5) with controls that it does not report (mixed steps
without SC, alignment without SC); group 4 is beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIXED = "rollout.share={8: 0.4, 4: 0.4, 2: 0.2}"
EIGHT = "rollout.share={8: 1.0}"
SC = "loss.semigroup=0.2"
STRONG = "loss.semigroup=10.0"
LONGER = "optimisation.updates=600"
# Of every arm: sized for two cores, in four blocks, as many as the longest window holds.
COMMON = (
    "rollout.frames=12", "optimisation.batch=8", "optimisation.micro_batch=8",
    "optimisation.critic_per_generator=3", "optimisation.updates=150", "optimisation.precision=bf16",
    "optimisation.compile=true", "run.save_every=25", "run.sample_every=0",
)  # fmt: skip
# Of the initial student, trained by `train.experiments.tiny.ode_regression` where it is missing.
START = Path("runs/tiny/start")
FORCED = "train/assets/tiny_forced"
# Block students have a causal teacher: the bidirectional one does not follow directions (docs/study.md).
BLOCKS = (f"models.student={START}/final", f"models.teacher={FORCED}", "loss.score=causal")
SCORES = ("models.teacher=train/assets/tiny_teacher", "loss.score=bidirectional")
WHOLE = ("models.student=train/assets/tiny_teacher", *SCORES, "rollout.kind=bidirectional", "rollout.frames=21")
ALIGN = ("loss.align_block=2", "loss.align_start=10")
RELEASE = ("loss.align=release", *ALIGN)
PAPER = ("loss.align=paper", *ALIGN)
NO_TRAINING = ("optimisation.updates=1", "optimisation.lr=0", "optimisation.compile=false")
ALL = (MIXED, SC, *RELEASE)
# In the four blocks of the other arms a window of 12 drops no frame, so its effect would not be trained.
PAST_WINDOW = "rollout.frames=21"
SINK = (*ALL, 'rollout.memory="sink:3,window:12"', PAST_WINDOW)
RELATIVE = (*ALL, 'rollout.memory="relative:3,window:12"', PAST_WINDOW)


@dataclass(frozen=True)
class Arm:
    """One row of the table: the recipe `tiny` with `overrides`. about: the difference, in words."""

    name: str
    group: int
    about: str
    changes: tuple[str, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*COMMON, *(() if self.group == 1 else BLOCKS), *self.changes)


ARMS = (
    Arm("dmd4", 1, "bidirectional, DMD on 4 steps", WHOLE),
    Arm("dmd8", 1, "bidirectional, DMD on 8 steps", (*WHOLE, EIGHT)),
    Arm("scdmd", 1, "bidirectional, SC-DMD on 8 steps", (*WHOLE, EIGHT, SC)),
    Arm("scdmd-strong", 1, "bidirectional, SC-DMD with fifty times the weight", (*WHOLE, EIGHT, STRONG)),
    Arm("start", 2, "the initial student, not distilled", NO_TRAINING),
    Arm("fixed", 2, "autoregressive, fixed 4 steps", ()),
    Arm("sc", 2, "SC alone, on the fixed 8-step list it needs", (EIGHT, SC)),
    Arm("mixed", 2, "mixed steps alone", (MIXED,)),
    Arm("mixed-align-paper", 2, "mixed steps, alignment as in the paper", (MIXED, *PAPER)),
    Arm("mixed-align", 2, "mixed steps, alignment as released", (MIXED, *RELEASE)),
    Arm("mixed-sc", 2, "mixed steps and SC", (MIXED, SC)),
    Arm("all-paper", 2, "all, alignment as in the paper", (MIXED, SC, *PAPER)),
    Arm("all", 2, "all, alignment as released: Salt", ALL),
    Arm("all-sink", 3, "Salt, trained with sink 3 + window 12", SINK),
    Arm("all-relative", 3, "Salt, trained with relative memory", RELATIVE),
    Arm("no-time-weight", 4, "SC without the time weight", (*ALL, "loss.semigroup_time_weight=false")),
    Arm("sc-strong", 4, "SC with fifty times the weight", (*ALL, STRONG)),
    Arm("align-strong", 4, "alignment with fifty times the weight", (MIXED, *RELEASE, "loss.align_weight=5.0")),
    Arm("both-branches", 4, "SC with gradient through both branches", (*ALL, "loss.semigroup_stop_gradient=false")),
    Arm("sc-sampler", 4, "SC on the re-noising sampler", (*ALL, "loss.semigroup_operator=sampler")),
    Arm("whole-scores", 4, "bidirectional real and fake scores, as the paper has them", (*ALL, *SCORES)),
    Arm("fixed-long", 4, "fixed 4 steps, four times as many updates", (LONGER,)),
    Arm("all-long", 4, "Salt, four times as many updates", (*ALL, LONGER)),
    Arm("fixed-shift-2", 4, "fixed 4 steps of shift 2 instead of 5", ("rollout.shift=2",)),
    Arm("shift-2", 4, "Salt on steps of shift 2 instead of 5", (*ALL, "rollout.shift=2")),
    Arm("drawn-guidance", 4, "guidance drawn from U(1, 3.5)", (*ALL, "loss.guidance=1.0", "loss.guidance_max=3.5")),
)


def arms_named(names: list[str]) -> list[Arm]:
    """Arms by name or group number, in the study's order. Raises ValueError naming those there are."""
    unknown = [n for n in names if n not in {a.name for a in ARMS} | {str(a.group) for a in ARMS}]
    if unknown:
        known = ", ".join(a.name for a in ARMS)
        raise ValueError(f"--arms: found {unknown[0]!r}, expected a group 1 to 4 or names among: {known}")
    return [a for a in ARMS if not names or a.name in names or str(a.group) in names]
