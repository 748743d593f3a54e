"""Tables of the deciding experiment's records: every arm, and the differences that it was made for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from train.experiments.ablation.arms import ARMS, arms_named
from train.experiments.ablation.paired_differences import Difference, over_seeds, verdict

# Heading and decimals; passed clips in percent, distances in percent of the drawn object, defects times 10000.
MEASURES = {
    "passed, 4 NFE": 1, "passed, 2 NFE": 1, "distance, 4 NFE": 1, "distance, 2 NFE": 1, "Euler defect": 0,
    "sampler defect": 0,
}  # fmt: skip

Records = dict[str, dict[int, dict[str, Any]]]


def records(out: Path) -> Records:
    """Recorded scores by arm and seed, in the study's order."""
    found: Records = {arm.name: {} for arm in ARMS if arm.group == 5}
    for path in sorted((out / "deciding").glob("*-seed-*.json")):
        record = json.loads(path.read_text())
        found[record["arm"]][record["seed"]] = record
    return {name: by_seed for name, by_seed in found.items() if by_seed}


def measured(record: dict[str, Any]) -> list[float]:
    """The values of MEASURES for one student."""
    clips = [record["clips"][count] for count in ("4", "2")]
    passed = [100 * c["passed"].count("1") / len(c["passed"]) for c in clips]
    distance = [100 * fmean(c["distance"]) for c in clips]
    return [*passed, *distance, 1e4 * record["defect"]["euler"], 1e4 * record["defect"]["sampler"]]


def arms_table(found: Records) -> str:
    """Markdown: the mean over seeds of every arm, and each seed's value in brackets."""
    lines = [f"| arm | {' | '.join(MEASURES)} |", "|" + "---|" * (1 + len(MEASURES))]
    for name, by_seed in found.items():
        columns = zip(*(measured(record) for record in by_seed.values()), strict=True)
        cells = [_cell(values, digits) for values, digits in zip(columns, MEASURES.values(), strict=True)]
        lines.append(f"| `{name}`: {arms_named([name])[0].about} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    each = f" ({', '.join(f'{v:.{digits}f}' for v in values)})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{each}"


def differences_table(found: Records) -> str:
    """Markdown: every arm less its control, with errors over the seeds that both have, and what is shown."""
    lines = [f"| arm less control | seeds | {' | '.join(MEASURES)} |", "|" + "---|" * (2 + len(MEASURES))]
    compared: list[tuple[str, Difference]] = []
    for name, by_seed in found.items():
        control = arms_named([name])[0].control
        seeds = sorted(by_seed.keys() & found.get(control, {}).keys())
        if not seeds:
            continue
        rows = [(measured(by_seed[s]), measured(found[control][s])) for s in seeds]
        cells = []
        for i, (measure, digits) in enumerate(MEASURES.items()):
            difference = over_seeds([own[i] - other[i] for own, other in rows])
            compared.append((f"`{name}` less `{control}` in {measure}", difference))
            cells.append(difference.text(digits))
        lines.append(f"| `{name}` less `{control}` | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", verdict(compared)])


def deciding_tables(out: Path) -> str:
    """Markdown: both tables, or "" without records."""
    found = records(out)
    return f"{arms_table(found)}\n\n{differences_table(found)}" if found else ""
