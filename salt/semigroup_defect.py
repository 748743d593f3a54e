"""The semigroup defect of a student: the distance between one long step and two shorter ones, on its own trajectory.

Source: Salt (arXiv 2604.03118, section 3.2). The paper reports 0.0135 (DMD) and 0.0111 (SC-DMD) and describes its
protocol only as displacement-normalised and local. Ours, for a triple (t_s, t_m, t_e) of steps before the shift:

State. x_s is the student's own: a clip is sampled from noise and prompt as at inference, and every block is measured
when it reaches t_s, against the memory that the student has written of its own earlier blocks. A bidirectional student
is measured on the whole clip at once.

`euler`, the operator of L_SC, Psi^{a->b}(x) = x - (sigma_a - sigma_b) v(x, a):
    ||Psi^{s->e}(x_s) - Psi^{m->e}(Psi^{s->m}(x_s))||^2 / ||Psi^{s->e}(x_s) - x_s||^2
  which is ((sigma_m - sigma_e) / (sigma_s - sigma_e))^2 ||v_m - v_s||^2 / ||v_s||^2, and 0 for an exact flow that is
  straight. (An exact flow that bends has a defect too: an Euler step is a chord.)
`sampler`, the step of inference: x0 is predicted and re-noised. With the noise of the last step shared, the two
  results are (1 - sigma_e)(x0_s - x0_m) apart, so t_e is only a factor, and the step itself is mostly fresh noise. So
  x0 is compared, relative to the displacement, with x_m = (1 - sigma_m) x0_s + sigma_m eps:
    ||x0_s - x0_m||^2 / ||x0_s - x_s||^2
  Fresh noise may legitimately change the picture, so this is not 0 for an exact student: it measures how much the
  second step revises of what the first one predicted.

Average. The ratio is taken per block of each clip, over its channels, frames and pixels; then the mean over blocks,
prompts and seeds, each counting the same. The ratios are squared; their root is a relative distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, Literal

import torch
from torch import Tensor

from .errors import InputError
from .memory import KVMemory, MemoryPolicy
from .memory.clean_latents import needs_encoder
from .model_input import Condition, FlowModel, ModelInput
from .noise import NoiseSource
from .rollout import RolloutSettings, rollout
from .sampling import sample_bidirectional
from .schedule import NUM_TRAIN_TIMESTEPS, STEP_LISTS, Schedule, add_noise, euler, flow_to_x0, warp

Operator = Literal["euler", "sampler"]
Triple = tuple[float, float, float]
Defects = dict[tuple[Triple, Operator], float]

OPERATORS: tuple[Operator, ...] = ("euler", "sampler")
# Each step of the 4-step grid, halved by the 8-step grid it is trained on.
TRIPLES: tuple[Triple, ...] = ((1000, 875, 750), (750, 625, 500), (500, 375, 250), (250, 125, 0))


def parse_triples(text: str) -> list[Triple]:
    """`1000, 875, 750; 750, 625, 500` as triples. Raises InputError naming the part that is not a triple."""
    found: list[Triple] = []
    for part in filter(None, map(str.strip, text.split(";"))):
        try:
            s, m, e = (float(x) for x in part.split(","))
        except ValueError:
            raise InputError("triples", f"found {part!r}, expected three falling steps as 1000, 875, 750") from None
        found.append((s, m, e))
    if not found:
        raise InputError("triples", "found none, expected steps as 1000, 875, 750; 750, 625, 500")
    return found


def steps_for(triples: Sequence[Triple]) -> tuple[float, ...]:
    """The sparsest of the lists Salt trains on (4 or 8 steps) that has every t_s. Raises InputError where none has."""
    for count in (4, 8):
        if all(t_s in STEP_LISTS[count] for t_s, _, _ in triples):
            return STEP_LISTS[count]
    stray = next(t_s for t_s, _, _ in triples if t_s not in STEP_LISTS[8])
    raise InputError("triples", f"found t_s {stray:g}, expected one of {', '.join(f'{s:g}' for s in STEP_LISTS[8])}")


def check_student(schedule: Schedule, policy: MemoryPolicy | None) -> None:
    """Raise InputError for a student on whose steps this defect is not defined, and for a memory that needs a VAE.

    policy: of its memory, None without.
    """
    flow_map = policy is not None and policy.kind == "far"
    if schedule.rule != "wan" or flow_map:
        found = "a flow map (AnyFlow-FAR)" if flow_map else f"a student with the steps of {schedule.rule}"
        raise InputError("student", f"found {found}, expected one with Wan 2.1's steps: the defect is defined on them")
    if policy is not None and policy.reencodes:
        raise needs_encoder(policy)


def check_triple(triple: Triple, steps: Sequence[float]) -> None:
    """Raise InputError for a triple that does not fall, or whose t_s is not one of the steps."""
    t_s, t_m, t_e = triple
    if not NUM_TRAIN_TIMESTEPS >= t_s > t_m > t_e >= 0:
        raise InputError("triples", f"found {t_s:g},{t_m:g},{t_e:g}, expected falling steps from 1000 to 0")
    if t_s not in steps:
        known = ", ".join(f"{s:g}" for s in steps)
        raise InputError("triples", f"found t_s {t_s:g}, expected one of the steps {known}")


def semigroup_defect(
    model: FlowModel[Condition],
    conditioning: Condition,
    memory: KVMemory | None,
    noise: NoiseSource,
    frames: int,
    settings: RolloutSettings,
    *,
    triples: Sequence[Triple] = TRIPLES,
    operators: Sequence[Operator] = OPERATORS,
    dtype: torch.dtype = torch.float32,
) -> Defects:
    """The semigroup defect of a student on one batch of clips: mean over clips and blocks, by triple and operator.

    model, conditioning, noise, frames, settings: as for `rollout`; the clip's `frames` latent frames are sampled on the
    steps of `settings.schedule`, and every t_s must be one of them.
    memory: empty, for a causal student; None for a bidirectional one, which samples the whole clip at once.
    triples: (t_s, t_m, t_e), falling steps in [0, 1000] before the shift. operators: see this module's docstring.
    dtype: of the latents that the model is called with; the arithmetic around it is in float32.
    Returns squared relative distances, without unit. Raises InputError for a triple that does not fall or whose t_s is
    not a step of the schedule, and what `rollout` raises.
    Source: Salt (arXiv 2604.03118, section 3.2).
    """
    meter = DefectMeter(model, noise, settings.schedule, triples, operators, dtype)
    meter.measure(conditioning, memory, frames, settings)
    return mean_defects([meter])


class DefectMeter(Generic[Condition]):
    """A rollout's model callable that calls another one and measures its defect wherever a triple begins.

    model: as the rollout or `sample_bidirectional` calls it. noise: the rollout's. schedule: the rollout's, which must
    have every t_s (else InputError). dtype: of the latents that `model` is called with; all else is in float32.
    ratios: by triple and operator, a tensor [B] on the CPU for each block measured so far.
    """

    def __init__(
        self, model: FlowModel[Condition], noise: NoiseSource, schedule: Schedule, triples: Sequence[Triple] = TRIPLES,
        operators: Sequence[Operator] = OPERATORS, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        for triple in triples:
            check_triple(triple, schedule.steps)
        self.schedule = schedule
        self.model, self.noise, self.shift, self.dtype = model, noise, schedule.shift, dtype
        self.ratios: dict[tuple[Triple, Operator], list[Tensor]] = {(t, o): [] for t in triples for o in operators}

    @torch.no_grad()
    def measure(self, conditioning: Condition, memory: KVMemory | None, frames: int, settings: RolloutSettings) -> None:
        """Sample one batch of clips, measured on the way; arguments as for `semigroup_defect`.

        Cost: one ordinary rollout and, for each block and triple, one more model call per operator.
        """
        check_student(self.schedule, None if memory is None else memory.policy)
        if memory is None:
            sample_bidirectional(self, conditioning, self.noise, frames, settings)
        else:
            for _ in rollout(self, conditioning, memory, self.noise, frames, settings):
                pass

    def __call__(self, inputs: ModelInput[Condition], /) -> Tensor:
        flow = self.flow(inputs)
        now = float(inputs.timestep.flatten()[0])
        for (triple, operator), ratios in self.ratios.items():
            if abs(now - NUM_TRAIN_TIMESTEPS * float(warp(triple[0], self.shift))) < 1e-3:
                ratios.append(self.ratio(operator, triple, inputs, flow).cpu())
        return flow

    def flow(self, inputs: ModelInput[Condition]) -> Tensor:
        return self.model(replace(inputs, x=inputs.x.to(self.dtype))).float()

    def ratio(self, operator: Operator, triple: Triple, inputs: ModelInput[Condition], v_s: Tensor) -> Tensor:
        """The defect of each clip's block, [B]."""
        s, m, e = (float(warp(step, self.shift)) for step in triple)
        x, t_m = inputs.x, torch.full_like(inputs.timestep, NUM_TRAIN_TIMESTEPS * m)
        if operator == "euler":
            direct = euler(x, v_s, s, e)
            x_m = euler(x, v_s, s, m)
            other = euler(x_m, self.flow(replace(inputs, x=x_m, timestep=t_m)), m, e)
        else:
            direct = flow_to_x0(x, v_s, s)
            # A draw that the rollout does not use, so that the noise is fresh to this block.
            x_m = add_noise(direct, self.noise(inputs.start_frame, x.shape[2], -1), m)
            other = flow_to_x0(x_m, self.flow(replace(inputs, x=x_m, timestep=t_m)), m)
        return (direct - other).square().flatten(1).sum(1) / (direct - x).square().flatten(1).sum(1)


def mean_defects(meters: Sequence[DefectMeter]) -> Defects:
    """Means over all blocks and clips that the meters have measured, each counting the same."""
    return {
        key: float(torch.cat([ratio for meter in meters for ratio in meter.ratios[key]]).mean())
        for key in meters[0].ratios
    }


def defect_table(rows: dict[str, Defects]) -> str:
    """A markdown table: a line per name and operator, a column per triple, then the mean of the line."""
    triples = list(dict.fromkeys(triple for row in rows.values() for triple, _ in row))
    head = "| | operator | " + " | ".join(",".join(f"{s:g}" for s in triple) for triple in triples) + " | mean |"
    lines = [head, "|" + "---|" * (len(triples) + 3)]
    for name, row in rows.items():
        present: list[Operator] = [o for o in OPERATORS if any(o == key for _, key in row)]
        for operator in present:
            values = [row[triple, operator] for triple in triples]
            cells = [f"{value:.5f}" for value in (*values, sum(values) / len(values))]
            lines.append(f"| {name} | {operator} | {' | '.join(cells)} |")
    return "\n".join(lines)
