"""Families of released students: what their files are called, where they are published, and under which licence.

Their files have no metadata, so names decide; a file that was renamed is read as any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from ..memory import MemoryPolicy
from ..schedule import STEP_LISTS, step_list
from ..spec import StudentSpec
from .longlive2 import LONGLIVE2, TWO_STEPS
from .wan22 import WAN22

LONGLIVE = StudentSpec(policy=MemoryPolicy("sink", window=12, sink=3))
STREAMDIFFUSION2 = StudentSpec(1, (700, 500), 8.0, MemoryPolicy("overwrite", 6, 3), rule="streamdiffusion2")
FRAMEWISE = StudentSpec(1)
FRAMEWISE_1 = StudentSpec(1, (1000,), first_steps=STEP_LISTS[4])
FRAMEWISE_2 = replace(FRAMEWISE_1, steps=STEP_LISTS[2])
KREA = StudentSpec(steps=step_list(5, "krea"), policy=MemoryPolicy("rebuild", window=3), rule="krea")

# The settings of students by name, for files that do not tell: `--student NAME`.
STUDENTS = {
    "self-forcing": StudentSpec(),
    "causal-forcing-frame": FRAMEWISE,
    "causal-forcing-1step": FRAMEWISE_1,
    "causal-forcing-2step": FRAMEWISE_2,
    "longlive": LONGLIVE,
    "longlive2": LONGLIVE2,
    "longlive2-s2": TWO_STEPS,
    "krea": KREA,
    "sdv2": STREAMDIFFUSION2,
    "sdv2-14b": replace(STREAMDIFFUSION2, steps=(700,)),
    "wan22": WAN22,
}


@dataclass(frozen=True)
class Family:
    """about: in words. repo: on the hub. licence: of the weights, as far as it is known. paths: patterns for the end of
    a file's or folder's path. spec: what all of its students were trained for, where this module knows it."""

    about: str
    repo: str
    licence: str
    paths: tuple[str, ...]
    spec: StudentSpec | None = None


CAUSAL_FORCING, ITS_LICENCE = "zhuhz22/Causal-Forcing", "see the model card; its code is Apache-2.0"
FAMILIES = (
    Family("Causal Forcing, frame by frame", CAUSAL_FORCING, ITS_LICENCE, ("framewise/causal_forcing.*",), FRAMEWISE),
    Family("Causal Forcing++ 1-step", CAUSAL_FORCING, ITS_LICENCE, ("framewise-1step*",), FRAMEWISE_1),
    Family("Causal Forcing++ 2-step", CAUSAL_FORCING, ITS_LICENCE, ("framewise-2step*",), FRAMEWISE_2),
    Family(
        "Krea realtime 14B",
        "krea/krea-realtime-video",
        "see the model card; Krea's code is CC BY-NC-SA 4.0 (non-commercial)",
        (
            "krea-realtime-video-14b*",
            "krea-realtime-video*/transformer",
            "krea-realtime-video*/transformer/*",
            "krea-realtime-video",
        ),
        KREA,
    ),
    Family(
        "LongLive 2.0 5B",
        "Efficient-Large-Model/LongLive-2.0-5B",
        "see the model card; the base, Wan 2.2 TI2V 5B, is Apache-2.0",
        ("LongLive-2.0-5B*/*", "LongLive-2.0-5B*"),
    ),
    Family(
        "StreamDiffusionV2 14B, video to video",
        "jerryfeng/StreamDiffusionV2",
        "Apache-2.0",
        ("wan_causal_dmd_v2v_14b/*", "wan_causal_dmd_v2v_14b", "wan_causal_dmd_v2v_14b.*"),
        STUDENTS["sdv2-14b"],
    ),
    Family(
        "StreamDiffusionV2 1.3B, video to video",
        "jerryfeng/StreamDiffusionV2",
        "Apache-2.0",
        ("wan_causal_dmd_v2v/*", "wan_causal_dmd_v2v", "wan_causal_dmd_v2v.*"),
        STREAMDIFFUSION2,
    ),
    Family(
        "AnyFlow-FAR",
        "nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers",
        "see the model card (`other`)",
        ("AnyFlow-FAR-*", "AnyFlow-FAR-*/*", "AnyFlow-FAR-*/*/*"),
    ),
)


def family_of(path: str | Path) -> Family | None:
    """The family of a file or folder with such a name."""
    parts = Path(path).absolute().parts
    tails = ["/".join(parts[-n:]) for n in (1, 2, 3)]
    return next((f for f in FAMILIES if any(fnmatch(tail, p) for tail in tails for p in f.paths)), None)
