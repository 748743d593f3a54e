"""`python -m benchmarks stream`: a real server in a process of its own, simulated viewers in this one."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import environment, write_json
from benchmarks.stream.measures import Figures, crowd, memory, one_viewer
from benchmarks.stream.server import Server, random_live, salt_live

PROMPTS_EVERY = (2.0, 4.0)  # least and most seconds from one prompt to the next


def seconds(text: str) -> float:
    """`20`, `20s` or `10min` in seconds."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)(s|min)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a time such as 20s or 10min, 0 to leave it out")
    return float(found[1]) * (60 if found[2] == "min" else 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", type=seconds, default=600.0, metavar="TIME", help="of one viewer who steers (10min)")
    parser.add_argument(
        "--crowd", type=seconds, default=60.0, metavar="TIME", help="with one and many viewers in turns"
    )
    parser.add_argument("--viewers", type=int, default=8, help="who are many (%(default)s)")
    parser.add_argument("--memory", type=seconds, default=0.0, metavar="TIME", help="of clip, as fast as it can (0)")
    parser.add_argument("--nfe", type=int, choices=(2, 4, 8), default=2)
    parser.add_argument("--policy", default="sink:3,window:12", help="of the memory (%(default)s)")
    parser.add_argument("--rewind-budget", type=int, default=16, metavar="MIB", help="of the session (%(default)s)")
    parser.add_argument("--weights", choices=("salt-tiny", "random-1.3b"), default="salt-tiny")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stream.json"))


def run(given: argparse.Namespace) -> None:
    """Measure what is asked for, and write it to the results file, which keeps its other parts; print the table."""
    if given.weights == "random-1.3b" and not torch.cuda.is_available():
        raise SystemExit("--weights random-1.3b: found no CUDA device, expected one")
    measures: dict[str, tuple[str, Callable[[Server], Awaitable[Figures]]]] = {
        "watch": ("realtime", lambda server: one_viewer(server, given.watch, PROMPTS_EVERY)),
        "crowd": ("free", lambda server: crowd(server, given.viewers, given.crowd)),
        "memory": ("free", lambda server: memory(server, given.memory)),
    }
    results: dict[str, Figures] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for part, (pace, measure) in measures.items():
        if getattr(given, part):
            results[part] = _measured(given, pace, measure)
            write_json(given.out, results)
            print(f"{part}: {json.dumps(results[part])}", flush=True)
    show(results)
    print(f"written to {given.out}")


def _measured(given: argparse.Namespace, pace: str, measure: Callable[[Server], Awaitable[Figures]]) -> Figures:
    """One measurement, on a server of its own that records."""
    command = random_live if given.weights == "random-1.3b" else salt_live
    options = ["--nfe", str(given.nfe), "--memory", given.policy, "--rewind-budget", str(given.rewind_budget)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        options += ["--pace", pace, "--record", str(Path(folder) / "clip.mp4")]
        with closing(Server(command(options), log)) as server:
            how: Figures = {"weights": given.weights, "options": " ".join(options[:6])}
            return how | asyncio.run(as_coroutine(measure(server)))


async def as_coroutine(measuring: Awaitable[Figures]) -> Figures:
    return await measuring


def show(results: dict[str, Figures]) -> None:
    """Print the parts that were measured as a table."""
    where = environment()
    table = Table("what", "figure", "limit", title=f"{where['device']}, {where['threads']} threads")
    for row in rows(results):
        table.add_row(*row)
    Console().print(table)


def rows(results: dict[str, Figures]) -> list[tuple[str, str, str]]:
    """What, figure and limit, of the parts that were measured."""
    found: list[tuple[str, str, str]] = []
    if watch := results.get("watch"):
        seconds_of = {name: watch[name] for name in ("block_gap_s", "prompt_to_frame_s", "prompt_to_shown_s")}
        found += [
            ("first frame, from the command", f"{watch['first_frame_s']} s", ""),
            *((name, _shown(value), "") for name, value in seconds_of.items()),
            ("deadlines missed, underruns", f"{watch['deadlines_missed']}, {watch['underruns']}", "0, 0"),
            ("dropped, left out for prompts", f"{watch['dropped_by_server']}, {watch['left_out_for_prompts']}", "0,"),
            ("resident memory, early and late", f"{watch['resident_mib_first']}, {watch['resident_mib_last']} MiB", ""),
            ("cores of the server", f"{watch['server_cores']}", ""),
        ]
    if among := results.get("crowd"):
        found.append((f"rate with {among['viewers']} viewers over one", f"{among['ratio']}", "0.90"))
    if clip := results.get("memory"):
        found.append((f"resident memory after {clip['clip_seconds']} s of clip over 60 s", f"{clip['over']}", "1.05"))
    return found


def _shown(value: object) -> str:
    return ", ".join(f"{name} {figure}" for name, figure in value.items()) if isinstance(value, dict) else str(value)
