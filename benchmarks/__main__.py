"""Measures the speed table: `python -m benchmarks gpu` or `cpu`; `ledger` counts without a GPU, `stream` measures live
sessions.

Each cell is saved as soon as it is measured, and an interrupted run continues with the missing ones; `--again` measures
all again. A cell that fails is marked in the table; the others are still measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.cells import CPU, GPU, Bench, Cell
from benchmarks.ledger.table import write_table
from benchmarks.measure import environment
from benchmarks.stream import command as stream
from salt.io.atomic import write_text


def measure(cells: tuple[Cell, ...], bench: Bench, path: Path, again: bool) -> dict[str, Any]:
    """Measure the cells that the results file lacks; figures of another device or version are discarded."""
    where = {**environment(), "diffusers": diffusers.__version__}
    results: dict[str, Any] = {}
    if path.exists() and not again:
        previous = json.loads(path.read_text())
        results = previous if previous.get("where") == where else {}
    results.setdefault("where", where)
    measured = results.setdefault("cells", {})
    results.setdefault("ceilings", bench.ceiling)
    bench.measured_ceilings = results["ceilings"]
    for cell in cells:
        if cell.name in measured and not {"failed", "skipped"} & measured[cell.name].keys():
            continue
        start = time.perf_counter()
        try:
            figures = cell.measure(bench)
        except Exception as error:  # the other cells are measured all the same
            figures = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        measured[cell.name] = {**figures, "took_s": round(time.perf_counter() - start, 1)}
        print(f"{cell.name}: {shown_figure(cell, measured[cell.name])}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(results, indent=1) + "\n")
    return results


def shown_figure(cell: Cell, figures: dict[str, Any]) -> str:
    """The figure of a row with its unit, or why there is none."""
    for word in ("failed", "skipped"):
        if word in figures:
            return f"{word}: {figures[word]}"
    return f"{figures[cell.shown]:.3g} {cell.unit}"


def as_table(cells: tuple[Cell, ...], results: dict[str, Any]) -> str:
    """Markdown table: device, versions, ceilings, and one row per cell."""
    where, ceiling = results["where"], results["ceilings"]
    rates = [f"matmul {ceiling['flops'] / 1e12:.3g} TFLOP/s"]
    rates += [f"fp8 {ceiling['fp8_flops'] / 1e12:.3g} TFLOP/s"] if "fp8_flops" in ceiling else []
    rates += [f"copy {ceiling['bytes'] / 1e9:.3g} GB/s"]
    rows = [
        f"{where['device']}, {where['threads']} threads, torch {where['torch']}, diffusers {where['diffusers']}; "
        f"measured ceilings: {', '.join(rates)}.",
        "",
        "| what | figure | target | of the matmul ceiling | published |",
        "|---|---|---|---|---|",
    ]
    for cell in cells:
        figures = results["cells"].get(cell.name)
        share = f"{figures['of_matmul']:.0%}" if figures and "of_matmul" in figures else ""
        rows.append(
            f"| {cell.name} | {shown_figure(cell, figures) if figures else 'not measured yet'} "
            f"| {cell.target} | {share} | {cell.published} |"
        )
    return "\n".join(rows)


def measure_table(arguments: argparse.Namespace) -> None:
    device = torch.device("cuda" if arguments.what == "gpu" else "cpu")
    cells = GPU if arguments.what == "gpu" else CPU
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "gpu: found no CUDA device, nothing is measured (python -m benchmarks cpu runs anywhere)", file=sys.stderr
        )
        sys.exit(2)
    chosen = tuple(c for c in cells if not arguments.only or any(text in c.name for text in arguments.only))
    path = arguments.out / f"{arguments.what}.json"
    results = measure(chosen, Bench(device), path, arguments.again)
    table = as_table(cells, results)
    write_text(path.with_suffix(".md"), table + "\n")
    print(f"\n{table}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parts = parser.add_subparsers(dest="what", required=True, metavar="gpu | cpu | ledger | stream")
    for name in ("gpu", "cpu"):
        table = parts.add_parser(name, help="the speed table of this machine")
        table.add_argument("--again", action="store_true", help="measure all cells again")
        table.add_argument("--only", nargs="+", metavar="TEXT", help="cells whose name contains one of these")
        table.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for .json and .md")
        table.set_defaults(run=measure_table)
    ledger = parts.add_parser("ledger", help="what the code asks of a GPU, counted without one")
    ledger.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name contains one of these")
    ledger.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for ledger.md")
    ledger.set_defaults(run=lambda given: write_table(given.out / "ledger.md", given.only))
    live = parts.add_parser("stream", help="what viewers of a live session get")
    stream.add_arguments(live)
    live.set_defaults(run=stream.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
