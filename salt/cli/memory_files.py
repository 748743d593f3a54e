"""Files of a clip's memory between two commands: the memory, its unconditional branch, and the clip's last latents.

NAME.safetensors is the memory; beside it are NAME.negative.safetensors, where the clip was guided, and
NAME.safetensors.latents.safetensors.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import InputError
from ..io.atomic import write_tensors
from ..memory import KVMemory, load_memory, save_memory
from ..memory.serialization import negative_path
from ..models.fingerprint import fingerprint
from ..pipeline import PipelineInputs, SaltPipeline
from ..pipeline.async_decoder import most_latents_for_extension

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
        negative = negative_path(path)
        if not negative.is_file():
            raise InputError(
                "guidance_scale",
                f"needs the unconditional branch, which a guided clip leaves beside its memory; there is no {negative}",
            )
        inputs["negative_memory"] = load_memory(negative, fingerprint=identity, device=device)
    latents = latents_path(path)
    if latents.is_file():
        inputs["history_latents"] = _load_latents(latents, _latents_shape(pipe, memory))
    return inputs


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
    pipe: SaltPipeline, path: Path, memory: KVMemory, negative: KVMemory | None, latents: list[torch.Tensor]
) -> None:
    """Write a memory and the files beside it, in place of those of an older memory of this name."""
    # The negative first: a memory beside the negative of another would be guided wrongly, silently.
    if negative is not None:
        save_memory(negative, negative_path(path))
    else:
        negative_path(path).unlink(missing_ok=True)
    save_memory(memory, path)
    clip = torch.cat([x.cpu().float() for x in latents], dim=2)
    count, target = _latents_shape(pipe, memory)[2], latents_path(path)
    if clip.shape[2] >= count:
        write_tensors(target, {"latents": clip[:, :, -count:].contiguous()})
    else:
        target.unlink(missing_ok=True)
        log.info("%s: written without latents, as those before this part are not known", path)


def _latents_shape(pipe: SaltPipeline, memory: KVMemory) -> tuple[int, ...]:
    """[B, C, F, H, W] of the latents beside a memory: as many as the decoder needs, and as a recache may re-encode."""
    g, (_, p_h, p_w) = memory.geometry, pipe.transformer.config.patch_size
    frames = min(memory.next_frame, most_latents_for_extension(memory.policy) or memory.next_frame)
    return g.batch, pipe.transformer.config.out_channels, frames, g.height * p_h, g.width * p_w


def _load_latents(path: Path, expected: tuple[int, ...]) -> torch.Tensor:
    try:
        latents = load_file(path)["latents"]
        found = f"latents of shape {tuple(latents.shape)}"
        if tuple(latents.shape) == expected:
            return latents
    except (SafetensorError, KeyError) as error:
        found = f"no latents that can be read ({error})"
    raise ValueError(f"{path}: found {found}, expected shape {expected}; remove it to go on without")
