"""The cells of the speed table: what is measured, on which device, and the figure it is held against."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import comfyui, generation, training
from benchmarks.ceilings import ceilings
from benchmarks.generation import Case
from salt.acceleration.presets import Preference
from salt.memory import KVMemory, MemoryGeometry, MemoryPolicy
from salt.pipeline import SaltPipeline

WINDOW, FULL = "sink:3,window:12", "full"
FOURTEEN = MemoryGeometry(layers=40, heads=40, head_dim=128, height=30, width=52)

Figures = dict[str, Any]


class Bench:
    """What the cells of one run share: the device, its measured ceilings, and the pipeline of the cell before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known: dict[str, float] | None = None
        self.made: tuple[str, SaltPipeline] | None = None

    @property
    def ceiling(self) -> dict[str, float]:
        if self.known is None:
            self.known = ceilings(self.device, torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        return self.known

    def clear(self) -> None:
        """Room on the device for what is measured next."""
        self.made = None
        training.tidy(self.device)

    def pipe(self, prefer: Preference = "exact") -> SaltPipeline:
        """A pipeline on the device: random weights of Wan 2.1 1.3B on a GPU, salt-tiny on a CPU."""
        if self.made is None or self.made[0] != prefer:
            self.clear()
            pipe = generation.random_wan(self.device) if self.device.type == "cuda" else generation.embedded()
            pipe.set_acceleration(prefer)
            self.made = prefer, pipe
        generation.decode_with(self.made[1], "wan")
        return self.made[1]


@dataclass(frozen=True)
class Cell:
    """A row: name, the figure of it that is shown and its unit, the target, and what measures it."""

    name: str
    shown: str
    unit: str
    target: str
    measure: Callable[[Bench], Figures]


def denoise(case: Case) -> Callable[[Bench], Figures]:
    return lambda bench: generation.denoising(bench.pipe(case.prefer), case, bench.ceiling)


def whole_memory(case: Case) -> Callable[[Bench], Figures]:
    return lambda bench: generation.whole_memory(bench.pipe(case.prefer), case, bench.ceiling)


def whole_way(case: Case) -> Callable[[Bench], Figures]:
    return lambda bench: generation.end_to_end(bench.pipe(case.prefer), case)


def over_plain(case: Case, policy: str = "", prefer: Preference = "exact") -> Callable[[Bench], Figures]:
    """Times the plain loop takes beside ours; ours may differ from `case` in memory or preference."""

    def measure(bench: Bench) -> Figures:
        plain = generation.plain_per_block(bench.pipe(), case)
        ours = replace(case, policy=policy or case.policy, prefer=prefer)
        seconds = generation.per_block(bench.pipe(ours.prefer), ours)
        return {"over_plain": plain / seconds}

    return measure


def fourteen(precision: str) -> Callable[[Bench], Figures]:
    """Bytes that a 14B student's memory really takes, allocated on the device where that is a GPU."""

    def measure(bench: Bench) -> Figures:
        policy = MemoryPolicy.parse(f"{WINDOW},{precision}")
        if bench.device.type != "cuda":
            return {"gb": KVMemory(policy, FOURTEEN, torch.bfloat16).estimate_bytes() / 1e9, "allocated": False}
        bench.clear()
        before = torch.cuda.memory_allocated(bench.device)
        memory = KVMemory(policy, FOURTEEN, torch.bfloat16, bench.device)
        memory.allocated(12)
        return {"gb": (torch.cuda.memory_allocated(bench.device) - before) / 1e9, "allocated": True}

    return measure


def training_speed(size: str) -> Callable[[Bench], Figures]:
    def measure(bench: Bench) -> Figures:
        bench.clear()
        found = training.measure_training(size, bench.device.type, every_grain=size == "small")
        if "speedup" in found:
            return found
        short = ", ".join(f"{name} ({case['error']})" for name, case in found["cases"].items() if "error" in case)
        return {**found, "failed": f"no room for {short}"}

    return measure


def through_comfyui(name: str) -> Callable[[Bench], Figures]:
    """Ours through ComfyUI over the library in the same process, and core's own sampler on the same file."""

    def measure(bench: Bench) -> Figures:
        if not {"COMFYUI_PATH", "COMFYUI_PYTHON"} <= set(os.environ):
            return {"skipped": "COMFYUI_PATH and COMFYUI_PYTHON are not set"}
        bench.clear()  # what this process keeps is missing in ComfyUI's
        found = comfyui.run([name], bench.device.type)
        ours, core, library = (found[f"{name} / {way}"] for way in ("ours", "core", "library"))
        over_core = ours["per_block"] / core["per_block"]
        return {"over_library": library["over_library"], "over_core": over_core, "rows": found}

    return measure


def peak(prefer: Preference) -> Callable[[Bench], Figures]:
    """Most memory of the whole pipeline, decoding with Wan's VAE."""
    case = Case(WINDOW, 4, prefer)
    return lambda bench: {"peak_gb": generation.peak_gb(bench.pipe(prefer), case)}


GPU = (
    Cell("denoising, window, 4 NFE, bf16", "fps", "frames/s", ">= 55 (limit 67)", denoise(Case(WINDOW, 4, "fast"))),
    Cell("denoising, window, 2 NFE, bf16", "fps", "frames/s", ">= 95 (limit 112)", denoise(Case(WINDOW, 2, "fast"))),
    Cell("full memory, 21 frames, 4 NFE", "fps_average", "frames/s", ">= 38", whole_memory(Case(FULL, 4, "fast"))),
    Cell("end to end, TAEHV, 4 NFE", "fps", "frames/s", ">= 50", whole_way(Case(WINDOW, 4, "fast", "taehv"))),
    Cell("end to end, TAEHV, 2 NFE", "fps", "frames/s", ">= 80", whole_way(Case(WINDOW, 2, "fast", "taehv"))),
    Cell("end to end, Wan VAE, 4 NFE", "over_slower", "x the slower", "<= 1.05", whole_way(Case(WINDOW, 4, "fast"))),
    Cell("first frame, warm, TAEHV, 4 NFE", "first_frame_s", "s", "< 0.3",
         lambda bench: {"first_frame_s": _first(bench, Case(WINDOW, 4, "fast", "taehv"))}),
    Cell("peak memory, fast", "peak_gb", "GB", "<= 12", peak("fast")),
    Cell("denoising, window, 4 NFE, exact", "fps", "frames/s", "", denoise(Case(WINDOW, 4))),
    Cell("beside the plain loop, window, 4 NFE", "over_plain", "x", ">= 1", over_plain(Case(WINDOW, 4))),
    Cell("peak memory, low memory", "peak_gb", "GB", "<= 8", peak("low memory")),
    Cell("denoising, window, 4 NFE, fp8", "fps", "frames/s", ">= 75", denoise(Case(WINDOW, 4, "fastest"))),
    Cell("denoising, window, 2 NFE, fp8", "fps", "frames/s", ">= 125", denoise(Case(WINDOW, 2, "fastest"))),
    Cell("14B memory, window 12, int8", "gb", "GB", "<= 8.2", fourteen("int8")),
    Cell("14B memory, window 12, int4", "gb", "GB", "<= 4.4", fourteen("int4")),
    Cell("training, 1.3B, beside the plain loop", "speedup", "x", ">= 1.5", training_speed("1.3B")),
    Cell("through ComfyUI, 1.3B", "over_library", "x the library", "<= 1.03", through_comfyui("1.3B")),
)  # fmt: skip

CPU = (
    Cell("salt-tiny, 2 NFE, end to end", "of_playing", "x playing speed", "> 1", whole_way(Case(WINDOW, 2))),
    Cell("denoising, 2 NFE", "fps", "frames/s", "", denoise(Case(WINDOW, 2))),
    Cell("beside the plain loop, window, 2 NFE", "over_plain", "x", ">= 1", over_plain(Case(WINDOW, 2))),
    Cell("beside the plain loop, window, 4 NFE", "over_plain", "x", ">= 1", over_plain(Case(WINDOW, 4))),
    Cell("the same, int8 memory", "over_plain", "x", "", over_plain(Case(WINDOW, 4), policy=f"{WINDOW},int8")),
    Cell("the same, int4 memory", "over_plain", "x", "", over_plain(Case(WINDOW, 4), policy=f"{WINDOW},int4")),
    Cell("the same, compiled", "over_plain", "x", "", over_plain(Case(WINDOW, 4), prefer="fast")),
    Cell("14B memory, window 12, int8", "gb", "GB", "<= 8.2", fourteen("int8")),
    Cell("14B memory, window 12, int4", "gb", "GB", "<= 4.4", fourteen("int4")),
    Cell("training, small, beside the plain loop", "speedup", "x", ">= 1.5", training_speed("small")),
    Cell("through ComfyUI, tiny", "over_library", "x the library", "<= 1.03", through_comfyui("tiny")),
    Cell("through ComfyUI, 0.3B", "over_library", "x the library", "<= 1.03", through_comfyui("0.3B")),
)


def _first(bench: Bench, case: Case) -> float:
    pipe = bench.pipe(case.prefer)
    generation.decode_with(pipe, case.decoder)
    return generation.first_frame(pipe, case)
