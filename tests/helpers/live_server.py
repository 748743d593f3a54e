"""A live session without a model, served on a free port, and a viewer that reads what it sends."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from salt.live.server.frames import HEADER, LENGTH
from salt.live.server.hosted import LiveRegistry
from salt.live.server.routes import PREFIX, add_routes
from salt.live.server.security import Access

PATIENCE_S = 20.0


@asynccontextmanager
async def served(session, access=None, registry=None):
    """(address, id) of a server with this session, which is started and ended with it."""
    access = access or Access()
    registry = LiveRegistry() if registry is None else registry
    id = registry.add(session)
    app = web.Application()
    add_routes(app.router, registry, access)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    session.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}", id
    finally:
        session.stop()
        await asyncio.get_running_loop().run_in_executor(None, session.join)
        registry.close()
        await runner.cleanup()
        session.close()


@dataclass
class Frames:
    """A binary message, read."""

    generation: int
    branch: int
    block: int
    event: int
    frame: int
    play_index: int
    format: int
    flags: int
    pictures: list[bytes]


def read_frames(message: bytes) -> Frames:
    magic, *position, count, kind, flags = HEADER.unpack_from(message)
    assert magic == b"SLF1"
    pictures, at = [], HEADER.size
    for _ in range(count):
        (length,) = LENGTH.unpack_from(message, at)
        pictures.append(message[at + 4 : at + 4 + length])
        at += 4 + length
    assert at == len(message)
    return Frames(*position, kind, flags, pictures)


class TestViewer:
    """A viewer's websocket. Messages that nobody waits for are passed over."""

    __test__ = False

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.welcome = {}
        self._ref = 0

    async def send(self, **message):
        await self.socket.send_str(json.dumps(message))

    async def control(self, name, **fields) -> int:
        self._ref += 1
        await self.send(type="control", ref=self._ref, control=name, **fields)
        return self._ref

    async def next(self) -> dict | Frames:
        message = await asyncio.wait_for(self.socket.receive(), PATIENCE_S)
        if message.type is aiohttp.WSMsgType.BINARY:
            return read_frames(message.data)
        if message.type is aiohttp.WSMsgType.TEXT:
            return json.loads(message.data)
        raise ConnectionResetError(f"closed with {self.socket.close_code}")

    async def until(self, kind: str, **fields) -> dict:
        """The next JSON message of this type that has these fields."""
        while True:
            message = await self.next()
            if isinstance(message, dict) and message["type"] == kind:
                if all(message[name] == value for name, value in fields.items()):
                    return message

    async def frames(self) -> Frames:
        while not isinstance(message := await self.next(), Frames):
            pass
        return message

    async def closed(self) -> int | None:
        """Reads until the other end closes; its close code."""
        while not self.socket.closed:
            await asyncio.wait_for(self.socket.receive(), PATIENCE_S)
        return self.socket.close_code


@asynccontextmanager
async def viewer(address, session, after=None, **options):
    """A viewer that has been welcomed."""
    async with aiohttp.ClientSession() as client:
        async with client.ws_connect(f"{address}/ws?session={session}", max_msg_size=0, **options) as socket:
            connected = TestViewer(socket)
            await connected.send(type="hello", **({} if after is None else {"after": after}))
            connected.welcome = await connected.until("welcome")
            yield connected
