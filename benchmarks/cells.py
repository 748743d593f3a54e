"""The rows of the speed table: what is measured on which device, and its target."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import comfyui, generation, training
from benchmarks.generation import Case, RandomWan
from benchmarks.measure import release_memory
from salt.acceleration.presets import Preference
from salt.memory import KVMemory, MemoryGeometry, MemoryPolicy
from salt.pipeline import SaltPipeline
from salt.selftest.timing import ceilings

WINDOWED, KEEP_ALL = "sink:3,window:12", "full"
GEOMETRY_14B = MemoryGeometry(layers=40, heads=40, head_dim=128, height=30, width=52)

Figures = dict[str, Any]
NO_COMFYUI = "COMFYUI_PATH and COMFYUI_PYTHON are not set"
# On one H100, 1.3B, 4 NFE. The first two leave the context pass out; with it the first is about 28.
PUBLISHED = "FlashDreams 34.9 (about 28 with the context pass), Self Forcing 27.8 (without it), MotionStream 29, "
PUBLISHED += "LongLive 1 20.7 (bf16)"


class Bench:
    """Shared by the cells of one run: the device, its measured ceilings, and the pipeline of the previous cell."""

    def __init__(self, device: torch.device, wan: RandomWan | None = None) -> None:
        """wan: the random pipeline's sizes; None: Wan 2.1 1.3B's on a GPU, and salt-tiny in its place on a CPU."""
        self.device = device
        self.wan = wan or (RandomWan() if device.type == "cuda" else None)
        self.comfyui: dict[str, Figures] = {}  # by size, as `comfyui_figures` measures them
        self.measured_ceilings: dict[str, float] | None = None
        self._pipe: tuple[str, SaltPipeline] | None = None

    @property
    def ceiling(self) -> dict[str, float]:
        if self.measured_ceilings is None:
            self.measured_ceilings = ceilings(
                self.device, torch.bfloat16 if self.device.type == "cuda" else torch.float32
            )
        return self.measured_ceilings

    def clear(self) -> None:
        """Free the device's memory for the next measurement."""
        self._pipe = None
        release_memory(self.device)

    def pipe(self, prefer: Preference = "exact") -> SaltPipeline:
        """A pipeline on the device, random or salt-tiny."""
        if self._pipe is None or self._pipe[0] != prefer:
            self.clear()
            pipe = generation.embedded() if self.wan is None else generation.random_wan(self.device, self.wan)
            pipe.set_acceleration(prefer)
            self._pipe = prefer, pipe
        generation.decode_with(self._pipe[1], "wan")
        return self._pipe[1]


@dataclass(frozen=True)
class Cell:
    """A row: its name, which of the measured figures is shown, its unit, the target, the measuring function, and what
    others have published for the like."""

    name: str
    shown: str
    unit: str
    target: str
    measure: Callable[[Bench], Figures]
    published: str = ""


def denoise(case: Case) -> Callable[[Bench], Figures]:
    return lambda bench: generation.denoising(bench.pipe(case.prefer), case, bench.ceiling)


def full_memory(case: Case) -> Callable[[Bench], Figures]:
    return lambda bench: generation.full_memory(bench.pipe(case.prefer), case, bench.ceiling)


def end_to_end(case: Case) -> Callable[[Bench], Figures]:
    return lambda bench: generation.end_to_end(bench.pipe(case.prefer), case)


def over_plain(case: Case, policy: str = "", prefer: Preference = "exact") -> Callable[[Bench], Figures]:
    """Time of the plain loop over ours; ours may differ from `case` in memory policy or preference."""

    def measure(bench: Bench) -> Figures:
        plain = generation.plain_per_block(bench.pipe(), case)
        ours = replace(case, policy=policy or case.policy, prefer=prefer)
        seconds = generation.per_block(bench.pipe(ours.prefer), ours)
        return {"over_plain": plain / seconds}

    return measure


