"""The measurements: one viewer who steers, eight viewers beside one, and memory over a long clip."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp

from benchmarks.stream.client import Viewing, session_id, watching
from benchmarks.stream.server import Server, ServerError

SETTLE_SECONDS = 1.0  # after viewers came or left, before their rate is counted
TURNS = 6  # with many viewers, each between two with one
WARM_BATCHES = 4
Figures = dict[str, object]
SAMPLE_SECONDS = 10.0  # of clip, between two looks at the resident memory


def percentiles(values: Sequence[float], *wanted: int) -> dict[str, float]:
    """The smallest value that so many per cent do not exceed."""
    ordered = sorted(values)
    return {f"p{p}": round(ordered[max(-(-p * len(ordered) // 100) - 1, 0)], 4) for p in wanted if ordered}


async def one_viewer(server: Server, seconds: float, between: tuple[float, float]) -> Figures:
    """A viewer that watches from the first moment and sends prompts. between: seconds from one prompt to the next."""
    async with aiohttp.ClientSession() as http:
        async with watching(http, server.address, await session_id(http, server.address)) as client:
            steering = asyncio.create_task(client.steer(random.Random(0), between))
            begin_cpu = server.cpu_seconds()
            resident = []
            until = time.perf_counter() + seconds
            while (left := until - time.perf_counter()) > 0:
                await asyncio.sleep(min(left, 1.0))
                resident.append(server.resident_mib())
                if client.viewing.closed:
                    raise ServerError(f"the viewer was sent away: {client.viewing.closed}")
            steering.cancel()
            cpu = server.cpu_seconds() - begin_cpu
    return viewer_figures(client.viewing, server.started) | {
        "seconds": seconds,
        "resident_mib_first": round(resident[min(59, len(resident) // 2)], 1),
        "resident_mib_last": round(resident[-1], 1),
        "server_cores": round(cpu / seconds, 3),
        "load_average": os.getloadavg()[0],
    }


def viewer_figures(viewing: Viewing, started: float) -> Figures:
    """started: when the server's command was given."""
    gaps = [b - a for a, b in zip(viewing.arrivals, viewing.arrivals[1:], strict=False)]
    answered = [times for times in viewing.prompts if times.arrived is not None]
    player = viewing.player
    if not viewing.arrivals:
        raise ServerError("no frames came")
    return {
        "first_frame_s": round(viewing.arrivals[0] - started, 3),
        "first_frame_from_connection_s": round(viewing.arrivals[0] - viewing.opened, 3),
        "block_gap_s": percentiles(gaps, 50, 95, 99),
        "frames_shown": player.shown,
        "deadlines_missed": player.late,
        "underruns": player.underruns,
        "dry_s": round(player.dry_seconds, 3),
        "prompts": len(viewing.prompts),
        "prompts_answered": len(answered),
        "prompt_to_frame_s": percentiles([t.arrived for t in answered if t.arrived is not None], 50, 95, 100),
        "prompt_to_shown_s": percentiles([t.shown for t in answered if t.shown is not None], 50, 95, 100),
        "left_out_for_prompts": player.left_out,
        "dropped_by_server": viewing.dropped,
        "refused": viewing.refused[:4],
    }


async def crowd(server: Server, viewers: int, seconds: float) -> Figures:
    """Frames made in a second with many viewers over the rate with one, in turns on one free-running session.

    seconds: of all turns together.
    """
    turn = seconds / (2 * TURNS + 1)
    one: list[Turn] = []
    many: list[Turn] = []
    async with aiohttp.ClientSession() as http:
        session = await session_id(http, server.address)
        async with watching(http, server.address, session) as first:
            while len(first.viewing.arrivals) < WARM_BATCHES:
                await asyncio.sleep(0.05)
            one.append(await _turn(server, first.viewing, turn))
            for _ in range(TURNS):
                async with AsyncExitStack() as stack:
                    for _ in range(viewers - 1):
                        await stack.enter_async_context(watching(http, server.address, session))
                    many.append(await _turn(server, first.viewing, turn))
                one.append(await _turn(server, first.viewing, turn))
    ratios = [2 * m.fps / (a.fps + b.fps) for a, m, b in zip(one, many, one[1:], strict=False)]
    return {
        "viewers": viewers,
        "fps_with_one": round(statistics.median(turn.fps for turn in one), 2),
        "fps_with_many": round(statistics.median(turn.fps for turn in many), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "cpu_ms_per_frame_with_one": round(1000 * statistics.median(turn.cpu for turn in one), 3),
        "cpu_ms_per_frame_with_many": round(1000 * statistics.median(turn.cpu for turn in many), 3),
        "load_average": os.getloadavg()[0],
    }


@dataclass(frozen=True)
class Turn:
    """fps: frames made in a second. cpu: seconds of the server's processor time for each."""

    fps: float
    cpu: float


async def _turn(server: Server, viewing: Viewing, seconds: float) -> Turn:
    await asyncio.sleep(SETTLE_SECONDS)
    begin, cpu = len(viewing.arrivals) - 1, server.cpu_seconds()
    await asyncio.sleep(seconds)
    made = viewing.indices[-1] - viewing.indices[begin]
    return Turn(made / (viewing.arrivals[-1] - viewing.arrivals[begin]), (server.cpu_seconds() - cpu) / made)


async def memory(server: Server, clip_seconds: float) -> Figures:
    """Resident memory of a free-running session over so much of clip; one viewer watches and steers."""
    resident: list[tuple[float, float]] = []  # second of the clip, MiB
    began = time.perf_counter()
    async with aiohttp.ClientSession() as http:
        async with watching(http, server.address, await session_id(http, server.address)) as client:
            steering = asyncio.create_task(client.steer(random.Random(1), (1.0, 3.0)))
            while (at := client.viewing.frame / client.viewing.player.fps) < clip_seconds:
                if not resident or at >= resident[-1][0] + SAMPLE_SECONDS:
                    resident.append((round(at, 1), round(server.resident_mib(), 1)))
                if client.viewing.closed:
                    raise ServerError(f"the viewer was sent away: {client.viewing.closed}")
                await asyncio.sleep(0.1)
            steering.cancel()
    resident.append((round(at, 1), round(server.resident_mib(), 1)))
    later = [mib for moment, mib in resident if moment >= 60] or [resident[-1][1]]
    return {
        "clip_seconds": round(at, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "over": round(max(later) / later[0], 4),
        "resident_mib": resident,
        "dropped_by_server": client.viewing.dropped,
        "load_average": os.getloadavg()[0],
    }
