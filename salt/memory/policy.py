"""Memory policies: which latent frames a KV cache keeps, and at which temporal positions. Settings and pure functions.

Sources: Self Forcing (full, window), LongLive (sink + window), Infinity-RoPE (relative), Salt (cyclic "loop RoPE",
blended sink "compression_alpha"), Krea realtime (rebuild), FAR (far). Everything here is plain integers; tensors
live in `cache.py`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Literal

from ..errors import InputError

Kind = Literal["full", "window", "sink", "relative", "cyclic", "blended", "rebuild", "shots", "overwrite", "far"]
Precision = Literal["model", "int8", "fp8", "int4"]
Residence = Literal["device", "cpu"]

KINDS: tuple[Kind, ...] = (
    *("full", "window", "sink", "relative", "cyclic", "blended", "rebuild", "shots", "overwrite", "far"),
)
PRECISIONS: tuple[Precision, ...] = ("model", "int8", "fp8", "int4")
RESIDENCES: tuple[Residence, ...] = ("device", "cpu")
CYCLE_FRAMES = 21
REFRESH, RESET = 0.2, 50  # as StreamDiffusionV2 has them
MAX_SHOT_OFFSET = 1000
FAR_BLOCK = 3  # latent frames in a block of the students that have a `far` memory


@dataclass(frozen=True)
class MemoryPolicy:
    """Which latent frames a memory keeps, at which temporal positions, and how it stores them.

    kind: `full` keeps everything; `window` the newest `window` frames; `sink` the first `sink` frames and the newest
        others; `relative` keeps as `sink` does and re-assigns positions 0..N-1 at every read; `cyclic` keeps as
        `window` does with positions modulo 21 frames; `blended` is `relative` whose sink absorbs what is evicted;
        `rebuild` is written anew after every block, from the newest `window` clean latents, at positions 0..N-1;
        `shots` is `sink` that keeps the first block of the current shot as well (see `shots.py`);
        `overwrite` keeps `window` slots, whose order and sink change with what is seen (`overwritten.py`);
        `far` keeps everything, older blocks in larger patches, for models that have an embedding of those (AnyFlow).
    window: latent frames kept, sink and current block counted; None only for `full`. For `rebuild` the current block
        is not counted. For `far` the blocks before the current one that are kept in patches of the usual size.
    sink: latent frames at the start that are never evicted. For `rebuild` 0 or 1: with 1 the clip's first frame is the
        first one of every rebuild, otherwise the oldest one is decoded and encoded again as an image.
    shot_offset: temporal positions that every new shot moves on by; clean_shots: the first block of a shot is written
        with nothing but the sink in the memory (both kind `shots` only).
    refresh: similarity below which a sink slot is overwritten next, -1 for never (kind `overwrite` only).
    reset: position at which positions go back to that of the last slot, 0 for never (kind `overwrite` only).
    blend: `a` in sink = a * sink + (1 - a) * evicted (kind `blended` only).
    precision: storage of keys and values: the model's dtype, int8, fp8 e4m3 or int4 (see `quantization.py`).
    residence: `device` beside the model, or `cpu` (fetched layer by layer while the layer before computes).
    Raises InputError for a value out of range, or fields that do not go together.
    Sources: Self Forcing (full, window), LongLive (sink), Infinity-RoPE (relative), Salt (cyclic, blended), Krea
    realtime (rebuild), LongLive 2.0 (shots), FAR (far).
    """

    kind: Kind = "full"
    window: int | None = None
    sink: int = 0
    blend: float = 0.9
    precision: Precision = "model"
    residence: Residence = "device"
    shot_offset: int = 0
    clean_shots: bool = False
    refresh: float = REFRESH
    reset: int = RESET

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("residence", self.residence, RESIDENCES)
        if (self.kind == "full") != (self.window is None):
            expected = "no window for kind full" if self.kind == "full" else f"a number of frames for kind {self.kind}"
            raise InputError("window", f"found {self.window}, expected {expected}")
        if self.sink < 0 or (self.sink > 0 and self.kind in ("full", "window", "cyclic", "far")):
            raise InputError("sink", f"found {self.sink}, expected 0 for kind {self.kind}")
        if self.kind == "rebuild" and self.sink > 1:
            raise InputError("sink", f"found {self.sink}, expected 0 or 1 for kind rebuild")
        if self.kind == "blended" and self.sink == 0:
            raise InputError("sink", "found 0, expected at least 1 for kind blended")
        if self.window is not None and self.window <= self.sink:
            raise InputError("window", f"found {self.window}, expected more than the sink's {self.sink} frames")
        self._check_overwrite()
        if self.kind == "far" and (self.precision, self.residence) != ("model", "device"):
            stored = "cpu" if self.residence == "cpu" else self.precision
            raise InputError("memory_policy", f"found far with {stored}, expected it in the model's dtype and device")
        if not 0.0 <= self.blend <= 1.0:
            raise InputError("blend", f"found {self.blend}, expected a number from 0 to 1")
        if not 0 <= self.shot_offset <= (MAX_SHOT_OFFSET if self.kind == "shots" else 0):
            expected = f"0 to {MAX_SHOT_OFFSET}" if self.kind == "shots" else f"0 for kind {self.kind}"
            raise InputError("shot_offset", f"found {self.shot_offset}, expected {expected}")
        if self.clean_shots and self.kind != "shots":
            raise InputError("clean_shots", f"found it with kind {self.kind}, expected kind shots")

    def _check_overwrite(self) -> None:
        if self.kind != "overwrite":
            for field, found, unset in (("refresh", self.refresh, REFRESH), ("reset", self.reset, RESET)):
                if found != unset:
                    raise InputError(field, f"found {found:g} with kind {self.kind}, expected kind overwrite")
            return
        for field, found, expected in (("precision", self.precision, "model"), ("residence", self.residence, "device")):
            if found != expected:
                raise InputError(field, f"found {found}, expected {expected} for kind overwrite")
        if not -1 <= self.refresh <= 1:
            raise InputError("refresh", f"found {self.refresh}, expected -1 (never) to 1")
        if self.reset and self.reset < (self.window or 0):
            raise InputError("reset", f"found {self.reset}, expected 0 (never) or at least the window's {self.window}")

    @property
    def keeps_last_step(self) -> bool:
        """Written by the last denoising step of a block instead of a clean pass."""
        return self.kind == "overwrite"

    @property
    def one_by_one(self) -> bool:
        """Whether a forward writes one block only."""
        return self.kind in ("blended", "overwrite", "far")

    @property
    def reach(self) -> int | None:
        """Latent frames before a block from which the memory is written again, the newest ones; None for all."""
        return None if self.kind == "far" else self.window

    def position(self, frame: int) -> int:
        """Temporal position of the scene's latent frame `frame` (kind `overwrite`)."""
        if not self.reset or frame < self.reset:
            return frame
        last = (self.window or 0) - 1
        return last + (frame - self.reset) % (self.reset - last)

    @property
    def relative(self) -> bool:
        """Keys are stored without RoPE and positions are assigned at every read."""
        return self.kind in ("relative", "blended")

    @property
    def rebuilt(self) -> bool:
        """Written anew after every block; a block that is read does not enter the buffers."""
        return self.kind == "rebuild"

    @property
    def reencodes(self) -> bool:
        """Whether a rebuild needs decoded frames, encoded again."""
        return self.rebuilt and not self.sink

    def check_block(self, frames: int) -> None:
        """Raise InputError if a block of `frames` latent frames does not fit into this memory."""
        if self.rebuilt:
            if (self.window or 0) % frames:
                expected = f"a multiple of the block of {frames} latent frames"
                raise InputError("window", f"found {self.window}, expected {expected} for a memory that is rebuilt")
            return
        pinned = min(self.sink, frames) if self.kind == "shots" else 0
        if self.window is not None and self.kind != "far" and self.window < self.sink + pinned + frames:
            raise InputError(
                "window",
                f"found {self.window}, expected at least {self.sink + pinned + frames} (sink {self.sink} + "
                f"{f'{pinned} of a shot + ' if pinned else ''}a block of {frames} latent frames)",
            )

    @property
    def fuses(self) -> bool:
        """Whether a block's write and the next one's read may be one forward; some memories change in between."""
        return self.kind not in ("blended", "rebuild", "overwrite", "far")

    def slots(self, frames: int) -> int:
        """Frames of storage needed for a clip of `frames` latent frames."""
        if self.keeps_last_step:
            return self.window or 0
        if self.kind == "far":  # blocks of 3, four patches in one
            full = FAR_BLOCK * ((self.window or 0) + 1)
            return min(frames, full) + max(frames - full + 3, 0) // 4
        return frames if self.window is None else min(frames, self.window)

    def slot(self, frame: int, origin: int) -> int:
        """Where a frame is stored: a pure function of its index, so that layout does not depend on history."""
        age = frame - origin
        sink = 0 if self.rebuilt else self.sink
        if self.window is None or age < sink:
            return age
        return sink + (age - sink) % (self.window - sink)

    def kept(self, held: tuple[int, ...], block: int, origin: int) -> tuple[int, ...]:
        """The held frames that stay when a block of `block` frames arrives: sinks first, then the newest."""
        if self.window is None or self.rebuilt:
            return held
        sinks = tuple(f for f in held if f - origin < self.sink)
        others = tuple(f for f in held if f - origin >= self.sink)
        recent = max(self.window - block - len(sinks), 0)
        return sinks + others[max(len(others) - recent, 0) :]

    def block_positions(self, start: int, frames: int, kept: int) -> range:
        """Temporal positions of a block that starts at latent frame `start` and is read with `kept` memory frames."""
        if self.relative or self.rebuilt:
            start = kept
        elif self.kind == "cyclic":
            start = min(frames * ((start % CYCLE_FRAMES) // frames), CYCLE_FRAMES - frames)
        return range(start, start + frames)

    def with_storage(self, precision: Precision = "model", residence: Residence = "device") -> MemoryPolicy:
        return replace(self, precision=precision, residence=residence)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def parse(cls, text: str) -> MemoryPolicy:
        """Read a policy from one line, as the command line takes it.

        `full`, `window:12`, `sink:3,window:12`, `relative:1,window:9`, `cyclic:21`, `blended:3,window:12,blend:0.9`,
        `rebuild:3`, `rebuild:3,keep`, `shots:8,window:32,offset:8[,clean]`,
        `overwrite:3,window:6,refresh:0.2,reset:50`, `far:2`; `,int8`, `,fp8` or `,int4` and `,cpu` may follow. Raises
        InputError that shows the accepted forms.
        """
        fields: dict = {}
        for part in re.split(r"[,+\s]+", text.strip(" ,+\n\t").lower()):
            name, _, value = part.partition(":")
            new: dict = {}
            if part in PRECISIONS[1:]:
                new = {"precision": part}
            elif part == "cpu":
                new = {"residence": "cpu"}
            elif part == "clean":
                new = {"clean_shots": True}
            elif part == "full":
                new = {"kind": "full"}
            elif name == "blend" and _number(value):
                new = {"blend": float(value)}
            elif name == "offset" and _count(value):
                new = {"shot_offset": int(value)}
            elif name == "window" and _count(value):
                new = {"window": int(value)}
            elif name in ("cyclic", "rebuild", "far") and _count(value):
                new = {"kind": name, "window": int(value)}
            elif part == "keep" and fields.get("kind") == "rebuild":
                new = {"sink": 1}
            elif name == "refresh" and (_number(value) or value == "off"):
                new = {"refresh": -1.0 if value == "off" else float(value)}
            elif name == "reset" and _count(value):
                new = {"reset": int(value)}
            elif name in ("sink", "relative", "blended", "shots", "overwrite") and _count(value):
                new = {"kind": name, "sink": int(value)}
            if not new or new.keys() & fields.keys():  # unknown, or a field that is already set
                raise InputError(
                    "memory_policy",
                    f"found {text!r} (at {part!r}), expected one of full | window:W | sink:S,window:W | "
                    "relative:S,window:W | cyclic:W | blended:S,window:W[,blend:A] | rebuild:N[,keep] | "
                    "shots:S,window:W[,offset:N][,clean] | overwrite:S,window:W[,refresh:T][,reset:P] | far:N, "
                    "then optionally ,int8 ,fp8 ,int4 ,cpu",
                )
            fields |= new
        return cls(**{"kind": "window" if "window" in fields else "full", **fields})

    def __str__(self) -> str:
        text = {
            "full": "full",
            "window": f"window:{self.window}",
            "cyclic": f"cyclic:{self.window}",
            "sink": f"sink:{self.sink},window:{self.window}",
            "relative": f"relative:{self.sink},window:{self.window}",
            "blended": f"blended:{self.sink},window:{self.window},blend:{self.blend:g}",
            "rebuild": f"rebuild:{self.window}" + ",keep" * self.sink,
            "shots": f"shots:{self.sink},window:{self.window},offset:{self.shot_offset}{',clean' * self.clean_shots}",
            "overwrite": f"overwrite:{self.sink},window:{self.window},"
            f"refresh:{'off' if self.refresh == -1 else f'{self.refresh:g}'},reset:{self.reset}",
            "far": f"far:{self.window}",
        }[self.kind]
        storage = [self.precision] * (self.precision != "model") + ["cpu"] * (self.residence == "cpu")
        return ",".join([text, *storage])


def _count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _number(text: str) -> bool:
    return re.fullmatch(r"[0-9]*\.?[0-9]+", text) is not None


def _one_of(field: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise InputError(field, f"found {value!r}, expected one of {', '.join(choices)}")
