"""stream.mp4: the clip as it is made, encoded once for all who watch it, and only while somebody does."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from ...io.fragmented_mp4 import Fragment, FragmentedEncoder
from ...io.video import VideoWriteError
from ..messages import FrameBatch
from .security import HEADERS

if TYPE_CHECKING:
    from ..session import LiveSession

log = logging.getLogger(__name__)
MAX_WAITING = 20 * 16  # fragments of a frame: a player that is 20 s behind goes on at the newest key frame
MAX_STREAMS = 16
WAIT_SECONDS = 0.5  # until the encoder looks whether anybody still watches


class StreamQueue:
    """What one player has not taken yet. Used from the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._begun = self._playing = self._ended = False
        self._wake = asyncio.Event()

    def put(self, init: bytes, fragment: Fragment) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.clear()
            self._playing = False
        if not self._playing and not fragment.key:
            return
        self._waiting.append(fragment.data if self._begun else init + fragment.data)
        self._begun = self._playing = True
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def next(self) -> bytes | None:
        """What is to be sent next; None at the end."""
        while not self._waiting and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft() if self._waiting else None


class SharedStream:
    """The encoder of a session's stream and those who watch it. Used from one event loop; encodes in its own thread."""

    def __init__(self, session: LiveSession) -> None:
        self._session = session
        self._players: set[StreamQueue] = set()
        self._encoding: _Encoding | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send the stream until the player leaves or the session ends."""
        if len(self._players) >= MAX_STREAMS:
            return web.json_response({"error": f"found {MAX_STREAMS} players, which is all"}, status=503)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "video/mp4"})
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        player = StreamQueue()
        self._players.add(player)
        try:
            if self._encoding is None:
                self._encoding = _Encoding(self._session, self)
            while (piece := await player.next()) is not None:
                await response.write(piece)
        except ConnectionError:
            pass  # the player is gone
        finally:
            self._players.discard(player)
            if not self._players:
                self.close()
        return response

    def publish(self, encoding: _Encoding, init: bytes, fragment: Fragment) -> None:
        if encoding is self._encoding:
            for player in self._players:
                player.put(init, fragment)

    def ended(self, encoding: _Encoding) -> None:
        if encoding is self._encoding:
            self.close()

    def close(self) -> None:
        if self._encoding is not None:
            self._encoding.close()
            self._encoding = None
        for player in self._players:
            player.end()


class _Encoding:
    """A viewer of the session that encodes what it gets, in a thread, until it is closed or the session ends."""

    def __init__(self, session: LiveSession, stream: SharedStream) -> None:
        self._session, self._stream = session, stream
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        self._viewer = session.subscribe("stream")
        self._thread = threading.Thread(target=self._run, name="salt-live-stream", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask the thread to end. It is not waited for."""
        self._closed.set()
        self._viewer.close()

    def _run(self) -> None:
        info = self._session.info
        block_frames = info.frames_per_block * info.temporal_scale
        encoder = FragmentedEncoder(
            info.width, info.height, block_frames, lambda fragment: self._publish(encoder.init, fragment), info.fps
        )
        try:
            while (batch := self._next_batch()) is not None:
                encoder.write(batch.frames)
        except VideoWriteError as error:
            log.warning("stream.mp4: %s", error)
        finally:
            self._session.unsubscribe(self._viewer)
            self._finish(encoder)

    def _next_batch(self) -> FrameBatch | None:
        """None when nobody watches any more, or the session has ended and all its frames are taken."""
        while not self._closed.is_set():
            ended = self._session.ended
            message = self._viewer.get(WAIT_SECONDS)
            if isinstance(message, FrameBatch):
                return message
            if message is None and ended:
                return None
        return None

    def _publish(self, init: bytes, fragment: Fragment) -> None:
        self._in_loop(lambda: self._stream.publish(self, init, fragment))

    def _finish(self, encoder: FragmentedEncoder) -> None:
        try:
            encoder.close()  # publishes its last fragments
        except VideoWriteError as error:
            log.warning("stream.mp4: %s", error)
        self._in_loop(lambda: self._stream.ended(self))

    def _in_loop(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(callback)
