"""A stand-in for a live session: the server's routes and messages, with drawn frames, for quick tests of the page.

Its pictures are a square on grey that says which frame it is: the square's left edge lies at column `frame % 64`, its
colour is red before the first prompt control and green after it.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aiohttp import WSMsgType, web
from PIL import Image, ImageDraw

PAGE = Path(__file__).parents[2] / "salt" / "live" / "page"
CSP = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"
FPS, BLOCK, SIZE = 48, 12, 64  # three times the usual rate: tests wait for blocks
WORDS = "a moving slow fast red yellow green cyan blue purple circle square triangle right down left up".split()


def picture(frame: int, colour: str) -> bytes:
    image = Image.new("RGB", (SIZE, SIZE), "#556")
    ImageDraw.Draw(image).rectangle((frame % SIZE, 24, frame % SIZE + 15, 39), fill=colour)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


@dataclass
class Branch:
    id: int
    parent: int | None = None
    fork_frame: int = 0
    frames: int = 0
    prompts: list[dict] = field(default_factory=list)


@dataclass
class MockSession:
    """One viewer, who steers. Blocks are made every `block_seconds` while `played` is at most `lead` frames behind."""

    block_seconds: float = 0.02
    lead: int = BLOCK
    id: str = "mock-session"
    status: str = "playing"
    generation: int = 0
    event: int = 0
    branch: int = 0
    frame: int = 0
    index: int = 0  # frames made, over all branches
    played: int = -1
    colour: str = "red"
    prompt: str = "a slow red circle moving right"
    settings: dict = field(
        default_factory=lambda: {"nfe": 2, "guidance": 1.0, "policy": "full", "seed": 0, "pace": "realtime"}
    )
    branches: list[Branch] = field(
        default_factory=lambda: [Branch(0, prompts=[{"frame": 0, "text": "a slow red circle moving right"}])]
    )
    bookmarks: list[dict] = field(default_factory=list)
    words: list[str] = field(default_factory=lambda: list(WORDS))
    steering: bool = True
    heard: list[dict] = field(default_factory=list)  # every JSON message of the page
    steps: int = 0
    cutover: bool = False
    waiting: list[dict] = field(default_factory=list)
    refuse: bool = False  # connections, with 503
    sockets: set[web.WebSocketResponse] = field(default_factory=set)

    def state(self) -> dict:
        return {
            "type": "state", "status": self.status, "branch": self.branch, "block": self.frame // BLOCK,
            "frame": self.frame, "seconds": self.frame / FPS, "prompts": [{"text": self.prompt, "weight": 1.0}],
            **self.settings, "fps_made": 48.0, "lead_blocks": 1.0, "drops": 0, "bookmarks": self.bookmarks,
            "branches": [asdict(b) for b in self.branches],
            "rewind_from": 0.0, "viewers": 1, "steerer": "v1", "recording": True, "message": "",
        }  # fmt: skip

    def current(self) -> Branch:
        return next(b for b in self.branches if b.id == self.branch)

    def jump(self, frame: int) -> None:
        self.generation += 1
        self.frame, self.cutover = frame, True

    def apply(self, control: dict) -> None:
        kind, branch = control["control"], self.current()
        if kind == "prompt":
            self.prompt, self.colour = control["prompts"][0]["text"], "lime"
            branch.prompts.append({"frame": self.frame, "text": self.prompt})
        elif kind in ("rewind", "fork", "goto"):
            if kind == "goto" and "bookmark" in control:
                mark = next(m for m in self.bookmarks if m["id"] == control["bookmark"])
                target, frame = mark["branch"], mark["frame"]
            else:
                target = control.get("branch", self.branch)
                end = next(b.frames for b in self.branches if b.id == target)
                frame = int(control["seconds"] * FPS) // BLOCK * BLOCK if "seconds" in control else end
            self.branch = target
            if kind == "fork":
                self.branch = max(b.id for b in self.branches) + 1
                self.branches.append(
                    Branch(self.branch, branch.id, frame, frame, [{"frame": frame, "text": self.prompt}])
                )
            kept = self.current()
            kept.frames, kept.prompts = (
                frame,
                [p for p in kept.prompts if p["frame"] < frame or p["frame"] == kept.fork_frame],
            )
            self.jump(frame)
        elif kind == "bookmark":
            self.bookmarks.append(
                {"id": len(self.bookmarks) + 1, "name": control["name"], "branch": self.branch, "frame": self.frame}
            )
        elif kind in ("pause", "resume", "stop"):
            self.status = {"pause": "paused", "resume": "playing", "stop": "stopped"}[kind]
        elif kind == "step":
            self.steps += 1
        elif kind == "lora":
            self.settings["loras"] = control["adapters"]
        else:
            self.settings[kind] = control[kind]

    async def say(self, message: dict) -> None:
        for socket in list(self.sockets):
            await socket.send_json(message)

    async def make_blocks(self) -> None:
        while True:
            await asyncio.sleep(self.block_seconds)
            changed = bool(self.waiting)
            for control in self.waiting:
                self.apply(control)
            applied, self.waiting = self.waiting, []
            for control in applied:
                await self.say({
                    "type": "applied", "event": control["event"], "control": control["control"], "branch": self.branch,
                    "block": self.frame // BLOCK, "frame": self.frame, "generation": self.generation, "ms": 5.0,
                })  # fmt: skip
            runs = self.status == "playing" and self.index - self.played <= self.lead
            if self.sockets and (runs or self.steps):
                self.steps = max(0, self.steps - 1)
                await self.block()
                changed = True
            if changed:
                await self.say(self.state())

    async def block(self) -> None:
        frames = [picture(self.frame + i, self.colour) for i in range(BLOCK)]
        header = struct.pack(
            "<4sIIIIIIHBB", b"SLF1", self.generation, self.branch, self.frame // BLOCK, self.event, self.frame,
            self.index, BLOCK, 1, int(self.cutover),
        )  # fmt: skip
        message = header + b"".join(struct.pack("<I", len(data)) + data for data in frames)
        self.frame, self.index, self.cutover = self.frame + BLOCK, self.index + BLOCK, False
        self.current().frames = self.frame
        for socket in list(self.sockets):
            await socket.send_bytes(message)

    async def socket(self, request: web.Request) -> web.StreamResponse:
        if self.refuse:
            raise web.HTTPServiceUnavailable
        socket = web.WebSocketResponse(max_msg_size=65536)
        await socket.prepare(request)
        async for message in socket:
            if message.type != WSMsgType.TEXT:
                continue
            said = json.loads(message.data)
            self.heard.append(said)
            if said["type"] == "hello":
                await socket.send_json({
                    "type": "welcome", "session": self.id, "viewer": "v1", "generation": self.generation, "fps": FPS,
                    "width": SIZE, "height": SIZE, "frames_per_block": BLOCK, "words": self.words,
                    "steering": self.steering, "format": "jpeg", "state": self.state(),
                })  # fmt: skip
                self.sockets.add(socket)
                self.played = self.index - 1
            elif said["type"] == "played":
                self.played = said["frame"]
            elif said["type"] == "steer":
                self.steering = True
                await socket.send_json({"type": "steering", "viewer": "v1", "you": True})
            elif said["type"] == "control":
                await self.control(socket, said)
        self.sockets.discard(socket)
        return socket

    async def control(self, socket: web.WebSocketResponse, said: dict) -> None:
        if said["control"] == "prompt" and "elephant" in said["prompts"][0]["text"]:
            message = "prompt: unknown word 'elephant' <b>salt-tiny</b> knows only: a, moving"
            await socket.send_json({"type": "refused", "ref": said["ref"], "field": "prompts", "message": message})
            return
        self.event += 1
        await socket.send_json({"type": "heard", "ref": said["ref"], "event": self.event})
        self.waiting.append({**said, "event": self.event})

    async def drop_sockets(self) -> None:
        for socket in list(self.sockets):
            self.sockets.discard(socket)
            await socket.close()

    async def thumbnail(self, request: web.Request) -> web.Response:
        return web.Response(body=picture(int(request.query["frame"]), self.colour), content_type="image/jpeg")

    def app(self) -> web.Application:
        async def page(request: web.Request) -> web.FileResponse:
            return web.FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": CSP})

        async def sessions(request: web.Request) -> web.Response:
            return web.json_response({"sessions": [{"id": self.id}]})

        async def file(request: web.Request) -> web.Response:
            return web.Response(body=f"{request.match_info['name']} of the mock session".encode())

        app = web.Application()
        app.router.add_get("/salt/live/", page)
        app.router.add_static("/salt/live/static", PAGE)
        app.router.add_get("/salt/live/ws", self.socket)
        app.router.add_get("/salt/live/api/sessions", sessions)
        app.router.add_get("/salt/live/api/{session}/thumbnail", self.thumbnail)
        app.router.add_get("/salt/live/api/{session}/{name}", file)
        return app


class MockServer:
    """The session's server on a free port of this machine, in a thread of its own."""

    def __init__(self, session: MockSession):
        self.session = session
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve() -> None:
            self.runner = web.AppRunner(session.app(), shutdown_timeout=0.1)
            await self.runner.setup()
            await web.TCPSite(self.runner, "127.0.0.1", 0).start()
            self.port = self.runner.addresses[0][1]
            self.maker = asyncio.create_task(session.make_blocks())
            ready.set()

        def run() -> None:
            self.loop.create_task(serve())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(10)
        self.url = f"http://127.0.0.1:{self.port}/salt/live/"

    def do(self, coroutine) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def stop(self) -> None:
        async def end() -> None:
            self.maker.cancel()
            await self.session.drop_sockets()
            await self.runner.cleanup()

        self.do(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
