"""The memory plan of a MODEL in ComfyUI, in the words of its widgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...salt.errors import InputError
from ...salt.memory import MemoryPolicy
from ...salt.memory.policy import Precision, Residence
from ...salt.planning import MemoryPlan, PlannedModel, PlanSettings, memory_plan
from ...salt.planning.choices import NOT_MEASURED, measured_cost
from ...salt.planning.report import gb, phase_table
from .comfy_model import compute_dtype, wan_model
from .student_spec import spec_of, unknown_spec

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Change:
    """Widgets to change, in the order of what they cost."""

    words: str
    cost: str
    precision: Precision | None = None
    residence: Residence | None = None
    fp8: bool = False


INT8, INT4 = (f"{p} memory: {measured_cost(f'{p} memory')}" for p in ("int8", "int4"))
FP8 = f"fp8 weights: {NOT_MEASURED}"
CHANGES = (
    Change("as it is", "none"),
    Change("precision int8", INT8, "int8"),
    Change("precision int4", INT4, "int4"),
    Change("residence cpu", "exact, slower", None, "cpu"),
    Change("precision int4, residence cpu", f"{INT4}; slower", "int4", "cpu"),
    Change("weight_dtype fp8", FP8, fp8=True),
    Change("weight_dtype fp8, precision int4", f"{FP8}; {INT4}", "int4", fp8=True),
    Change("weight_dtype fp8, precision int4, residence cpu", f"{FP8}; {INT4}; slower", "int4", "cpu", True),
)


def plan_of_model(
    model: ModelPatcher, policy: MemoryPolicy | None, width: int, height: int, seconds: float, guided: bool
) -> MemoryPlan:
    """The plan of a clip with this MODEL. ComfyUI has moved the text encoder away by then.

    Raises InputError for a MODEL that is no Wan 2.1, nor Wan 2.2 TI2V, and for pixels that fill no whole tokens.
    """
    wan = wan_model(model)
    spec = spec_of(model) or unknown_spec(model)
    planned = PlannedModel(
        type(model.model).__name__,
        heads=wan.num_heads,
        layers=len(wan.blocks),
        ffn=wan.ffn_dim,
        head_dim=wan.dim // wan.num_heads,
        in_channels=wan.in_dim,
        out_channels=wan.out_dim,
        text_dim=wan.text_dim,
        image_dim=1280 if getattr(wan, "img_emb", None) is not None else 0,
        spec=spec,
    )
    stored = next(wan.blocks[0].parameters()).dtype
    plain = "float32" if compute_dtype(model) == torch.float32 else "bf16"
    settings = PlanSettings(
        height=height,
        width=width,
        seconds=seconds,
        policy=policy,
        weights="fp8" if stored in FLOAT8 else plain,
        text="none",
        guided=guided,
    )
    return memory_plan(planned, settings)


def changes_that_save(plan: MemoryPlan, vram: int) -> tuple[list[str], str]:
    """A table row for every change of widgets, and the first that fits `vram` bytes in words."""
    rows, best = ["| change | peak | fits | cost |", "|---|---|---|---|"], ""
    for change in CHANGES:
        changed = _changed(plan, change)
        if changed is None:
            continue
        fits = changed.fits(vram)
        rows.append(f"| {change.words} | {gb(changed.peak)} | {'yes' if fits else 'no'} | {change.cost} |")
        if fits and not best:
            best = f"{change.words} ({gb(changed.peak)})"
    return rows, best


def _changed(plan: MemoryPlan, change: Change) -> MemoryPlan | None:
    """The plan with other widgets; None where they are so already, or would not save."""
    settings = plan.settings
    policy = settings.policy or plan.model.spec.policy
    stored = policy.with_storage(change.precision or policy.precision, change.residence or policy.residence)
    changed = replace(settings, policy=stored, weights="fp8" if change.fp8 else settings.weights)
    found = memory_plan(plan.model, changed)
    return found if change.words == CHANGES[0].words or found.peak < plan.peak else None


def plan_text(plan: MemoryPlan, vram: int) -> str:
    """Markdown: phases, changes of widgets that save memory, and the first that fits."""
    rows, best = changes_that_save(plan, vram)
    last = f"Cheapest that fits {gb(vram)}: {best}." if best else f"Nothing fits {gb(vram)}: ComfyUI offloads weights."
    return "\n".join([*phase_table(plan), "", *rows, "", last])


def card_bytes(gigabytes: float, device: torch.device) -> int:
    """Bytes of the card: those of `device` for 0. Raises InputError for a size that no card has."""
    from comfy.model_management import get_total_memory

    if gigabytes == 0:
        return get_total_memory(device)
    if gigabytes < 1:
        raise InputError("vram", f"found {gigabytes:g}, expected 0 for this card, or its gigabytes")
    return int(gigabytes * 10**9)
