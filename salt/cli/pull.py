"""Download released weights from the model hub: resumable and hash-checked."""

from __future__ import annotations

import argparse

from .paths import file_path


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("parts", nargs="*", help="which (none: list them)")
    command.add_argument(
        "--to", type=file_path, help="folder (default: $SALT_MODELS, or salt/models in the cache folder)"
    )
    command.add_argument("--endpoint", help="another hub (default: $HF_ENDPOINT, or the public one)")
    command.add_argument("--revision", default="main")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
    from rich.table import Table

    from ..io.hub import PARTS, models_folder, pull
    from ..io.printable import printable

    if not arguments.parts:
        table = Table("part", "what it is", "from")
        for name, part in PARTS.items():
            table.add_row(name, part.about, f"{part.repo}/{part.folder}")
        Console().print(table)
        print(f"`salt pull PART ...` puts them under {arguments.to or models_folder()}")
        return
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
