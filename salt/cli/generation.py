"""Generates the clips of `salt generate`: one into a file, or one per prompt into a folder, on one device or many."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..acceleration.device import usable_device
from ..errors import InputError
from ..io.atomic import check_writable
from ..io.prompt_files import prompt_lines
from ..models.word_embedder import WordEmbedder
from ..parallel.heads import HeadGroup
from ..parallel.memory_shards import own_part, whole
from ..parallel.processes import joined, split_heads
from ..pipeline.from_options import PipelineOptions, load_pipeline, word_table
from ..pipeline.model_key import model_key
from ..pipeline.write_clip import GenerationStats, write_clip
from .memory_files import clip_part, load_clip_memory, negative_memory_to_save, save_clip_memory
from .prompt_batch import NEW, ClipRecord, batch_clips, other_clips

log = logging.getLogger(__name__)

# Processes that are done wait so long for the slowest; NCCL's own limit is ten minutes.
PROCESS_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class GenerationOptions:
    """What every clip of a command shares. inputs: arguments of `SaltPipeline.stream`."""

    pipeline: PipelineOptions = PipelineOptions()
    seed: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)


def process_state() -> PartialState:
    """This process's rank and device, joined to the others of a launcher; without `cpu` they do not join on a CPU."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PROCESS_TIMEOUT)


def run_device(options: PipelineOptions) -> torch.device:
    return usable_device(options.device) if options.device else torch.device(process_state().device or "cpu")


def generate_one(
    prompt: str,
    out: Path,
    options: GenerationOptions,
    extend: Path | None = None,
    save_memory: Path | None = None,
    group: HeadGroup | None = None,
) -> GenerationStats:
    """One clip into one file. extend: a memory file to go on from; save_memory: where to save the memory afterwards.

    group: of processes that make it together; the first of them alone writes files.
    """
    writes = group is None or group.rank == 0
    if writes:
        check_writable(out, ".mp4")
        if save_memory is not None:
            check_writable(save_memory, ".safetensors")
    pipe = load_pipeline(options.pipeline, run_device(options.pipeline))
    if group is not None:
        split_heads(pipe.transformer, pipe.acceleration, group)
    if isinstance(pipe.prompt_encoder, WordEmbedder) and not pipe.prompt_encoder.words(prompt):
        vocabulary = ", ".join(pipe.prompt_encoder.vocabulary)
        raise InputError("prompt", f"found an empty one, expected words among: {vocabulary}")
    inputs = dict(options.inputs)
    if extend is not None:
        inputs |= load_clip_memory(pipe, extend, guided="guidance_scale" in inputs)
        if group is not None:
            memories = {name: inputs[name] for name in ("memory", "negative_memory") if name in inputs}
            inputs |= {name: own_part(memory, group) for name, memory in memories.items()}
    elif save_memory is not None:
        inputs["negative_memory"] = negative_memory_to_save(pipe, inputs)
    clip = write_clip(pipe, prompt, out if writes else None, options.seed, inputs, keep_latents=save_memory is not None)
    if save_memory is not None and clip.memory is not None:
        memory, negative = clip.memory, inputs.get("negative_memory")
        if group is not None:
            memory, negative = whole(memory, group), None if negative is None else whole(negative, group)
        if not writes:
            return clip.stats
        past = [inputs["history_latents"]] if "history_latents" in inputs else []
        latents = [*past, *clip.latents]
        parts = clip_part(prompt, options.seed, pipe.spec.fps, inputs, extend)
        save_clip_memory(pipe, save_memory, memory, negative, latents, parts)
    return clip.stats


def generate_together(
    prompt: str, out: Path, options: GenerationOptions, extend: Path | None = None, save_memory: Path | None = None
) -> GenerationStats:
    """`generate_one` by all processes of the launcher, with attention and memory split by heads."""
    with joined(PROCESS_TIMEOUT) as group:
        return generate_one(prompt, out, options, extend, save_memory, group)


def generate_many(file: Path, folder: Path, options: GenerationOptions) -> None:
    """One video per prompt into a folder; prompts are shared among the processes of torchrun or accelerate launch.

    Clips that an earlier run finished from the same prompts, seeds, settings and files are left alone. Prompt i takes
    seed + i.
    """
    lines = prompt_lines(file)
    if folder.suffix == ".mp4":
        raise ValueError(f"-o: found {folder}, expected a folder for the videos of {file}")
    check_writable(folder / "probe.mp4", ".mp4")
    model, words = model_key(options.pipeline), word_table(options.pipeline)
    if words is not None:
        words.check_lines(lines, str(file))
    state = process_state()
    clips = batch_clips(list(lines.values()), folder, options.seed, model, options.inputs)
    faults = {clip: fault for clip in clips if (fault := clip.fault())}
    unfinished = list(faults)
    state.wait_for_everyone()  # all have looked before the first finishes a clip
    if state.is_main_process:
        for clip in unfinished:
            if faults[clip] != NEW:
                log.warning("%s: %s; made anew", clip.video, faults[clip])
    with state.split_between_processes(list(range(len(unfinished)))) as share:
        pipe = load_pipeline(options.pipeline, run_device(options.pipeline)) if share else None
        for clip in (unfinished[i] for i in share):
            assert pipe is not None
            stats = write_clip(pipe, clip.prompt, clip.video, clip.seed, options.inputs).stats
            ClipRecord(clip.prompt, clip.seed, stats.frames, clip.key).write(clip.record)
            print(f"{clip.video}: {stats}")
    state.wait_for_everyone()
    if state.is_main_process:
        others = other_clips(clips, folder)
        also = f"; {others} other clips in it are of other prompts, settings or models" if others else ""
        print(f"{folder}: {len(clips)} clips, {len(clips) - len(unfinished)} of them from before{also}")
