"""Carries out `salt generate`: loads the pipeline, writes each clip as its blocks finish, knows what is done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import PartialState
from accelerate.utils import compare_versions
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..acceleration.device import usable_device
from ..acceleration.presets import Preference
from ..checkpoints import read_checkpoint
from ..checkpoints.lora import merge_lora
from ..io.atomic import check_writable, write_text
from ..io.hub import WAN, models_folder
from ..io.prompt_files import read_prompts
from ..io.video import VideoWriter
from ..models.streaming_vae import Tiling
from ..models.text_encoder import CachedTextEncoder, TextEncoder, TextPrecision, UMT5TextEncoder
from ..models.word_embedder import WordEmbedder
from ..pipeline import SaltPipeline
from ..pipeline.components import INDEX, TINY_NAME
from . import memory_files as memories
from .progress import GenerationStats, ProgressDisplay

PATIENCE = timedelta(days=7)  # that processes which are done wait for the slowest; NCCL's own is ten minutes
PULLED = WAN.rpartition("/")[2]


@dataclass(frozen=True)
class Options:
    """What every clip of a command shares. request: options of `SaltPipeline.stream`."""

    model: str = "salt-tiny"
    parts: Path | None = None
    weights: Literal["auto", "ema", "regular"] = "auto"
    lora: Path | None = None
    decoder: str = "wan"
    tiles: bool = False
    device: str | None = None
    dtype: str | None = None
    text_precision: TextPrecision = "bf16"
    text_cache: Path | None = None
    prefer: Preference = "exact"
    seed: int = 0
    request: dict[str, Any] = field(default_factory=dict)


def load_pipeline(options: Options, device: torch.device) -> SaltPipeline:
    """The pipeline of a folder, or of a checkpoint with its parts. Errors name the file or folder that is missing."""
    diffusers_logging.set_verbosity_error()
    for library in (diffusers_logging, transformers_logging):  # the one progress line here is `ProgressDisplay`
        library.disable_progress_bar()
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    path = Path(options.model)
    whole = options.model == TINY_NAME or (path / INDEX).is_file()
    if not whole and not path.exists():
        raise FileNotFoundError(f"{path}: found no such file or folder, expected a model")
    parts = options.parts or (path if whole else models_folder() / PULLED)
    alone = options.parts is not None or not whole
    if options.parts is not None:
        if options.model == TINY_NAME and not path.exists():
            raise ValueError(f"--parts: found it with {TINY_NAME}, which has its own, expected --model CHECKPOINT too")
        if not parts.is_dir():
            raise FileNotFoundError(f"--parts: found no such folder {parts}, expected vae/ and text_encoder/ in it")
    if alone:
        if not parts.exists():
            raise ValueError(
                f"{path}: found a checkpoint alone, expected --parts FOLDER with vae/ and text_encoder/ too "
                f"(or those of `salt pull`, in {parts})"
            )
        read_checkpoint(path, options.weights)  # a file that is none is told before gigabytes of text encoder are read
    text = umt5(options, parts, device)
    if alone:
        pipe = SaltPipeline.from_single_file(
            path, parts=parts, weights=options.weights, lora=options.lora, text=text, torch_dtype=dtype
        )
    else:
        wanted: dict[str, Any] = {}
        if dtype != torch.float32:  # which diffusers reads anyway; Wan's VAE is exact in nothing less
            option = "dtype" if compare_versions("diffusers", ">=", "0.40.0") else "torch_dtype"
            wanted[option] = {"vae": torch.float32, "default": dtype}
        if text is not None:
            wanted |= {"text_encoder": None, "tokenizer": None}
        pipe = SaltPipeline.from_pretrained(options.model, **wanted)
        if text is not None:
            pipe.text = text
        if options.lora is not None:
            merge_lora(pipe.transformer, options.lora)
    pipe.set_progress_bar_config(disable=True)
    if options.tiles:
        if options.decoder != "wan":
            raise ValueError(
                f"--tiles: found it with --decoder {options.decoder}, expected wan (the tiny one needs none)"
            )
        pipe.use_wan(Tiling())
    elif options.decoder != "wan":
        pipe.use_taehv(options.decoder)
    pipe.to(device).prefer(options.prefer)
    return pipe


def umt5(options: Options, folder: Path, device: torch.device) -> TextEncoder | None:
    """The UMT5 of a folder, None where it has none. It waits on the CPU and visits the device for every prompt."""
    if not (folder / "text_encoder").is_dir():
        return None

    def load() -> UMT5TextEncoder:
        return UMT5TextEncoder.from_pretrained(folder, options.text_precision, device)

    if options.text_cache is None:
        return load()
    return CachedTextEncoder(load, options.text_cache, f"{folder.resolve()}-{options.text_precision}")


def run_device(options: Options) -> torch.device:
    return usable_device(options.device) if options.device else torch.device(PartialState().device or "cpu")


def generate_one(
    prompt: str, out: Path, options: Options, extend: Path | None = None, keep: Path | None = None
) -> GenerationStats:
    """One clip into one file. extend: a memory file to go on from; keep: where to save the memory afterwards."""
    check_writable(out, ".mp4")
    if keep is not None:
        check_writable(keep, ".safetensors")
    pipe = load_pipeline(options, run_device(options))
    if isinstance(pipe.text, WordEmbedder) and not prompt.strip():
        raise ValueError(f"prompt: found an empty one, expected words among: {', '.join(pipe.text.vocabulary)}")
    request = dict(options.request)
    if extend is not None:
        request |= memories.remembered(pipe, extend, guided="guidance_scale" in request)
    elif keep is not None:
        request["negative_memory"] = memories.branch_to_keep(pipe, request)
    figures, made = write_clip(pipe, prompt, out, options.seed, request)
    if keep is not None and made.memory is not None:
        past = [request["history_latents"]] if "history_latents" in request else []
        memories.keep(pipe, keep, made.memory, request.get("negative_memory"), [*past, *made.latents])
    return figures


@dataclass
class Made:
    """What a clip leaves behind, beside its file."""

    latents: list[torch.Tensor]
    memory: Any = None


def write_clip(
    pipe: SaltPipeline, prompt: str, out: Path, seed: int, request: dict[str, Any]
) -> tuple[GenerationStats, Made]:
    """Write one clip, frame by frame as blocks finish; interrupted, the file holds what was done."""
    made = Made([])
    with ProgressDisplay(prompt) as show, VideoWriter(out) as video:
        for chunk in pipe.stream(prompt, seed=seed, on_step=show.step, **request):
            video.write(chunk.frames[0])
            show.chunk(chunk)
            made.latents.append(chunk.latents)
            made.memory = chunk.memory
    return show.figures, made


def clip_name(index: int, prompt: str, options: Options) -> str:
    """A name that tells the prompt and changes with anything that changes the clip."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48]
    what = json.dumps({**asdict(options), "prompt": prompt, "device": None}, sort_keys=True, default=str)
    return f"{index:04d}-{slug}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


