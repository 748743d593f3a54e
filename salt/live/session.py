"""`LiveSession`: the object that hosts hold. Thread-safe; blocks are made in its own thread, or in the caller's."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Generic

from ..errors import InputError
from ..io.printable import one_line
from ..model_input import Condition
from .branches import LiveBranch
from .control_checks import check_control
from .controls import Control, Pace, Stop, Strength
from .engine import LiveEngine
from .live_block import LiveBlock
from .live_model import LiveModel
from .mailbox import Mailbox, Sent
from .messages import Applied, Refused, State, Superseded
from .output import LiveOutput
from .pacing import Pacer
from .prompt_ahead import PromptAhead
from .recording import RecordedBranch
from .replay import Replay, replay_of
from .result import LiveResult, result_of
from .settings import LiveSettings
from .start import LiveStart
from .state import Status, state_of
from .video_feed import CameraPictures, VideoFeed
from .viewers import QUEUE_BATCHES, Viewer, Viewers

RATE_BLOCKS = 8  # over which the rate of frames is measured
LONGEST_WAIT = 0.5  # seconds until the pace is looked at again


class LiveSession(Generic[Condition]):
    """A clip that is steered while it plays: an open-ended rollout with controls between blocks.

    Any thread may `send` controls, `subscribe` viewers and read the `state`. Blocks are made by `start` in a thread of
    the session, or by `run` in the caller's. Whatever ends it (Stop, its length, an error), what was made is kept.
    feed: pictures of a camera or a file, which blocks start from. record: an mp4 file to be written as blocks are made,
    which must not be there yet. start: what it begins with.
    Raises InputError for settings and a start that do not fit the model, OSError where the recording cannot be written.
    """

    def __init__(
        self,
        live_model: LiveModel[Condition],
        settings: LiveSettings,
        *,
        record: Path | None = None,
        feed: VideoFeed | None = None,
        start: LiveStart | None = None,
    ) -> None:
        self.live_model, self.settings = live_model, settings
        self.engine = LiveEngine(live_model, settings, feed=feed, start=start)
        self.info = self.engine.info
        self.viewers = Viewers()
        self.output = LiveOutput(self.info, self.viewers, record)
        self.pacer = Pacer(settings.pace, self.info.fps)
        self.engine.on_move = self._move
        self._mailbox = Mailbox()
        self._texts = PromptAhead(live_model.encode_beside, self.engine.planner.conditionings, self._wake)
        self._status: Status = "warming"
        self._message = ""
        self._blocks_to_step: int | None = None  # None: not paused
        self._stopping = False
        self._event = 0
        self._made_at: deque[tuple[float, int]] = deque(maxlen=RATE_BLOCKS)
        self._state_lock = threading.Lock()
        self._state = self._new_state()
        self._thread: threading.Thread | None = None
        self._running = threading.Lock()
        self._begun = False

    # Called by any thread

    def start(self) -> None:
        """Make blocks in a thread of its own. Raises RuntimeError for a session that was started before."""
        self._begin()
        self._thread = threading.Thread(target=self._make_blocks, name="salt-live", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Make blocks in this thread, until the session ends. Raises RuntimeError as `start` does."""
        self._begin()
        self._make_blocks()

    def _begin(self) -> None:
        with self._running:
            if self._begun:
                raise RuntimeError("the live session was started before; a new one begins another clip")
            self._begun = True

    def send(self, control: Control, sender: str = "") -> int:
        """The control's event id, which rises; the control acts at the next block, or at once (`Control.immediate`).
        A prompt acts at the first block at whose start its text is encoded, which happens beside the blocks before it.

        Raises InputError for a prompt that cannot be encoded, a LoRA that is not loaded, and in a session that has
        ended.
        """
        if self._status in ("stopped", "failed"):
            raise InputError("control", f"has no effect: the session has {self._status}")
        check_control(control, self.live_model)
        if isinstance(control, Strength) and self.engine.feed is None:
            raise InputError("strength", "has no effect: this session takes no pictures of a camera or a file")
        self._texts.begin(control)
        sent, superseded = self._mailbox.send(control, sender)
        if superseded is not None:
            self.viewers.put(Superseded(superseded.event, sent.event))
        return sent.event

    def picture(self, jpeg: bytes, sender: str, sent_at: float) -> None:
        """A viewer's picture for the next block; the latest win. sent_at: milliseconds of its clock.

        Raises InputError for one that cannot be used, and in a session that takes none.
        """
        source = None if self.engine.feed is None else self.engine.feed.source
        if not isinstance(source, CameraPictures):
            raise InputError("picture", "cannot be used: this session takes none of a camera")
        source.put(jpeg, sender, sent_at)

    def subscribe(
        self, name: str = "", *, batches: int = QUEUE_BATCHES, on_message: Callable[[], None] | None = None
    ) -> Viewer:
        """A viewer with a queue of its own, which gets everything from now on, the state first."""
        viewer = Viewer(name, batches, on_message)
        viewer.play_index = self.pacer.made
        viewer.on_played = self._wake
        self.viewers.add(viewer)
        viewer.put(self.state())
        return viewer

    def unsubscribe(self, viewer: Viewer) -> None:
        self.viewers.remove(viewer)
        self._wake()

    def receipts(self, after: int) -> list[Applied | Superseded | Refused]:
        """Of controls that were sent after the event `after`, as far as they are kept."""
        return [receipt for receipt in self.viewers.receipts.copy() if receipt.event > after]

    def state(self) -> State:
        """As it was after the latest block or control, with the viewers of now."""
        with self._state_lock:
            state = self._state
        return replace(state, viewers=len(self.viewers), drops=self.viewers.drops)

    @property
    def ended(self) -> bool:
        return self._status in ("stopped", "failed")

    def stop(self) -> None:
        """Ask it to end after the block that is being made."""
        if not self.ended:
            self._mailbox.send(Stop(), "")

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self.ended

    def close(self) -> None:
        """Stop, wait, and let all viewers go."""
        self.stop()
        self.join()
        for viewer in self.viewers:
            self.viewers.remove(viewer)

    def thumbnail(self, branch: int, frame: int) -> bytes | None:
        """A small JPEG of the block that shows pixel frame `frame` of a branch; None where there is none any more."""
        return self.output.thumbnails.get(branch, frame)

    def recording_path(self) -> Path | None:
        """The file that the current branch is recorded in, playable up to where it ends; None without a recording."""
        return None if self.output.recording is None else self.output.recording.path

    def recorded_branch(self) -> RecordedBranch | None:
        """What is recorded of the current branch, while it is written; None without a recording."""
        return None if self.output.recording is None else self.output.recording.branch

    def replay(self) -> Replay:
        """The session so far, to be saved and played again by `salt replay`."""
        return replay_of(self.engine)

    def result(self) -> LiveResult[Condition]:
        """What the session has left on its branch. Raises InputError before it has ended, or where it made no block."""
        if not self.ended or (self._thread is not None and self._thread.is_alive()):
            raise InputError("session", "has not ended, so there is no result yet")
        return result_of(self.engine, self.recording_path())

    # Called by the thread that makes blocks

    def _make_blocks(self) -> None:
        try:
            for block in self.engine.blocks(self._gate):
                self._publish(block)
            self._status = "stopped"
        except (ValueError, OSError, RuntimeError) as error:
            self._status, self._message = "failed", one_line(error)
        finally:
            if not self.ended:  # an error that is not caught here, such as ComfyUI's interruption
                self._status, self._message = "failed", "the session was interrupted"
            self._texts.close()
            if failure := self.output.close():
                self._status, self._message = "failed", self._message or failure
            self._tell_state()

    def _gate(self) -> bool:
        """Before every block: wait for the pace, for controls while paused, and apply what was sent."""
        while True:
            self.output.check()
            self._apply(self._mailbox.take(immediate_only=True))
            frames = self.settings.frames
            if self._stopping or (frames is not None and self.engine.branch.end >= frames):
                return False
            if (wait := self._seconds_to_wait()) == 0.0:
                break
            self._sleep(wait)
        # What waits is taken together with what has come since: the next block is made under all of it.
        self._apply(self._mailbox.take(immediate_only=False, is_ready=self._texts.is_ready))
        if self._stopping:
            return False
        if self.pacer.made:  # warm: the first block is made
            self._set_status("playing")
        if self._blocks_to_step:
            self._blocks_to_step -= 1
        return True

    def _seconds_to_wait(self) -> float:
        if self._blocks_to_step is not None:
            if self._blocks_to_step > 0:  # nothing is made meanwhile, so the step is made under what was sent
                return LONGEST_WAIT if self._mailbox.waits_for(self._texts.is_ready) else 0.0
            self._set_status("paused")
            return LONGEST_WAIT
        most = self.settings.lead * self.info.frames_per_block * self.info.temporal_scale
        return min(self.pacer.seconds_to_wait(self.viewers, most), LONGEST_WAIT)

    def _sleep(self, seconds: float) -> None:
        with self._mailbox.changed:
            if not self._mailbox.urgent:
                self._mailbox.changed.wait(seconds)

    def _wake(self) -> None:
        with self._mailbox.changed:
            self._mailbox.changed.notify_all()

    def _apply(self, controls: list[Sent]) -> None:
        for sent in controls:
            try:
                self._apply_one(sent.control)
            except ValueError as error:
                field = error.field if isinstance(error, InputError) else sent.control.kind
                self.viewers.put(Refused(sent.event, field, one_line(error)))
                continue
            self._event = max(self._event, sent.event)
            branch = self.engine.branch
            frame = self.info.first_pixel_frame(branch.end)
            ms = (time.perf_counter() - sent.at) * 1000
            self.viewers.put(
                Applied(sent.event, sent.control.kind, branch.id, branch.blocks, frame, self.engine.generation, ms)
            )
        if controls:
            self._tell_state()

    def _apply_one(self, control: Control) -> None:
        if isinstance(control, Stop):
            self._stopping = True
        elif isinstance(control, Pace):
            self.pacer.pace = control.pace
            self.pacer.cut_over()
        elif control.kind in ("pause", "resume", "step"):
            self._blocks_to_step = {"pause": 0, "resume": None, "step": 1}[control.kind]
            self.pacer.cut_over()
        else:
            self._texts.hand_over(control)
            self.engine.apply(control)

    def _move(self, branch: LiveBranch) -> None:
        self.pacer.cut_over()
        self.output.move_to(branch, self.pacer.made)

    def _publish(self, block: LiveBlock) -> None:
        end = self.info.first_pixel_frame(block.kept.stop)
        count = end - block.first_frame
        self.output.put(block, self._event, self.pacer.made)
        self.pacer.made += count
        self._made_at.append((time.perf_counter(), count))
        self._status = "paused" if self._blocks_to_step == 0 else "playing"
        self._tell_state()

    def _set_status(self, status: Status) -> None:
        if self._status != status:
            self._status = status
            self._tell_state()

    def _new_state(self) -> State:
        return state_of(
            self.engine,
            status=self._status,
            message=self._message,
            pacer=self.pacer,
            viewers=self.viewers,
            fps_made=self._rate(),
            recording=self.output.recording is not None,
        )

    def _tell_state(self) -> None:
        state = self._new_state()
        with self._state_lock:
            self._state = state
        self.viewers.put(state)

    def _rate(self) -> float:
        """Frames made in a second, over the latest blocks."""
        if len(self._made_at) < 2:
            return 0.0
        seconds = self._made_at[-1][0] - self._made_at[0][0]
        return sum(count for _, count in list(self._made_at)[1:]) / max(seconds, 1e-9)
