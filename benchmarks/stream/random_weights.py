"""The server of a live session on random weights of Wan 2.1 1.3B, for figures of speed: started by the benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.generation import random_wan
from benchmarks.stream.server import PROMPT
from salt.live.pipeline_host import PipelineHost
from salt.live.server.app import serve
from salt.live.server.security import Access
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from salt.pipeline import SaltPipeline


def serve_random(pipe: SaltPipeline, settings: LiveSettings, record: Path | None) -> None:
    """Serve a session of a pipeline on a free port until Ctrl-C; its address is the first line that is printed."""
    session = LiveSession(PipelineHost(pipe), settings, record=record)
    try:
        serve(session, Access(("127.0.0.1",), None), 0, lambda address: print(address, flush=True))
    finally:
        session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nfe", type=int, required=True)
    parser.add_argument("--memory", required=True)
    parser.add_argument("--pace", required=True)
    parser.add_argument("--rewind-budget", type=int, required=True)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    pipe = random_wan(torch.device("cuda"))
    pipe.set_acceleration("exact")
    settings = LiveSettings(
        PROMPT,
        nfe=given.nfe,
        policy=given.memory,
        pace=given.pace,
        rewind_budget=2**20 * given.rewind_budget,
    )
    serve_random(pipe, settings, given.record)


if __name__ == "__main__":
    main()
