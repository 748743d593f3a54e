"""Make the clip of a live session again, from its replay file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..io.printable import printable
from .generate import add_model_arguments, pipeline_options
from .live_start import add_start_arguments, host_and_start
from .option_types import file_path

if TYPE_CHECKING:
    from ..live.engine import LiveEngine
    from ..live.replay import Replay


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=file_path, help="replay of a live session (.json)")
    command.add_argument("-o", "--out", type=file_path, help="video of the branch that the session ended on (.mp4)")
    add_start_arguments(command)
    add_model_arguments(command, named_loras=True)


def run(arguments: argparse.Namespace) -> None:
    from ..io.atomic import check_writable
    from ..live.replay import play, read_replay, replay_engine
    from ..live.result import digest, result_of
    from ..pipeline.from_options import load_pipeline
    from .generation import run_device

    replay = read_replay(arguments.file)
    if arguments.out is not None:
        check_writable(arguments.out, ".mp4")
    options = pipeline_options(arguments, named_loras=True)
    pipe = load_pipeline(options, run_device(options))
    size, policy = (replay.width, replay.height), replay.settings.policy
    host, start = host_and_start(pipe, size, arguments.extend, arguments.image, policy)
    engine = replay_engine(host, replay, decodes=arguments.out is not None, start=start)
    if arguments.out is None:
        for _ in play(engine, replay):
            pass
    else:
        _write_video(engine, replay, arguments.out)
    branch = engine.branch
    seconds = engine.info.first_pixel_frame(branch.end) / engine.info.fps
    made = "" if branch.tip is None else f", latents {digest(result_of(engine, None).latents)}"
    name = printable(arguments.out or arguments.file)
    print(f"{name}: {engine.made} blocks made, {branch.blocks} of them on branch {branch.id} ({seconds:.2f} s){made}")


def _write_video(engine: LiveEngine, replay: Replay, out: Path) -> None:
    """Record as the session did, in a folder beside `out`, and keep the last branch."""
    import tempfile

    from ..io.atomic import replace_file
    from ..io.partial_files import written_path
    from ..live.output import LiveOutput
    from ..live.replay import play
    from ..live.viewers import Viewers

    out = written_path(out)
    with tempfile.TemporaryDirectory(prefix=".salt-replay-", dir=out.parent) as folder:
        output = LiveOutput(engine.info, Viewers(), Path(folder) / "clip.mp4")
        engine.on_move = lambda branch: output.move_to(branch, 0)
        for block in play(engine, replay):
            output.put(block, 0, 0)
            output.check()
        if failure := output.close():
            raise OSError(f"{out}: {failure}")
        assert output.recording is not None
        replace_file(output.recording.path, out)
