"""A clip's memory between two commands: a file, its unconditional branch where the clip was guided, its last latents.

NAME.safetensors is the memory; beside it NAME.negative.safetensors and NAME.safetensors.latents.safetensors.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..io.atomic import write_tensors
from ..memory import KVMemory, load_memory, save_memory
from ..memory.serialization import negative_path
from ..models.transformer_salt import fingerprint
from ..pipeline import SaltPipeline
from ..pipeline.inputs import PipelineInputs
from ..pipeline.pipeline import WARM_UP

log = logging.getLogger(__name__)


def latents_path(path: Path) -> Path:
    return path.with_name(path.name + ".latents.safetensors")


def remembered(pipe: SaltPipeline, path: Path, guided: bool) -> dict[str, Any]:
    """What a request needs to go on from a memory file. Raises ValueError naming the file that does not fit."""
    told = {"fingerprint": fingerprint(pipe.transformer), "device": pipe.run_device}
    memory = load_memory(path, **told)
    request: dict[str, Any] = {"memory": memory}
    if guided:
        branch = negative_path(path)
        if not branch.is_file():
            raise ValueError(
                f"--guidance: found no {branch}, expected the unconditional branch, which a clip with --guidance "
                "leaves beside its memory"
            )
        request["negative_memory"] = load_memory(branch, **told)
    beside = latents_path(path)
    if beside.is_file():
        request["history_latents"] = _latents(beside, _latents_shape(pipe, memory))
    return request


def branch_to_keep(pipe: SaltPipeline, request: dict[str, Any]) -> KVMemory | None:
    """An empty memory for the unconditional branch of a new clip that is to be saved; None without guidance.

    Raises ValueError for a student that has no memory at all.
    """
    if pipe.spec.frames_per_block == 0:
        raise ValueError("--save-memory: found a bidirectional student, which has no memory, expected none")
    asked = PipelineInputs(**request)
    if asked.guidance_scale == 1.0:
        return None
    height, width = asked.height or pipe.default_size[0], asked.width or pipe.default_size[1]
    scale, policy = pipe.spatial_scale, pipe.speed.policy(asked.policy(pipe.spec))
    return pipe.transformer.new_memory(policy, 1, height // scale, width // scale)


def keep(
    pipe: SaltPipeline, path: Path, memory: KVMemory, negative: KVMemory | None, latents: list[torch.Tensor]
) -> None:
    """Write a memory and what lies beside it; what an older memory of this name had there is replaced with it."""
    branch = negative_path(path)
    # The branch first: a memory beside the branch of another would be guided wrongly, silently.
    if negative is not None:
        save_memory(negative, branch)
    else:
        branch.unlink(missing_ok=True)
    save_memory(memory, path)
    made = torch.cat([x.cpu().float() for x in latents], dim=2)
    count, beside = _latents_shape(pipe, memory)[2], latents_path(path)
    if made.shape[2] >= count:
        write_tensors(beside, {"latents": made[:, :, -count:].contiguous()})
    else:
        beside.unlink(missing_ok=True)
        log.info("%s: written without latents, as those before this part are not known", path)


def _latents_shape(pipe: SaltPipeline, memory: KVMemory) -> tuple[int, ...]:
    """[B, C, F, H, W] of the latents beside a memory: as many as the decoder needs, and as a recache may re-encode."""
    g, (_, p_h, p_w) = memory.geometry, pipe.transformer.config.patch_size
    frames = min(memory.next_frame, max(WARM_UP, memory.policy.window or memory.next_frame))
    return g.batch, pipe.transformer.config.out_channels, frames, g.height * p_h, g.width * p_w


def _latents(path: Path, expected: tuple[int, ...]) -> torch.Tensor:
    try:
        latents = load_file(path)["latents"]
        found = f"latents of shape {tuple(latents.shape)}"
        if tuple(latents.shape) == expected:
            return latents
    except (SafetensorError, KeyError) as error:
        found = f"no latents that can be read ({error})"
    raise ValueError(f"{path}: found {found}, expected shape {expected}; remove it to go on without")
