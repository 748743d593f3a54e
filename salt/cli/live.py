"""Steer a clip while it plays, on a page in the browser."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..io.atomic import check_free
from ..io.printable import printable
from .generate import add_encoder_argument, add_model_arguments, pipeline_options
from .live_start import add_start_arguments, host_and_start
from .option_types import file_path, pixel_size

if TYPE_CHECKING:
    from ..live.session import LiveSession

PORT = 8198
LOOPBACK = "127.0.0.1"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", nargs="+", metavar="PROMPT", help="what the clip begins with; words need no quotes")
    server = command.add_argument_group("the server")
    server.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    server.add_argument("--host", default=LOOPBACK, help="address to listen on (this machine alone: %(default)s)")
    server.add_argument("--token", help="needed to open the page; beyond this machine one is drawn if none is given")
    server.add_argument("--open", action="store_true", help="open the page in the browser")
    server.add_argument(
        "--record", type=file_path, metavar="FILE", help="NAME.mp4; the replay lies beside it afterwards"
    )
    clip = command.add_argument_group("the clip")
    clip.add_argument("--size", type=pixel_size, metavar="WIDTHxHEIGHT", help="default: the memory's, or the student's")
    clip.add_argument("--seed", type=int, default=0)
    clip.add_argument(
        "--nfe", type=int, choices=(1, 2, 4, 8), help="model evaluations per block (default: the student's)"
    )
    clip.add_argument("--stepping", choices=("sde", "ode", "unipc"), help="default: the student's")
    clip.add_argument("--guidance", type=float, default=1.0)
    clip.add_argument("--negative", default="", help="negative prompt, used while guidance is on")
    clip.add_argument("--memory", metavar="POLICY", help="as in `salt generate`")
    clip.add_argument(
        "--video", type=file_path, metavar="FILE", help="a video that blocks start from, over and over (page: a camera)"
    )
    add_encoder_argument(clip)
    clip.add_argument("--strength", type=float, help="how far --video or the camera may be changed, 0 to 1 (0.5)")
    clip.add_argument(
        "--pace",
        default="realtime",
        choices=("realtime", "free"),
        help="free: as fast as it can (%(default)s)",
    )
    clip.add_argument("--lead", type=int, default=1, help="blocks made ahead of the fastest viewer (%(default)s)")
    clip.add_argument(
        "--rewind-budget",
        type=int,
        metavar="MB",
        help="main memory for going back (default: eight copies of the memory)",
    )
    add_start_arguments(command)
    add_model_arguments(command, named_loras=True)


def run(arguments: argparse.Namespace) -> None:
    import secrets
    import webbrowser

    from ..acceleration.heap import use_one_arena
    from ..live.server.app import serve
    from ..live.server.security import Access, is_loopback
    from ..live.session import LiveSession
    from ..live.settings import LiveSettings
    from ..live.video_feed import CameraPictures, FilePictures
    from ..pipeline.from_options import load_pipeline
    from .generation import run_device

    if not 0 <= arguments.port <= 65535:
        raise ValueError(f"--port: found {arguments.port}, expected 0 to 65535")
    token = arguments.token
    if token is None and not is_loopback(arguments.host):
        token = secrets.token_urlsafe(16)
    access = Access((arguments.host,), token)
    settings = LiveSettings(
        prompt=" ".join(arguments.prompt), negative=arguments.negative, seed=arguments.seed, nfe=arguments.nfe,
        guidance=arguments.guidance, policy=arguments.memory, pace=arguments.pace, lead=arguments.lead,
        rewind_budget=None if arguments.rewind_budget is None else arguments.rewind_budget * 10**6,
        **({} if arguments.strength is None else {"strength": arguments.strength}),
        stepping=arguments.stepping,
    )  # fmt: skip
    if arguments.video is not None:
        FilePictures(arguments.video)  # what is wrong with it is said before the weights are read
    record: Path | None = arguments.record
    if record is not None:
        check_free(_replay_file(record), "replay")
    use_one_arena()
    options = replace(pipeline_options(arguments, named_loras=True), encoder=arguments.encoder)
    pipe = load_pipeline(options, run_device(options))
    host, start = host_and_start(pipe, arguments.size, arguments.extend, arguments.image, arguments.memory)
    video: Path | None = arguments.video
    pictures = CameraPictures() if video is None else FilePictures(video, pipe.spec.fps)
    session = LiveSession(host, settings, record=record, feed=host.new_feed(pictures), start=start)

    def on_start(address: str) -> None:
        print(f"{printable(address)}  (Ctrl-C ends it)", flush=True)
        if arguments.open:
            webbrowser.open(address)

    try:
        serve(session, access, arguments.port, on_start)
    finally:
        session.close()
        if record is not None and (path := session.recording_path()) is not None:
            _finish(session, path, _replay_file(record))


def _replay_file(recording: Path) -> Path:
    return recording.with_suffix(".replay.json")


def _finish(session: LiveSession, recording: Path, replay: Path) -> None:
    """Save the replay and say where both are. A session that made nothing leaves nothing."""
    if recording.stat().st_size == 0:
        recording.unlink()
        return
    try:
        session.replay().save(replay)
    except InputError as error:
        print(f"{printable(recording)}: the recording; {error}")
    else:
        print(f"{printable(recording)}: the recording; {printable(replay)}: for `salt replay`")