def to_do(prompts: list[str], folder: Path, options: Options) -> Iterator[tuple[int, str, Path]]:
    """(index, prompt, note) of every clip that is not finished. The note beside a video says that it is whole."""
    for index, prompt in enumerate(prompts):
        note = folder / f"{clip_name(index, prompt, options)}.json"
        if not note.exists():
            yield index, prompt, note


def generate_many(file: Path, folder: Path, options: Options) -> None:
    """One video per prompt into a folder; prompts are shared among the processes of an accelerate launch.

    Clips that an earlier run finished are left alone. Prompt i takes seed + i.
    """
    prompts = read_prompts(file)
    if folder.suffix == ".mp4":
        raise ValueError(f"-o: found {folder}, expected a folder for the videos of {file}")
    check_writable(folder / "probe.mp4", ".mp4")
    state = PartialState(timeout=PATIENCE)
    left = list(to_do(prompts, folder, options))
    state.wait_for_everyone()  # all have looked before the first finishes a clip
    with state.split_between_processes(left) as mine:
        pipe = load_pipeline(options, run_device(options)) if mine else None
        for index, prompt, note in cast(list[tuple[int, str, Path]], mine):
            assert pipe is not None
            out = note.with_suffix(".mp4")
            figures, _ = write_clip(pipe, prompt, out, options.seed + index, options.request)
            record = {"prompt": prompt, "seed": options.seed + index, "frames": figures.frames}
            write_text(note, json.dumps(record))
            print(f"{out}: {figures}")
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"{folder}: {len(prompts)} clips, {len(prompts) - len(left)} of them from before")