def memory_14b(precision: str) -> Callable[[Bench], Figures]:
    """Size of a 14B student's memory, actually allocated if the device is a GPU."""

    def measure(bench: Bench) -> Figures:
        policy = MemoryPolicy.parse(f"{WINDOWED},{precision}")
        if bench.device.type != "cuda":
            return {"gb": KVMemory(policy, GEOMETRY_14B, torch.bfloat16).estimate_bytes() / 1e9, "allocated": False}
        bench.clear()
        before = torch.cuda.memory_allocated(bench.device)
        memory = KVMemory(policy, GEOMETRY_14B, torch.bfloat16, bench.device)
        memory.allocated(12)
        return {"gb": (torch.cuda.memory_allocated(bench.device) - before) / 1e9, "allocated": True}

    return measure


def training_speed(size: str) -> Callable[[Bench], Figures]:
    """Updates of the published training loop and of ours."""

    def measure(bench: Bench) -> Figures:
        bench.clear()
        figures = training.measure_training(size, bench.device.type, every_level=size == "small")
        if "speedup" in figures:
            return figures
        errors = ", ".join(f"{name} ({case['error']})" for name, case in figures["cases"].items() if "error" in case)
        return {**figures, "failed": f"no figure for {errors}"}

    return measure


def comfyui_figures(bench: Bench, name: str) -> Figures:
    """Rows of `benchmarks.comfyui`, measured once; none where ComfyUI is not named."""
    if name not in bench.comfyui and {"COMFYUI_PATH", "COMFYUI_PYTHON"} <= set(os.environ):
        bench.clear()  # memory held here would be missing in ComfyUI's process
        bench.comfyui[name] = comfyui.run([name], bench.device.type)
    return bench.comfyui.get(name, {})


def through_comfyui(name: str) -> Callable[[Bench], Figures]:
    """Time through ComfyUI over that of the library in the same process, and over that of core's own sampler."""

    def measure(bench: Bench) -> Figures:
        figures = comfyui_figures(bench, name)
        if not figures:
            return {"skipped": NO_COMFYUI}
        ours, core, library = (figures[f"{name} / {way}"] for way in ("ours", "core", "library"))
        over_core = ours["per_block"] / core["per_block"]
        return {"over_library": library["over_library"], "over_core": over_core, "rows": figures}

    return measure


def core_sampler(name: str) -> Callable[[Bench], Figures]:
    """ComfyUI core's own AR sampler on the same file, full memory, without decoding."""

    def measure(bench: Bench) -> Figures:
        figures = comfyui_figures(bench, name)
        if not figures:
            return {"skipped": NO_COMFYUI}
        return {"fps": generation.PIXEL_FRAMES / figures[f"{name} / core"]["per_block"]}

    return measure


def plain_loop(case: Case) -> Callable[[Bench], Figures]:
    """The published loop, without decoding."""
    return lambda bench: {"fps": generation.PIXEL_FRAMES / generation.plain_per_block(bench.pipe(), case)}


def whole_clip(case: Case) -> Callable[[Bench], Figures]:
    return lambda bench: generation.whole_clip(bench.pipe(case.prefer), case)


def peak(prefer: Preference) -> Callable[[Bench], Figures]:
    """Peak memory of the whole pipeline, decoding with Wan's VAE."""
    case = Case(WINDOWED, 4, prefer)
    return lambda bench: {"peak_gb": generation.peak_gb(bench.pipe(prefer), case)}


