"""When the next block is made: at once, or so that the rollout keeps a bounded lead over who watches."""

from __future__ import annotations

import time
from collections.abc import Iterable

from .controls import Pacing
from .viewers import Viewer


class Pacer:
    """The lead of the rollout, in frames. made: running count of frames made. fps: at which they are played.

    While nobody plays, a clock plays instead, at `fps`.
    """

    def __init__(self, pace: Pacing, fps: float) -> None:
        self.pace, self.fps, self.made = pace, fps, 0
        self._clock_index = 0.0
        self._clock_at = time.perf_counter()

    def lead(self, viewers: Iterable[Viewer]) -> float:
        """Frames that are made and not yet played by the fastest viewer."""
        now = time.perf_counter()
        # The clock cannot play what is not made; it waits for it, as a viewer does.
        self._clock_index = min(self._clock_index + (now - self._clock_at) * self.fps, float(self.made))
        self._clock_at = now
        playing = [v.play_index for v in viewers if v.paces]
        return self.made - (max(playing) if playing else self._clock_index)

    def seconds_to_wait(self, viewers: Iterable[Viewer], most: float) -> float:
        """How long until the lead may be `most` frames or fewer; 0: the next block may be made."""
        lead = self.lead(viewers)
        return 0.0 if self.pace == "free" or lead <= most else (lead - most) / self.fps

    def cut_over(self) -> None:
        """What was made before will not be played."""
        self._clock_index, self._clock_at = float(self.made), time.perf_counter()
