"""Check that this device computes what it should, and how fast, in a minute and without a download.

Writes a report as JSON and text, to attach to an issue.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..io.printable import one_line, printable
from .option_types import file_path

if TYPE_CHECKING:
    from ..selftest.outcome import Row


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o",
        "--out",
        type=file_path,
        default=Path("salt-selftest.json"),
        help="report to write (salt-selftest.json); the same as text beside it, as .txt",
    )
    command.add_argument("--device", help="default: CUDA where there is one")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from ..acceleration.device import usable_device
    from ..io.atomic import check_writable, write_text
    from ..selftest.run import checks, run_checks

    check_writable(arguments.out, ".json")
    device = usable_device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    report = run_checks(device, checks(device), show_row)
    write_text(arguments.out, report.json() + "\n")
    text = arguments.out.with_suffix(".txt")
    write_text(text, report.text() + "\n")
    print(f"report: {printable(arguments.out)} and {printable(text)}")
    if not report.trusted:
        raise SelfTestError(report.verdict)
    print(report.verdict)


def show_row(row: Row) -> None:
    print(f"{row.outcome.status:8}  {row.name:25}  {one_line(row.outcome.detail)}", flush=True)


class SelfTestError(RuntimeError):
    """The verdict on a device that cannot be trusted."""