GPU = (
    Cell("denoising, window, 4 NFE, bf16", "fps", "frames/s", ">= 55 (limit 67)", denoise(Case(WINDOWED, 4, "fast"))),
    Cell("denoising, window, 2 NFE, bf16", "fps", "frames/s", ">= 95 (limit 112)", denoise(Case(WINDOWED, 2, "fast"))),
    Cell("full memory, 21 frames, 4 NFE", "fps_average", "frames/s", ">= 38", full_memory(Case(KEEP_ALL, 4, "fast"))),
    Cell("end to end, TAEHV, 4 NFE", "fps", "frames/s", ">= 50", end_to_end(Case(WINDOWED, 4, "fast", "taehv")),
         PUBLISHED),
    Cell("81 frames, prompt to frames, TAEHV, 4 NFE", "fps", "frames/s", "",
         whole_clip(Case(WINDOWED, 4, "fast", "taehv"))),
    Cell("end to end, TAEHV, 2 NFE", "fps", "frames/s", ">= 80", end_to_end(Case(WINDOWED, 2, "fast", "taehv"))),
    Cell("end to end, Wan VAE, 4 NFE", "over_slower", "x the slower", "<= 1.05", end_to_end(Case(WINDOWED, 4, "fast"))),
    Cell("first frame, warm, TAEHV, 4 NFE", "first_frame_s", "s", "< 0.3",
         lambda bench: {"first_frame_s": _first(bench, Case(WINDOWED, 4, "fast", "taehv"))}),
    Cell("peak memory, fast", "peak_gb", "GB", "<= 12", peak("fast")),
    Cell("denoising, window, 4 NFE, exact", "fps", "frames/s", "", denoise(Case(WINDOWED, 4))),
    Cell("plain loop, window, 4 NFE", "fps", "frames/s", "", plain_loop(Case(WINDOWED, 4))),
    Cell("ComfyUI core's AR sampler, full memory, 4 NFE", "fps", "frames/s", "", core_sampler("1.3B")),
    Cell("beside the plain loop, window, 4 NFE", "over_plain", "x", ">= 1", over_plain(Case(WINDOWED, 4))),
    Cell("peak memory, low memory", "peak_gb", "GB", "<= 8", peak("low memory")),
    Cell("denoising, window, 4 NFE, fp8", "fps", "frames/s", ">= 75", denoise(Case(WINDOWED, 4, "fastest"))),
    Cell("denoising, window, 2 NFE, fp8", "fps", "frames/s", ">= 125", denoise(Case(WINDOWED, 2, "fastest"))),
    Cell("14B memory, window 12, int8", "gb", "GB", "<= 8.2", memory_14b("int8")),
    Cell("14B memory, window 12, int4", "gb", "GB", "<= 4.4", memory_14b("int4")),
    Cell("training, 1.3B, beside the plain loop", "speedup", "x", ">= 1.5", training_speed("1.3B")),
    Cell("through ComfyUI, 1.3B", "over_library", "x the library", "<= 1.03", through_comfyui("1.3B")),
)  # fmt: skip

CPU = (
    Cell("salt-tiny, 2 NFE, end to end", "of_playing", "x playing speed", "> 1", end_to_end(Case(WINDOWED, 2))),
    Cell("denoising, 2 NFE", "fps", "frames/s", "", denoise(Case(WINDOWED, 2))),
    Cell("beside the plain loop, window, 2 NFE", "over_plain", "x", ">= 1", over_plain(Case(WINDOWED, 2))),
    Cell("beside the plain loop, window, 4 NFE", "over_plain", "x", ">= 1", over_plain(Case(WINDOWED, 4))),
    Cell("the same, int8 memory", "over_plain", "x", "", over_plain(Case(WINDOWED, 4), policy=f"{WINDOWED},int8")),
    Cell("the same, int4 memory", "over_plain", "x", "", over_plain(Case(WINDOWED, 4), policy=f"{WINDOWED},int4")),
    Cell("the same, compiled", "over_plain", "x", "", over_plain(Case(WINDOWED, 4), prefer="fast")),
    Cell("14B memory, window 12, int8", "gb", "GB", "<= 8.2", memory_14b("int8")),
    Cell("14B memory, window 12, int4", "gb", "GB", "<= 4.4", memory_14b("int4")),
    Cell("training, small, beside the plain loop", "speedup", "x", ">= 1.5", training_speed("small")),
    Cell("through ComfyUI, tiny", "over_library", "x the library", "<= 1.03", through_comfyui("tiny")),
    Cell("through ComfyUI, 0.3B", "over_library", "x the library", "<= 1.03", through_comfyui("0.3B")),
)


def _first(bench: Bench, case: Case) -> float:
    pipe = bench.pipe(case.prefer)
    generation.decode_with(pipe, case.decoder)
    return generation.first_frame(pipe, case)
