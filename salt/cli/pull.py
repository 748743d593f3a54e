"""Download released weights from the model hub: resumable and hash-checked."""

from __future__ import annotations

import argparse
import sys

from .option_types import file_path


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("parts", nargs="*", help="which (none: list them)")
    command.add_argument(
        "--to", type=file_path, help="folder (default: $SALT_MODELS, or salt/models in the cache folder)"
    )
    command.add_argument("--endpoint", help="another hub (default: $HF_ENDPOINT, or the public one)")
    command.add_argument("--revision", default="main")
    command.add_argument(
        "--accept-licence", action="store_true", help="accept restricted licences without being asked, for scripts"
    )


def _show_licences(arguments: argparse.Namespace) -> None:
    """Print the licence of every part, and ask for those that are restricted. Raises HubError for a refusal."""
    from ..io.hub import HubError, known_parts, licence_of
    from ..io.printable import printable

    for name, part in zip(arguments.parts, known_parts(arguments.parts), strict=True):
        licence = licence_of(part, arguments.endpoint, arguments.revision)
        print(printable(f"{name}: licence: {licence.text}"))
        if not licence.restricted or arguments.accept_licence:
            continue
        what = f"{name}: its licence may forbid commercial and other uses; read {part.repo} on the hub"
        if not sys.stdin.isatty():
            raise HubError(f"{what}, then pull with --accept-licence")
        if input(printable(f"{what}. Accept it? [y/N] ")).strip().lower() not in ("y", "yes"):
            raise HubError(f"{name}: not downloaded: its licence was not accepted")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
    from rich.table import Table

    from ..io.hub import models_folder, pull
    from ..io.hub_parts import PARTS
    from ..io.printable import printable

    if not arguments.parts:
        table = Table("part", "what it is", "from", "licence")
        for name, part in PARTS.items():
            table.add_row(name, part.about, part.where, part.licence)
        Console().print(table)
        print(f"`salt pull PART ...` puts them under {arguments.to or models_folder()}")
        return
    _show_licences(arguments)
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(printable(file), total=total)
            bar.update(tasks[file], completed=done, total=total)

        paths = pull(
            arguments.parts, arguments.to, endpoint=arguments.endpoint, revision=arguments.revision, progress=show
        )
    for path in paths:
        print(printable(path))
