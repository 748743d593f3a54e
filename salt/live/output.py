"""What comes out of a session: decoded frames to viewers, thumbnails and the recording, by a thread of their own.

The thread waits for the device, so that the one that makes blocks does not. It takes blocks in order, from a bounded
queue; a disk or an encoder that is too slow for the recording therefore slows the rollout, a viewer never does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from ..acceleration.finite_check import decoder_not_finite, student_not_finite
from ..io.printable import one_line
from .branches import LiveBranch
from .live_block import LiveBlock
from .live_model import LiveModelInfo
from .messages import FrameBatch, Pictured
from .recording import Recording
from .thumbnails import Thumbnails
from .viewers import Viewers

QUEUE_BLOCKS = 2


class LiveOutput:
    """Publishes blocks in order. Errors of its thread are raised by `check`, in the thread that makes blocks."""

    def __init__(self, info: LiveModelInfo, viewers: Viewers, record: Path | None) -> None:
        self.info, self.viewers = info, viewers
        self.thumbnails = Thumbnails()
        self.recording = None if record is None else Recording(record, info)
        self._known_branches = {1}
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_BLOCKS)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def put(self, block: LiveBlock, event: int, play_index: int) -> None:
        """Queue a block; waits while the queue is full."""
        self._queue(lambda: self._publish(block, event, play_index))

    def move_to(self, branch: LiveBranch, play_index: int) -> None:
        """The session goes on at the end of `branch`, which is new or may have become shorter."""
        frame = self.info.first_pixel_frame(branch.end)
        is_new, parent = branch.id not in self._known_branches, branch.parent
        self._known_branches.add(branch.id)
        for viewer in self.viewers:
            viewer.cut_over(play_index)
        self._queue(lambda: self._move(branch.id, parent if is_new else None, frame))

    def _queue(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="salt-live-output", daemon=True)
            self._thread.start()
        self._work.put(work)

    def check(self) -> None:
        """Raise what has gone wrong in the thread."""
        if self._error is not None:
            raise self._error

    def close(self) -> str:
        """Publish what is queued and end the thread. Returns what has gone wrong, as one line."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None
        if self.recording is not None:
            try:
                self.recording.close()
            except OSError as error:
                self._error = self._error or error
        return "" if self._error is None else one_line(self._error)

    def _run(self) -> None:
        finished = False
        try:
            while (work := self._work.get()) is not None:
                if self._error is None:  # nothing after a block that failed
                    self._try(work)
            finished = True
        finally:
            if not finished:  # a fault of the program; whoever queues must not wait for ever
                self._error = RuntimeError("the thread that publishes blocks has ended early")
                while self._work.get() is not None:
                    pass

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (ValueError, OSError, RuntimeError) as error:
            self._error = error

    def _publish(self, block: LiveBlock, event: int, play_index: int) -> None:
        kept, pending = block.kept, block.frames
        assert pending is not None
        ready = pending.wait()
        where = f"block {kept.index + 1} (latent frames {kept.start} to {kept.stop - 1})"
        if not block.finite.wait():
            raise student_not_finite(where)
        if not ready.finite.wait():
            raise decoder_not_finite(where)
        frames = ready.frames[0].numpy()
        if self.recording is not None:
            self.recording.write(frames)
        if block.stamp is not None:
            stamp = block.stamp
            self.viewers.put(Pictured(block.generation, block.branch, block.first_frame, stamp.sender, stamp.sent_at))
        self.thumbnails.add(block.branch, block.first_frame, frames[0])
        self.viewers.put(
            FrameBatch(
                block.generation, block.branch, kept.index, event, block.first_frame, play_index, block.cutover, frames
            )
        )

    def _move(self, branch: int, parent: int | None, frame: int) -> None:
        if self.recording is not None:
            self.recording.move_to(branch, parent, frame)
        if parent is not None:
            self.thumbnails.fork(parent, branch, frame)
        self.thumbnails.cut(branch, frame)
