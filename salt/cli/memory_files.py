"""The file of a clip between two commands: memory, unconditional branch, last latents, prompts and settings.

Older versions wrote three files: NAME.safetensors, NAME.negative.safetensors for a guided clip, and
NAME.safetensors.latents.safetensors. They are still read, and replaced by one.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import InputError
from ..io.partial_files import written_path
from ..memory import KVMemory, MemoryFileError, load_memory
from ..memory.serialization import (
    has_negative,
    is_clip_file,
    load_negative,
    negative_path,
    read_clip_latents,
    read_clip_parts,
    save_clip,
)
from ..models.async_decoder import most_latents_for_extension
from ..models.fingerprint import fingerprint
from ..pipeline import PipelineInputs, SaltPipeline

log = logging.getLogger(__name__)


def latents_path(path: Path) -> Path:
    return path.with_name(path.name + ".latents.safetensors")


def load_clip_memory(pipe: SaltPipeline, path: Path, guided: bool) -> dict[str, Any]:
    """Arguments of `SaltPipeline.stream` that go on from a memory file.

    Raises FileNotFoundError, MemoryFileError or ValueError naming the file that is missing or does not fit.
    """
    identity, device = fingerprint(pipe.transformer), pipe.run_device
    memory = load_memory(path, fingerprint=identity, device=device)
    inputs: dict[str, Any] = {"memory": memory}
    if guided:
        if not has_negative(path):
            raise InputError(
                "guidance_scale",
                f"needs the unconditional branch, which the memory of a guided clip has; there is none in {path}",
            )
        inputs["negative_memory"] = load_negative(path, fingerprint=identity, device=device)
    latents = _load_latents(path, _latents_shape(pipe, memory))
    return inputs if latents is None else {**inputs, "history_latents": latents}


def negative_memory_to_save(pipe: SaltPipeline, arguments: dict[str, Any]) -> KVMemory | None:
    """An empty memory for the unconditional branch of a new clip that is to be saved; None without guidance.

    Raises InputError for a model that has no memory at all.
    """
    if pipe.spec.frames_per_block == 0:
        raise InputError("save_memory", "is not supported by bidirectional models, which have no memory")
    inputs = PipelineInputs(**arguments)
    if not inputs.guided:
        return None
    height, width = inputs.height or pipe.default_size[0], inputs.width or pipe.default_size[1]
    scale, policy = pipe.spatial_scale, pipe.acceleration.policy(inputs.policy(pipe.spec))
    return pipe.transformer.new_memory(policy, 1, height // scale, width // scale)


def save_clip_memory(
    pipe: SaltPipeline,
    path: Path,
    memory: KVMemory,
    negative: KVMemory | None,
    latents: list[torch.Tensor],
    parts: list[dict[str, Any]],
) -> None:
    """Write a clip's memory, atomically, in place of an older one of this name. parts: see `clip_part`."""
    path = written_path(path)
    older = _older_files(path)
    clip = torch.cat([x.cpu().float() for x in latents], dim=2)
    count = _latents_shape(pipe, memory)[2]
    known = clip[:, :, -count:] if clip.shape[2] >= count else None
    save_clip(path, memory, negative, known, parts)
    for file in older:
        file.unlink(missing_ok=True)
    if known is None:
        log.info("%s: written without latents, as those before this part are not known", path)


def clip_part(prompt: str, seed: int, fps: int, inputs: dict[str, Any], extend: Path | None) -> list[dict[str, Any]]:
    """Prompts and settings of a clip, those of the memory that it extends first. fps: the model's."""
    settings = {key: value for key, value in inputs.items() if not isinstance(value, (torch.Tensor, KVMemory))}
    plain = json.loads(json.dumps({"prompt": prompt, "seed": seed, "fps": fps, **settings}, default=str))
    return [*(read_clip_parts(extend) if extend is not None else []), plain]


def _older_files(path: Path) -> list[Path]:
    """What an older version wrote beside the memory at `path`, which a file with all of its clip replaces."""
    if not path.is_file():
        return []
    try:
        return [] if is_clip_file(path) else [negative_path(path), latents_path(path)]
    except MemoryFileError:  # another file, which is replaced; those beside it are not known
        return []


def _latents_shape(pipe: SaltPipeline, memory: KVMemory) -> tuple[int, ...]:
    """[B, C, F, H, W] of the latents beside a memory: as many as the decoder needs, and as a recache may re-encode."""
    g, (_, p_h, p_w) = memory.geometry, pipe.transformer.config.patch_size
    frames = min(memory.next_frame, most_latents_for_extension(memory.policy) or memory.next_frame)
    return g.batch, pipe.transformer.config.out_channels, frames, g.height * p_h, g.width * p_w


def _load_latents(path: Path, expected: tuple[int, ...]) -> torch.Tensor | None:
    """The latents in a clip's file, or beside one of an older version; None where there are none."""
    beside = latents_path(path)
    if is_clip_file(path):
        latents = read_clip_latents(path)
        if latents is None or tuple(latents.shape) == expected:
            return latents
        raise MemoryFileError(f"{path}: latents: found shape {tuple(latents.shape)}, expected {expected}")
    if not beside.is_file():
        return None
    try:
        latents = load_file(beside)["latents"]
        found = f"latents of shape {tuple(latents.shape)}"
        if tuple(latents.shape) == expected:
            return latents
    except (SafetensorError, KeyError) as error:
        found = f"no latents that can be read ({error})"
    raise ValueError(f"{beside}: found {found}, expected shape {expected}; remove it to go on without")
