"""A viewer's connection: controls and receipts as JSON text, frames as binary messages (see `docs/live_server.md`)."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from aiohttp import WSCloseCode, WSMsgType, web

from ...errors import InputError
from ...io.fields import FieldError
from ...io.printable import one_line
from ..controls import read_control
from ..messages import FrameBatch
from ..viewers import MAX_RECEIPTS, Viewer
from .client_messages import (
    ControlMessage,
    Hello,
    Ping,
    Played,
    Refusal,
    Release,
    Steer,
    control_ref,
    read_message,
    read_picture,
)
from .hosted import HostedSession, Message
from .security import HEADERS, MAX_MESSAGE_BYTES, MESSAGES_PER_SECOND, RateLimit

HELLO_SECONDS = 10.0
PING_SECONDS = 20.0  # a viewer that does not answer in half of it is gone
CLOSE_SECONDS = 2.0
# Messages that a viewer has not taken: it does not read. One that comes back gets all receipts that are kept at once.
MAX_WAITING = 256 + MAX_RECEIPTS


async def serve_viewer(request: web.Request, hosted: HostedSession) -> web.WebSocketResponse:
    # Not compressed: JPEG gains nothing, and a client's few bytes could become gigabytes here.
    socket = web.WebSocketResponse(
        max_msg_size=MAX_MESSAGE_BYTES, heartbeat=PING_SECONDS, timeout=CLOSE_SECONDS, compress=False
    )
    socket.headers.update(HEADERS)
    await socket.prepare(request)
    connection = ViewerConnection(socket, request.transport, hosted)
    try:
        await connection.run()
    except ConnectionError:
        pass  # the viewer is gone
    return socket


def _from_thread(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call back in the event loop, which may have ended: the session's threads must not fail for it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


class ViewerConnection:
    """One viewer: reads its messages and sends it what the session has for it, until either end closes."""

    def __init__(
        self, socket: web.WebSocketResponse, transport: asyncio.Transport | None, hosted: HostedSession
    ) -> None:
        self.id = secrets.token_urlsafe(8)
        self._socket = socket
        self._transport = transport
        self._hosted = hosted
        self._wake = asyncio.Event()
        self._waiting: deque[Message] = deque()
        self._closing = asyncio.Event()
        self._reason = ""
        self._sent_until = 0  # play index after the last frame that was sent
        self._sent_frames = 0

    async def run(self) -> None:
        hello = await self._hello()
        if hello is None:
            return
        try:
            self._hosted.join(self.id, self._tell, self.close)
        except InputError as error:
            await self._end(str(error))
            return
        loop = asyncio.get_running_loop()
        try:
            viewer = self._hosted.session.subscribe(self.id, on_message=lambda: _from_thread(loop, self._wake.set))
            try:
                self._welcome(hello)
                await self._serve(viewer)
            finally:
                self._hosted.session.unsubscribe(viewer)
        finally:
            self._hosted.leave(self.id)

    async def _hello(self) -> Hello | None:
        """The first message; None where it is something else or does not come."""
        try:
            first = await self._socket.receive(HELLO_SECONDS)
            message = read_message(first.data) if first.type is WSMsgType.TEXT else None
        except (asyncio.TimeoutError, FieldError):
            message = None
        if isinstance(message, Hello):
            return message
        await self._end("expected `hello` as the first message")
        return None

    def _welcome(self, hello: Hello) -> None:
        session, info = self._hosted.session, self._hosted.session.info
        state = session.state()
        self._tell(
            {
                "type": "welcome",
                "session": self._hosted.id,
                "viewer": self.id,
                "generation": state.generation,
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
                "frames_per_block": info.frames_per_block * info.temporal_scale,
                "words": list(info.words),
                "steering": self._hosted.steering.steerer == self.id,
                "format": self._hosted.batches.format,
                "state": self._hosted.as_sent(state),
            }
        )
        if hello.after is not None:
            for receipt in session.receipts(hello.after):
                self._tell(self._hosted.as_sent(receipt))

    async def _serve(self, viewer: Viewer) -> None:
        """Receive and send, until one of them ends or the connection is to be closed."""
        tasks = [
            asyncio.create_task(part) for part in (self._receive(viewer), self._send(viewer), self._closing.wait())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        await self._end(self._reason)

    def _tell(self, message: Message) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(message)
        else:
            self.close("the viewer does not read its messages")
        self._wake.set()

    def close(self, reason: str) -> None:
        """End the connection from this side."""
        self._reason = self._reason or reason
        self._closing.set()

    async def _end(self, reason: str) -> None:
        """Say why, and close. A viewer that does not read is cut off."""
        code = WSCloseCode.POLICY_VIOLATION if reason else WSCloseCode.OK
        try:
            if reason and not self._socket.closed:
                await asyncio.wait_for(self._send_json({"type": "bye", "reason": reason}), CLOSE_SECONDS)
            await asyncio.wait_for(self._socket.close(code=code), 2 * CLOSE_SECONDS)
        except asyncio.TimeoutError:
            if self._transport is not None:
                self._transport.abort()

    async def _receive(self, viewer: Viewer) -> None:
        rate = RateLimit()
        async for message in self._socket:
            if not rate.allows_one_more():
                self.close(f"more than {MESSAGES_PER_SECOND} messages a second")
                return
            if message.type is WSMsgType.TEXT:
                self._answer(message.data, viewer)
            elif message.type is WSMsgType.BINARY:
                self._picture(message.data)

    def _answer(self, text: str, viewer: Viewer) -> None:
        try:
            message = read_message(text)
        except FieldError as error:
            self._tell(Refusal("message", one_line(error), control_ref(text)).json())
            return
        if isinstance(message, ControlMessage):
            self._control(message)
        elif isinstance(message, Played):
            self._played(message, viewer)
        elif isinstance(message, Ping):
            self._tell({"type": "pong", "t": message.t})
        elif isinstance(message, (Steer, Release)):
            steering = self._hosted.steering
            (steering.ask if isinstance(message, Steer) else steering.release)(self.id)
            self._hosted.tell_steering()
        else:
            self._tell(Refusal("message", "found a second `hello`, expected one").json())

    def _picture(self, data: bytes) -> None:
        """A camera's picture, of the viewer who steers; what came too late for a block is dropped without a word."""
        try:
            picture = read_picture(data)
            if self._hosted.steering.steerer != self.id:
                raise InputError("steering", "is another viewer's; ask for it first")
            self._hosted.session.picture(picture.jpeg, self.id, picture.sent_at)
        except InputError as error:
            self._tell(Refusal(error.field, error.problem).json())
        except FieldError as error:
            self._tell(Refusal("picture", one_line(error)).json())

    def _played(self, message: Played, viewer: Viewer) -> None:
        """A viewer cannot have played or dropped what it was not sent: the rollout would run ahead of it."""
        if message.frame >= self._sent_until or message.dropped > self._sent_frames:
            problem = f"found {message.frame} and {message.dropped} dropped, of which not all was sent"
            self._tell(Refusal("played", problem).json())
        else:
            viewer.played(message.frame, message.dropped)

    def _control(self, message: ControlMessage) -> None:
        if self._hosted.steering.steerer != self.id:
            self._tell(Refusal("steering", "is another viewer's; ask for it first", message.ref).json())
            return
        try:
            control = read_control({**message.values, "control": message.control})
            event = self._hosted.session.send(control, sender=self.id)
        except InputError as error:
            self._tell(Refusal(error.field, one_line(error), message.ref).json())
        else:
            self._tell({"type": "heard", "ref": message.ref, "event": event})

    async def _send(self, viewer: Viewer) -> None:
        """Send answers first, then what the session has queued. A viewer that reads slowly is waited for here; the
        session leaves out the oldest of its frames meanwhile."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while True:
                if self._waiting:
                    await self._send_json(self._waiting.popleft())
                elif (item := viewer.get()) is None:
                    break
                elif isinstance(item, FrameBatch):
                    self._sent_until = item.play_index + len(item.frames)
                    self._sent_frames += len(item.frames)
                    await self._socket.send_bytes(await self._hosted.batches.message(item))
                else:
                    await self._send_json(self._hosted.as_sent(item))

    async def _send_json(self, message: Message) -> None:
        await self._socket.send_str(json.dumps(message))
