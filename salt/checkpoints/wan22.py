"""Whose weights of Wan 2.2 TI2V 5B's shapes a file holds: LongLive 2.0's or the plain model's.

Shapes and names of weights are the same, and released files have no metadata, so the names of file and folders decide,
and what the file is: the plain model is published in safetensors alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..schedule import step_list
from ..spec import WAN22_CHANNELS, WAN22_FPS, StudentSpec
from .longlive2 import longlive2_spec

# The plain model: all frames at once, in many steps.
WAN22 = StudentSpec(frames_per_block=0, steps=step_list(50), stepping="ode", fps=WAN22_FPS)
EITHER = (
    "Wan 2.2 5B's shapes, which LongLive 2.0 and the plain TI2V 5B share, and nothing that tells which: say longlive2, "
    "longlive2-s2 or wan22"
)
PLAIN = re.compile(r"ti2v[-_. ]?5b")
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")


def is_wan22(config: Mapping[str, object]) -> bool:
    return config["out_channels"] == WAN22_CHANNELS


def wan22_spec(path: Path, config: Mapping[str, object]) -> StudentSpec | None:
    """The settings of a transformer of these shapes; None for other shapes, and where it may be either."""
    if not is_wan22(config):
        return None
    names = [part.lower() for part in path.absolute().parts[-3:]]
    if any("longlive" in name for name in names):
        return longlive2_spec(path)
    if any(PLAIN.search(name) for name in names):
        return WAN22
    return longlive2_spec(path) if path.suffix.lower() in TORCH_SUFFIXES else None
