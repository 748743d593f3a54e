"""Simulated viewers on the session's websocket: what comes when, played as a page would, and prompts that are timed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from benchmarks.stream.player import Batch, Player
from salt.live.server.frames import HEADER

REPORT_SECONDS = 0.1  # between two messages of what was played, as the page
DIRECTIONS = ("left", "right", "up", "down")


@dataclass
class PromptTimes:
    """Seconds from sending a prompt. arrived: until the first frame made under it was here; shown: until it played."""

    sent: float
    event: int | None = None
    arrived: float | None = None
    shown: float | None = None


@dataclass
class Viewing:
    """One viewer's figures. arrivals: when batches came, by `time.perf_counter`; indices: play index after each."""

    player: Player
    opened: float
    arrivals: list[float] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    prompts: list[PromptTimes] = field(default_factory=list)
    dropped: int = 0  # by the server, as it tells
    refused: list[str] = field(default_factory=list)
    frame: int = 0  # along the branch, after the latest batch
    closed: str = ""


class ViewerClient:
    """A viewer's connection. Its figures are in `viewing` from the welcome on."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool], fps: float, opened: float) -> None:
        self._socket = socket
        self.viewing = Viewing(Player(fps), opened)
        self._by_ref: dict[int, PromptTimes] = {}

    async def send(self, **message: object) -> None:
        await self._socket.send_str(json.dumps(message))

    async def prompt(self, text: str) -> None:
        times = PromptTimes(time.perf_counter())
        self.viewing.prompts.append(times)
        ref = len(self.viewing.prompts)
        self._by_ref[ref] = times
        await self.send(type="control", ref=ref, control="prompt", prompts=[{"text": text}])

    async def read(self) -> None:
        """Until the other end closes."""
        async for message in self._socket:
            now = time.perf_counter()
            if message.type is aiohttp.WSMsgType.BINARY:
                _, generation, _, _, event, frame, index, count, _, _ = HEADER.unpack_from(message.data)
                self._frames(Batch(generation, event, frame, index, count), now)
            elif message.type is aiohttp.WSMsgType.TEXT:
                self._told(json.loads(message.data))

    def _frames(self, batch: Batch, now: float) -> None:
        viewing = self.viewing
        viewing.arrivals.append(now)
        viewing.indices.append(batch.index + batch.count)
        viewing.frame = batch.frame + batch.count
        for times in viewing.prompts[-8:]:
            if times.arrived is None and times.event is not None and batch.event >= times.event:
                times.arrived = now - times.sent
        viewing.player.arrived(batch, now)

    def _told(self, message: dict[str, object]) -> None:
        kind, viewing = message["type"], self.viewing
        if kind == "heard":
            self._by_ref[int(str(message["ref"]))].event = int(str(message["event"]))
        elif kind == "applied" and message["control"] == "prompt":
            viewing.player.applied(int(str(message["generation"])), int(str(message["frame"])))
        elif kind == "refused":
            viewing.refused.append(str(message["message"]))
        elif kind == "dropped":
            viewing.dropped = int(str(message["total"]))
        elif kind == "bye":
            viewing.closed = str(message["reason"])

    async def play(self) -> None:
        """Show frames as they are due, and tell the server what was shown."""
        player, reported, left_out = self.viewing.player, None, 0
        while True:
            player.advance(time.perf_counter())
            for times in self.viewing.prompts[-8:]:
                if times.shown is None and times.event is not None:
                    shown = (at for event, at in player.shown_events if event >= (times.event or 0))
                    times.shown = next((at - times.sent for at in shown), None)
            if player.played is not None and player.played != reported:
                await self.send(type="played", frame=player.played, dropped=player.left_out - left_out)
                reported, left_out = player.played, player.left_out
            await asyncio.sleep(REPORT_SECONDS)

    async def steer(self, chance: random.Random, between: tuple[float, float]) -> None:
        """Send another direction now and then. between: least and most seconds from one to the next."""
        direction = "right"
        while True:
            await asyncio.sleep(chance.uniform(*between))
            direction = chance.choice([other for other in DIRECTIONS if other != direction])
            await self.prompt(f"a fast red circle moving {direction}")


@asynccontextmanager
async def watching(http: aiohttp.ClientSession, address: str, session: str) -> AsyncIterator[ViewerClient]:
    """A viewer that has been welcomed, and plays until it is left."""
    opened = time.perf_counter()
    async with http.ws_connect(f"{address}/ws?session={session}", max_msg_size=0) as socket:
        await socket.send_str('{"type": "hello"}')
        welcome = await socket.receive_json()
        client = ViewerClient(socket, float(welcome["fps"]), opened)
        tasks = [asyncio.create_task(client.read()), asyncio.create_task(client.play())]
        try:
            yield client
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def session_id(http: aiohttp.ClientSession, address: str) -> str:
    async with http.get(f"{address}/api/sessions") as response:
        return str((await response.json())["sessions"][0]["id"])
