"""The estimate of memory and time as a table, and the check that a recipe fits the memory of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from salt.errors import InputError
from train.config.recipe import Recipe, RecipeError
from train.distributed.launch import Mode
from train.memory_estimate.estimate import GIB, add_up, configurations, estimate, estimates, usable_counts, usual_counts
from train.memory_estimate.time import Card, update_phases, update_seconds
from train.memory_estimate.tracing import Activations, Tracer

LORA_RANK, NODE = 64, 8  # of the forms


def table(
    recipe: Recipe,
    processes: Sequence[int] = (),
    modes: Sequence[Mode] = ("fsdp", "ddp"),
    card: Card = Card(),  # noqa: B008 - frozen
) -> Table:
    """GiB per GPU and the time of an update, by number of GPUs; parts below 1 % of every total are summed up.

    processes: by default the usual numbers. Raises InputError for one that the batch does not divide over.
    """
    _check_counts(recipe, processes)
    found = estimates(recipe, processes or usual_counts(recipe), modes)
    title = f"{recipe.name}: GiB per GPU, estimated"
    columns = Table(title=title, title_style="bold", title_justify="left")
    columns.add_column("")
    for one in found:
        columns.add_column(f"{one.processes} GPU{'s' * (one.processes > 1)}\n{one.mode}", justify="right")
    names = list(dict.fromkeys(name for one in found for name in one.parts))
    large = [n for n in names if any(one.parts.get(n, 0) > one.total / 100 for one in found)]
    for name in large:
        columns.add_row(name, *(gib(one.parts.get(name, 0)) for one in found))
    columns.add_row("the rest", *(gib(one.total - sum(one.parts.get(n, 0) for n in large)) for one in found))
    columns.add_section()
    columns.add_row("total", *(gib(one.total) for one in found), style="bold")
    columns.add_row("peak phase", *(one.peak for one in found))
    columns.add_row("RAM of the first process", *(gib(one.ram) for one in found))
    seconds = [update_seconds(recipe, one.processes, card) for one in found]
    columns.add_section()
    columns.add_row("seconds per update", *map(rounded, seconds))
    columns.add_row(f"hours for {recipe.optimisation.updates}", *(hours(recipe, one) for one in seconds))
    columns.caption, columns.caption_justify = time_note(recipe, card), "left"
    return columns


def _check_counts(recipe: Recipe, processes: Sequence[int]) -> None:
    opt = recipe.optimisation
    most = opt.batch // opt.micro_batch * (opt.sequence or 1)
    usable = usable_counts(recipe, range(1, most + 1))
    if wrong := [n for n in processes if n not in usable]:
        expected = ", ".join(map(str, usable)) or "another optimisation.batch"
        shares = f", {opt.sequence} GPUs to a clip" if opt.sequence > 1 else ""
        problem = (
            f"found {wrong[0]}, expected {expected} (over which {recipe.name}'s batch of {opt.batch} divides{shares})"
        )
        raise InputError("gpus", problem)


def time_note(recipe: Recipe, card: Card) -> str:
    """What an estimated time assumes."""
    if recipe.optimisation.precision != "bf16":
        return "Times are estimated for optimisation.precision=bf16 alone."
    counted = sum(work.total for work in update_phases(recipe).values()) / 1e15
    return f"Times: {counted:.3g} PFLOP an update, at {card} (assumed), communication hidden behind it."


def rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hours(recipe: Recipe, seconds: float | None) -> str:
    """Of a whole run."""
    return rounded(None if seconds is None else seconds * recipe.optimisation.updates / 3600)


@dataclass(frozen=True)
class Form:
    """One way to run a recipe."""

    about: str
    recipe: Recipe
    processes: int
    mode: Mode


def forms(recipe: Recipe) -> list[Form]:
    """Ways to run a recipe: alone, with a LoRA, with 8-bit states, sharded. Those that its batch divides into."""
    opt, models = recipe.optimisation, recipe.models
    lora = replace(recipe, models=replace(models, lora_rank=LORA_RANK, lora_critic=recipe.stage == "distill"))
    eight = replace(recipe, optimisation=replace(opt, optimizer="8bit"))
    found = [
        Form("one process", recipe, 1, "single"),
        Form(f"LoRAs of rank {LORA_RANK}", lora, 1, "single"),
        Form("8-bit states", eight, 1, "single"),
        Form("whole copies (`--mode ddp`)", recipe, NODE, "ddp"),
        Form("FSDP", recipe, NODE, "fsdp"),
        Form("FSDP", recipe, 8 * NODE, "fsdp"),
        Form(f"HSDP, copies of {NODE}", replace(recipe, optimisation=replace(opt, shard=NODE)), 8 * NODE, "fsdp"),
        Form("LoRAs, FSDP", lora, NODE, "fsdp"),
    ]
    together = opt.sequence or 1
    fits = [form for form in found if form.processes % together == 0]
    return [form for form in fits if opt.batch % (form.processes // together * opt.micro_batch) == 0]


def forms_table(recipe: Recipe, card: Card) -> str:
    """Markdown: memory and time of every form. Forwards are traced once for those that are alike in them."""
    updates = recipe.optimisation.updates
    head = ("form", "GPUs", "GiB per GPU", "GiB of RAM", "seconds per update", f"hours for {updates}")
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    configs = configurations(recipe)
    traced: dict[tuple[int, bool], Activations] = {}
    for form in forms(recipe):
        kind = (form.recipe.models.lora_rank, form.mode == "fsdp")
        if kind not in traced:
            traced[kind] = Tracer(form.recipe, configs, kind[1]).activations()
        one = add_up(form.recipe, form.processes, form.mode, configs, traced[kind])
        seconds = update_seconds(form.recipe, form.processes, card)
        cells = (f"{one.total / GIB:.0f}", f"{one.ram / GIB:.0f}", rounded(seconds), hours(recipe, seconds))
        rows.append("| " + " | ".join((form.about, str(form.processes), *cells)) + " |")
    return "\n".join([*rows, "", time_note(recipe, card)])


def gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def check_memory(recipe: Recipe, processes: int, mode: Mode, available_bytes: int) -> None:
    """Raise RecipeError, in one line, where a GPU has less memory than the recipe needs."""
    one = estimate(recipe, processes, mode)
    if one.total <= available_bytes:
        return
    parts = sorted(one.parts.items(), key=lambda part: -part[1])
    biggest = ", ".join(f"{name} {gib(size)}" for name, size in parts[:5])
    raise RecipeError(
        "GPU memory",
        f"is too small for {recipe.name}: it needs {gib(one.total)} GiB per GPU ({biggest}), "
        f"found {gib(available_bytes)} GiB; what would help: {', '.join(remedies(recipe, mode))}",
    )


def remedies(recipe: Recipe, mode: Mode) -> list[str]:
    """Settings that would lower the recipe's memory, as `key=value`."""
    settings, opt = recipe.models, recipe.optimisation
    possible = {
        "models.checkpointing=true": not settings.checkpointing,
        "models.keep=input": settings.checkpointing and recipe.saved_activations != "input",
        "models.offload=true": recipe.stage in ("distill", "cd") and not settings.offload and mode != "fsdp",
        "optimisation.optimizer=8bit": opt.optimizer != "8bit",
        "models.lora_rank=64": not settings.lora_rank,
        "optimisation.micro_batch=1": opt.micro_batch > 1,
        "loss.align=none": recipe.loss.align != "none",
        "fsdp over several GPUs": mode != "fsdp",
        "more GPUs": mode == "fsdp",
    }
    return [remedy for remedy, helps in possible.items() if helps]
