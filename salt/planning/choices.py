"""Settings that make a run fit a card, in order of what they cost, and what their costs are known to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ..acceleration.presets import PREFERENCES, Preference
from ..memory import MemoryPolicy
from ..memory.policy import Precision, Residence
from .models import PlannedModel
from .peaks import MemoryPlan, memory_plan
from .settings import PlanSettings, preset_settings

# From the table of docs/performance.md (ShapeBench, salt-tiny, 48 clips): passed at 4 and at 2 evaluations per block.
MEASURED: dict[str, tuple[int, int]] = {
    "exact": (100, 98),
    "int8 memory": (100, 98),
    "fp8 memory": (100, 98),
    "int4 memory": (100, 98),
    "everything kept": (90, 77),
    "window 12": (100, 98),
    "sink 3 + window 12": (100, 98),
}
NOT_MEASURED = "quality not measured"
# Rank of a change: those that cost nothing but time come first in their kind, those without a measurement last.
RANKS = {"tiles": 2, "int8": 3, "int4": 4, "taehv": 8, "window": 10, "fp8": 12, "cpu": 16, "layers": 24}
ORDER: tuple[Preference, ...] = ("exact", "fast", "low memory", "lowest memory", "layer by layer")
WINDOW = MemoryPolicy("window", window=12)


@dataclass(frozen=True)
class Choice:
    """Settings with their plan. options: of `salt generate`. costs: of each change, as `int8 memory: ...`."""

    plan: MemoryPlan
    options: str
    costs: tuple[str, ...] = ()


def presets_by_cost(model: PlannedModel, settings: PlanSettings) -> list[Choice]:
    """Every acceleration preset that stores or computes otherwise, with its plan for these settings."""
    return [
        Choice(
            memory_plan(model, chosen),
            f'--prefer "{name}"' if " " in name else f"--prefer {name}",
            _costs(settings, chosen, model),
        )
        for name in ORDER
        for chosen in (preset_settings(name, model, settings),)
    ]


def cheapest(model: PlannedModel, settings: PlanSettings, vram: int) -> Choice | None:
    """The settings that cost least among those that fit `vram` bytes; None where none does."""
    ranked = sorted(_candidates(model, settings), key=lambda found: found[0])
    for _, chosen, options in ranked:
        plan = memory_plan(model, chosen)
        if plan.fits(vram):
            return Choice(plan, options, _costs(settings, chosen, model))
    return None


def _candidates(model: PlannedModel, settings: PlanSettings) -> Iterator[tuple[int, PlanSettings, str]]:
    """(rank, settings, options) of everything that may be changed together."""
    policy = settings.policy or model.spec.policy
    precisions: list[Precision] = ["model", "int8", "int4"] if policy.precision == "model" else [policy.precision]
    residences: list[Residence] = ["device", "cpu"] if policy.residence == "device" else ["cpu"]
    windows = [policy] if policy.window is not None or not model.spec.frames_per_block else [policy, WINDOW]
    decoders = ["whole", "tiles", "taehv"] if settings.decoder == "whole" else [settings.decoder]
    if model.has_wan22_latents:  # which TAEHV does not decode
        decoders = [decoder for decoder in decoders if decoder != "taehv"] or ["whole"]
    presets: list[Preference] = (
        ["exact", "lowest memory", "layer by layer"] if settings.weights == "bf16" else ["exact"]
    )
    for preset, decoder, window, precision, residence in product(presets, decoders, windows, precisions, residences):
        weights = PREFERENCES[preset].weights if settings.weights == "bf16" else settings.weights
        stored = window.with_storage(precision, residence)
        changes = [precision * (precision != policy.precision), "cpu" * (residence != policy.residence)]
        changes += [decoder * (decoder != settings.decoder), "window" * (window is not policy)]
        changes += [weights * (weights != settings.weights)]
        base = preset_settings(preset, model, replace(settings, policy=stored))
        own = preset_settings(preset, model, settings).policy
        chosen = replace(base, decoder=decoder)
        if chosen.policy != stored or (preset != "exact" and decoder == "whole"):
            continue  # the preset decides these itself
        options = [f'--prefer "{preset}"'] if preset != "exact" else []
        options += [f"--memory {stored}"] if stored != own else []
        options += ["--tiles"] if decoder == "tiles" != base.decoder else []
        options += ["--decoder taew2_1.safetensors"] if decoder == "taehv" and settings.decoder != "taehv" else []
        yield sum(RANKS.get(change, 0) for change in changes), chosen, " ".join(options) or "as it is"


def _costs(before: PlanSettings, after: PlanSettings, model: PlannedModel) -> tuple[str, ...]:
    """What each difference is known to cost."""
    old, new = before.policy or model.spec.policy, after.policy or model.spec.policy
    costs = []
    if new.precision != old.precision:
        costs.append(f"{new.precision} memory: {measured_cost(f'{new.precision} memory')}")
    if new.window != old.window:
        costs.append(f"window {new.window}: {measured_cost('window 12', 'everything kept')}")
    if new.residence != old.residence:
        costs.append("memory in main memory: exact, slower")
    if after.decoder == "tiles" != before.decoder:
        costs.append(f"tiles: slower, {NOT_MEASURED}")
    if after.decoder == "taehv" != before.decoder:
        costs.append(f"TAEHV: faster and softer, {NOT_MEASURED}")
    if after.weights == "fp8" != before.weights:
        costs.append(f"weights stored in fp8: {NOT_MEASURED}")
    if after.weights == "layers" != before.weights:
        costs.append("weights in main memory: exact, slower")
    if after.text == "layers" and before.text == "device":
        costs.append("text encoder layer by layer: exact, slower prompts")
    return tuple(costs)


def measured_cost(way: str, beside: str = "exact") -> str:
    """The difference of two rows of the quality table, at 4 and 2 evaluations per block."""
    (four, two), (four_before, two_before) = MEASURED[way], MEASURED[beside]
    change = [b - a for a, b in ((four_before, four), (two_before, two))]
    shown = "none" if change == [0, 0] else f"{change[0]:+d} and {change[1]:+d} % of clips passed"
    return f"{shown} at 4 and 2 NFE (salt-tiny)"
