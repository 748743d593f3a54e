"""The table of `python -m train gradients`, and its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from train.config.recipe import Recipe
from train.gradients.measure import Row

COLUMNS = {"semigroup": "semigroup / dmd", "align": "align / dmd"}


def table(recipe: Recipe, rows: Sequence[Row], done: int, seeds: int, batches: int) -> str:
    """Markdown: a row per exit step; ratios in percent, with the standard deviation between batches."""
    clips = recipe.optimisation.micro_batch
    lines = [
        f"{recipe.name} after {done} updates: {seeds} seeds x {batches} batches of {clips} clips; gradient norms of "
        "losses with their weights, means +- standard deviation between batches",
        "",
        f"| steps | exit | timestep | dmd | {' | '.join(COLUMNS.values())} |",
        f"|{'---|' * (4 + len(COLUMNS))}",
    ]
    for row in rows:
        timestep = recipe.schedule(row.steps).timesteps[row.exit_index]
        cells = [_cell(row, term) for term in COLUMNS]
        dmd = fmean(row.norms["dmd"])
        lines.append(f"| {row.steps} | {row.exit_index} | {timestep:.0f} | {dmd:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row, term: str) -> str:
    if term not in row.norms:
        return ""
    mean, deviation = row.ratio(term)
    return f"{100 * mean:.3g} +- {100 * deviation:.2g} %"


def as_json(rows: Sequence[Row], done: int) -> str:
    return json.dumps({"updates": done, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
