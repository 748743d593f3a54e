"""Generates the clips of `salt generate`: one into a file, or one per prompt into a folder, on one device or many."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..acceleration.device import usable_device
from ..errors import InputError
from ..io.atomic import check_writable, write_text
from ..io.prompt_files import read_prompts
from ..models.word_embedder import WordEmbedder
from ..pipeline.from_options import PipelineOptions, load_pipeline
from ..pipeline.write_clip import GenerationStats, write_clip
from .memory_files import clip_part, load_clip_memory, negative_memory_to_save, save_clip_memory

# Processes that are done wait so long for the slowest; NCCL's own limit is ten minutes.
PROCESS_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class GenerationOptions:
    """What every clip of a command shares. inputs: arguments of `SaltPipeline.stream`."""

    pipeline: PipelineOptions = PipelineOptions()
    seed: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)


def run_device(options: PipelineOptions) -> torch.device:
    return usable_device(options.device) if options.device else torch.device(PartialState().device or "cpu")


def generate_one(
    prompt: str, out: Path, options: GenerationOptions, extend: Path | None = None, save_memory: Path | None = None
) -> GenerationStats:
    """One clip into one file. extend: a memory file to go on from; save_memory: where to save the memory afterwards."""
    check_writable(out, ".mp4")
    if save_memory is not None:
        check_writable(save_memory, ".safetensors")
    pipe = load_pipeline(options.pipeline, run_device(options.pipeline))
    if isinstance(pipe.prompt_encoder, WordEmbedder) and not prompt.strip():
        vocabulary = ", ".join(pipe.prompt_encoder.vocabulary)
        raise InputError("prompt", f"found an empty one, expected words among: {vocabulary}")
    inputs = dict(options.inputs)
    if extend is not None:
        inputs |= load_clip_memory(pipe, extend, guided="guidance_scale" in inputs)
    elif save_memory is not None:
        inputs["negative_memory"] = negative_memory_to_save(pipe, inputs)
    clip = write_clip(pipe, prompt, out, options.seed, inputs, keep_latents=save_memory is not None)
    if save_memory is not None and clip.memory is not None:
        past = [inputs["history_latents"]] if "history_latents" in inputs else []
        latents = [*past, *clip.latents]
        parts = clip_part(prompt, options.seed, inputs, extend)
        save_clip_memory(pipe, save_memory, clip.memory, inputs.get("negative_memory"), latents, parts)
    return clip.stats


def clip_name(index: int, prompt: str, options: GenerationOptions) -> str:
    """A file name with words of the prompt and a hash of everything that changes the clip."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48]
    shared = {**asdict(options.pipeline), "seed": options.seed, "request": options.inputs}
    # These keys name files on disk: another name for one of them would make every clip again.
    identity = json.dumps({**shared, "prompt": prompt, "device": None}, sort_keys=True, default=str)
    return f"{index:04d}-{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def unfinished_clips(prompts: list[str], folder: Path, options: GenerationOptions) -> Iterator[tuple[int, str, Path]]:
    """(index, prompt, record file) of every clip that is not finished: the record is written after its video."""
    for index, prompt in enumerate(prompts):
        record = folder / f"{clip_name(index, prompt, options)}.json"
        if not record.exists():
            yield index, prompt, record


def generate_many(file: Path, folder: Path, options: GenerationOptions) -> None:
    """One video per prompt into a folder; prompts are shared among the processes of an accelerate launch.

    Clips that an earlier run finished are left alone. Prompt i takes seed + i.
    """
    prompts = read_prompts(file)
    if folder.suffix == ".mp4":
        raise ValueError(f"-o: found {folder}, expected a folder for the videos of {file}")
    check_writable(folder / "probe.mp4", ".mp4")
    state = PartialState(timeout=PROCESS_TIMEOUT)
    unfinished = list(unfinished_clips(prompts, folder, options))
    state.wait_for_everyone()  # all have looked before the first finishes a clip
    with state.split_between_processes(list(range(len(unfinished)))) as share:
        pipe = load_pipeline(options.pipeline, run_device(options.pipeline)) if share else None
        for index, prompt, record in (unfinished[i] for i in share):
            assert pipe is not None
            out, seed = record.with_suffix(".mp4"), options.seed + index
            stats = write_clip(pipe, prompt, out, seed, options.inputs).stats
            write_text(record, json.dumps({"prompt": prompt, "seed": seed, "frames": stats.frames}))
            print(f"{out}: {stats}")
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"{folder}: {len(prompts)} clips, {len(prompts) - len(unfinished)} of them from before")
