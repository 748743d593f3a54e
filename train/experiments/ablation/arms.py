"""The arms of the study: overrides of the recipe `tiny`. All arms of a group share initial student and teacher.

Groups 1 to 3 are the paper's ablations (arXiv 2604.03118, section 5) with controls that it does not report (mixed steps
without SC, alignment without SC); group 4 is beyond the paper. Group 5 is the deciding experiment on SC: its own start,
whose field is curved, and SC at a share of DMD's gradient (`deciding.py`).
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
CURVED_START = Path("runs/study/curved-start")  # of group 5 (`curved_start.py`)
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
# Of group 5: two blocks, and a critic that begins as the start, whose clips it scores.
CURVED = (
    f"models.student={CURVED_START}/final", f"models.critic={CURVED_START}/final", "rollout.frames=6",
    "optimisation.critic_per_generator=1", "optimisation.updates=60", "optimisation.lr=1e-4",
    "optimisation.ema=0.9", "optimisation.compile=false", "run.save_every=10",
)  # fmt: skip
SCALED = ("loss.semigroup=1.0", "loss.semigroup_time_weight=false")


# Seeds whose initial student is not the one of the other arms: they are in no difference (LOG.md, Set-up).
OTHER_START = {("sc-strong", 0), ("sc-strong", 1), ("whole-scores", 1), ("fixed-long", 1), ("all-long", 1)}


@dataclass(frozen=True)
class Arm:
    """One row of the table: the recipe `tiny` with `overrides`. about: the difference, in words.

    control: the arm that differs by one thing; "" where there is none, so that the arm is compared with no other.
    sc_share: of DMD's gradient norm, which SC's is scaled to in every update (`scaled_semigroup.py`); 0: SC as it is.
    """

    name: str
    group: int
    about: str
    changes: tuple[str, ...]
    control: str = ""
    sc_share: float = 0.0

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*COMMON, *(() if self.group == 1 else BLOCKS), *self.changes)


ARMS = (
    Arm("dmd4", 1, "bidirectional, DMD on 4 steps", WHOLE),
    Arm("dmd8", 1, "bidirectional, DMD on 8 steps", (*WHOLE, EIGHT), "dmd4"),
    Arm("scdmd", 1, "bidirectional, SC-DMD on 8 steps", (*WHOLE, EIGHT, SC), "dmd8"),
    Arm("scdmd-strong", 1, "bidirectional, SC-DMD with fifty times the weight", (*WHOLE, EIGHT, STRONG), "dmd8"),
    Arm("start", 2, "the initial student, not distilled", NO_TRAINING, "fixed"),
    Arm("fixed", 2, "autoregressive, fixed 4 steps", ()),
    Arm("sc", 2, "SC alone, on the fixed 8-step list it needs", (EIGHT, SC)),
    Arm("mixed", 2, "mixed steps alone", (MIXED,), "fixed"),
    Arm("mixed-align-paper", 2, "mixed steps, alignment as in the paper", (MIXED, *PAPER), "mixed"),
    Arm("mixed-align", 2, "mixed steps, alignment as released", (MIXED, *RELEASE), "mixed"),
    Arm("mixed-sc", 2, "mixed steps and SC", (MIXED, SC), "mixed"),
    Arm("all-paper", 2, "all, alignment as in the paper", (MIXED, SC, *PAPER), "mixed-sc"),
    Arm("all", 2, "all, alignment as released: Salt", ALL, "mixed-sc"),
    Arm("all-sink", 3, "Salt, trained with sink 3 + window 12", SINK),
    Arm("all-relative", 3, "Salt, trained with relative memory", RELATIVE),
    Arm("no-time-weight", 4, "SC without the time weight", (*ALL, "loss.semigroup_time_weight=false"), "all"),
    Arm("sc-strong", 4, "SC with fifty times the weight", (*ALL, STRONG), "all"),
    Arm(
        "align-strong",
        4,
        "alignment with fifty times the weight",
        (MIXED, *RELEASE, "loss.align_weight=5.0"),
        "mixed-align",
    ),
    Arm(
        "both-branches",
        4,
        "SC with gradient through both branches",
        (*ALL, "loss.semigroup_stop_gradient=false"),
        "all",
    ),
    Arm("sc-sampler", 4, "SC on the re-noising sampler", (*ALL, "loss.semigroup_operator=sampler"), "all"),
    Arm("whole-scores", 4, "bidirectional real and fake scores, as the paper has them", (*ALL, *SCORES), "all"),
    Arm("fixed-long", 4, "fixed 4 steps, four times as many updates", (LONGER,), "fixed"),
    Arm("all-long", 4, "Salt, four times as many updates", (*ALL, LONGER), "all"),
    Arm("fixed-shift-2", 4, "fixed 4 steps of shift 2 instead of 5", ("rollout.shift=2",), "fixed"),
    Arm("shift-2", 4, "Salt on steps of shift 2 instead of 5", (*ALL, "rollout.shift=2"), "all"),
    Arm(
        "drawn-guidance",
        4,
        "guidance drawn from U(1, 3.5)",
        (*ALL, "loss.guidance=1.0", "loss.guidance_max=3.5"),
        "all",
    ),
    Arm("curved-start", 5, "the curved start, not distilled", (*CURVED, *NO_TRAINING)),
    Arm("fixed-4", 5, "fixed 4 steps", CURVED),
    Arm("fixed-8", 5, "fixed 8 steps", (*CURVED, EIGHT), "fixed-4"),
    Arm("fixed-8-sc-10", 5, "fixed 8 steps, SC at 10 %", (*CURVED, EIGHT, *SCALED), "fixed-8", 0.1),
    Arm("fixed-8-sc-30", 5, "fixed 8 steps, SC at 30 %", (*CURVED, EIGHT, *SCALED), "fixed-8", 0.3),
    Arm("fixed-8-sc-100", 5, "fixed 8 steps, SC at 100 %", (*CURVED, EIGHT, *SCALED), "fixed-8", 1.0),
    Arm("mixed-steps", 5, "mixed steps", (*CURVED, MIXED), "fixed-4"),
    Arm(
        "mixed-steps-sc-30",
        5,
        "mixed steps, SC at 30 % where there are 8",
        (*CURVED, MIXED, *SCALED),
        "mixed-steps",
        0.3,
    ),
)


def arms_named(names: list[str]) -> list[Arm]:
    """Arms by name or group number, in the study's order. Raises ValueError naming those there are."""
    unknown = [n for n in names if n not in {a.name for a in ARMS} | {str(a.group) for a in ARMS}]
    if unknown:
        known = ", ".join(a.name for a in ARMS)
        raise ValueError(f"--arms: found {unknown[0]!r}, expected a group 1 to 5 or names among: {known}")
    return [a for a in ARMS if not names or a.name in names or str(a.group) in names]
