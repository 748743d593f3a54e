"""Memory plans as text: tables of `salt plan` and the node, and the one line of a log."""

from __future__ import annotations

from ..errors import InputError
from .choices import Choice, cheapest, presets_by_cost
from .models import PlannedModel
from .peaks import RESERVE, MemoryPlan, memory_plan
from .settings import PlanSettings

CARDS = (8, 12, 16, 24, 80)  # GB that cards are sold with
GB = 10**9


def plan_report(model: PlannedModel, settings: PlanSettings, vram: int) -> str:
    """Markdown: the peak of each phase, that of every preset and whether it fits, and the cheapest settings that do."""
    plan = memory_plan(model, settings)
    return "\n".join(
        [
            f"# {model.name}, {clip_text(plan)}",
            "",
            *phase_table(plan),
            "",
            f"A card of {gb(vram)} has {gb(vram - RESERVE)} for this; {gb(RESERVE)} are for CUDA and its libraries.",
            "",
            *preset_table(model, settings, vram),
            "",
            best_line(cheapest(model, settings, vram)),
        ]
    )


def phase_table(plan: MemoryPlan) -> list[str]:
    """A row per phase: its peak and its parts."""
    rows = [
        f"| {phase.name} | {gb(phase.bytes)} | {', '.join(f'{name} {gb(n)}' for name, n in phase.parts.items() if n)} |"
        for phase in plan.phases
    ]
    host = [f"| main memory | {gb(plan.host)} | what is kept there for the device |"] if plan.host else []
    return ["| phase | peak | of which |", "|---|---|---|", *rows, *host]


def preset_table(model: PlannedModel, settings: PlanSettings, vram: int) -> list[str]:
    """A row per preset: its peak, and whether it fits."""
    rows = [
        f"| `{found.options}` | {gb(found.plan.peak)} | {'yes' if found.plan.fits(vram) else 'no'} | "
        f"{'; '.join(found.costs) or 'none'} |"
        for found in presets_by_cost(model, settings)
    ]
    return ["| preset | peak | fits | cost |", "|---|---|---|---|", *rows]


def card_table(model: PlannedModel, settings: PlanSettings) -> str:
    """Markdown: the cheapest settings for each of the usual sizes of cards."""
    rows = []
    for size in CARDS:
        found = cheapest(model, settings, size * GB)
        if found is None:
            rows.append(f"| {size} GB | nothing fits | | |")
        else:
            rows.append(
                f"| {size} GB | `{found.options}` | {gb(found.plan.peak)} | {'; '.join(found.costs) or 'none'} |"
            )
    return "\n".join(["| card | cheapest that fits | peak | cost |", "|---|---|---|---|", *rows])


def best_line(found: Choice | None) -> str:
    """The cheapest settings as a sentence."""
    if found is None:
        return "Nothing fits: take a smaller size or a shorter clip."
    return f"Cheapest that fits: {found.options} ({gb(found.plan.peak)}). Cost: {'; '.join(found.costs) or 'none'}."


def plan_line(plan: MemoryPlan, vram: int) -> str:
    """One line: the parts of the largest phase, and whether the device holds them."""
    parts = ", ".join(f"{name} {gb(n)}" for name, n in plan.largest.parts.items() if n)
    line = f"memory plan, {clip_text(plan)}: {parts}; peak {gb(plan.peak)} of {gb(vram)}"
    if plan.fits(vram):
        return line
    return f"{line}: does not fit. {best_line(cheapest(plan.model, plan.settings, vram))}"


def clip_text(plan: MemoryPlan) -> str:
    s = plan.settings
    return f"{s.width}x{s.height}, {s.seconds:g} s, memory {s.policy or plan.model.spec.policy}"


def gb(count: int) -> str:
    return f"{count / GB:,.1f} GB"


def vram_bytes(gigabytes: float) -> int:
    """Bytes of a card's size. Raises InputError for a size that no card has."""
    if not 1 <= gigabytes <= 10_000:
        raise InputError("vram", f"found {gigabytes:g}, expected the card's gigabytes, as 8 or 24")
    return int(gigabytes * GB)
