"""A live session without a model: small random pictures, block after block, and the controls that change them."""

import threading
from types import SimpleNamespace

import numpy as np

from salt.live.messages import Applied, FrameBatch, PromptInEffect, State
from salt.live.thumbnails import jpeg
from salt.live.viewers import Viewer, Viewers


class FakeSession:
    """seconds_per_block: how long a block takes; 0.01 s is far faster than any model."""

    def __init__(self, seconds_per_block=0.01, size=16):
        self.lock = threading.RLock()
        self.viewers = Viewers()
        self.sent = []
        self._waiting = {}
        self.status = "warming"
        self.block = 0
        self.prompts = ()
        self._failure = None
        self.recording = None
        self.info = SimpleNamespace(fps=16, width=size, height=size, frames_per_block=3, temporal_scale=4, words=())
        self._ended = threading.Event()
        self._seconds = seconds_per_block
        self._size = size
        self._thread = threading.Thread(target=self._run, name="fake-session")

    def fail(self, message):
        """Fail at the next block."""
        self._failure = message

    def start(self):
        self._thread.start()

    def _run(self):
        random = np.random.default_rng(0)
        while not self._ended.wait(self._seconds):
            with self.lock:
                for event, control in sorted(self._waiting.values(), key=lambda item: item[0]):
                    self.status = {"pause": "paused", "resume": "playing"}.get(control.kind, self.status)
                    self.prompts = control.prompts if control.kind == "prompt" else self.prompts
                    self.viewers.put(Applied(event, control.kind, 0, self.block, 12 * self.block, 0, 1.0))
                self._waiting.clear()
                if self._failure is not None:
                    self.status = "failed"
                    return
                if self.status != "paused":
                    pixels = random.integers(0, 255, (12, self._size, self._size, 3), dtype=np.uint8)
                    frame = 12 * self.block
                    self.viewers.put(FrameBatch(0, 0, self.block, len(self.sent), frame, frame, False, pixels))
                    self.status = "playing"
                    self.block += 1
        self.status = "stopped"

    def send(self, control, sender=""):
        with self.lock:
            self.sent.append((control, sender))
            self._waiting[control.kind] = (len(self.sent), control)
            return len(self.sent)

    def subscribe(self, name="", *, on_message=None):
        self.viewers.add(viewer := Viewer(name, on_message=on_message))
        return viewer

    def unsubscribe(self, viewer):
        self.viewers.remove(viewer)

    def state(self):
        size = dict(status=self.status, block=self.block, frame=12 * self.block, seconds=0.75 * self.block)
        prompts = tuple(PromptInEffect(prompt.text, prompt.weight) for prompt in self.prompts)
        settings = dict(nfe=2, guidance=1.0, policy="full", seed=0, pace="free", message=self._failure or "")
        counts = dict(fps_made=16.0, lead_blocks=0.0, drops=0, rewind_from=0.0, viewers=0, recording=False)
        return State(**size, **settings, **counts, branch=0, generation=0, prompts=prompts, bookmarks=(), branches=())

    def receipts(self, after):
        return [receipt for receipt in self.viewers.receipts if receipt.event > after]

    def thumbnail(self, branch, frame):
        return jpeg(np.zeros((8, 8, 3), np.uint8)) if branch == 0 else None

    @property
    def ended(self):
        return self.status in ("stopped", "failed")

    def recorded_branch(self):
        return self.recording

    def replay(self):
        return SimpleNamespace(to_json=lambda: '{"format": "none"}')

    def stop(self):
        self._ended.set()

    def join(self, timeout=None):
        self._thread.join(timeout)

    def close(self):
        pass
