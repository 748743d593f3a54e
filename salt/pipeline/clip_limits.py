"""Whether a clip fits the machine: what its arguments make necessary, before anything is computed or allocated."""

from __future__ import annotations

import math

import torch

from ..acceleration.free_memory import bytes_text, check_bytes
from ..errors import InputError
from ..memory import MemoryPolicy, estimate_bytes
from .components import PipelineComponents
from .inputs import DEFAULT_SECONDS, PipelineInputs

FLOAT_BYTES = 4
MOST_LATENT_BYTES = 10**12  # of all blocks, though a stream lets written ones go: a week at 832x480
LONGEST_WINDOW = 10_000  # latent frames, 40 minutes: a longer one is a mistake, even of a clip that does not fill it
MOST_SECONDS = 1e15  # more are not told apart, so that no arithmetic overflows


def check_clip_fits(components: PipelineComponents, inputs: PipelineInputs, size: tuple[int, int]) -> None:
    """Raise InputError naming the size, the number of clips, the policy or the length that needs too many bytes.

    size: pixels (H, W). Counts only what is surely needed: the KV cache, and the latents and pixels of one block.
    """
    policy = components.acceleration.policy(inputs.policy(components.spec))
    batch = inputs.prompt_count() * inputs.num_videos_per_prompt
    latents, pixels = _frame_bytes(components, size)
    block = max(components.spec.frames_per_block, 1)
    device = components.device
    larger = "width" if size[1] >= size[0] else "height"
    one = block * (latents + pixels + _kv_bytes(components, inputs, policy, size, 1))
    check_bytes(larger, one, device, f"a block of {size[1]}x{size[0]} pixels", "pixels", size[0] * size[1])
    many = "num_videos_per_prompt" if inputs.num_videos_per_prompt > 1 else "prompt"
    check_bytes(many, batch * one, device, f"a block of {batch:,} clips", "clips", batch)
    home = device if policy.residence == "device" else torch.device("cpu")
    reused = sum(store.nbytes for store in components.buffer_pool.stores)
    fps = components.spec.fps
    seconds = _seconds(inputs, fps)
    frames = math.ceil(seconds * fps / components.temporal_scale)
    window = policy.window
    if window is not None and inputs.memory is None and (window <= frames or window > LONGEST_WINDOW):
        needed = batch * _kv_bytes(components, inputs, policy, size, window)
        what = f"a window of {window:,} latent frames ({window * components.temporal_scale / fps:,.4g} s)"
        check_bytes("memory_policy", needed, home, what, "latent frames", window, reused)
    field, what = "seconds" if inputs.num_frames is None else "num_frames", f"a clip of {seconds:g} s"
    cached = batch * _kv_bytes(components, inputs, policy, size, frames)
    check_bytes(field, cached, home, f"the KV cache of {what}", "seconds", int(seconds), reused)
    if (total := batch * frames * latents) > MOST_LATENT_BYTES:
        fit = int(seconds) * MOST_LATENT_BYTES // total
        raise InputError(
            field,
            f"found too much: {what} has {bytes_text(total)} of latents, expected at most "
            f"{bytes_text(MOST_LATENT_BYTES)}; at most {fit:,} seconds fit",
        )


def _frame_bytes(components: PipelineComponents, size: tuple[int, int]) -> tuple[int, int]:
    """Bytes of one latent frame, and of its pixels, in float32."""
    pixels, scale = size[0] * size[1], components.spatial_scale
    latents = components.transformer.config.out_channels * (pixels // scale**2)
    return FLOAT_BYTES * latents, FLOAT_BYTES * 3 * components.temporal_scale * pixels


def _kv_bytes(
    components: PipelineComponents, inputs: PipelineInputs, policy: MemoryPolicy, size: tuple[int, int], frames: int
) -> int:
    """Bytes of one clip's KV cache, both branches of guidance, for `frames` latent frames."""
    if components.bidirectional:
        return 0
    transformer, scale = components.transformer, components.spatial_scale
    geometry = transformer.memory_geometry(1, size[0] // scale, size[1] // scale)
    return (2 if inputs.guided else 1) * estimate_bytes(policy, geometry, transformer.dtype, frames)


def _seconds(inputs: PipelineInputs, fps: int) -> float:
    """Length of the new part, at most MOST_SECONDS; 0 for what `plan_length` refuses."""
    if inputs.num_frames is not None:
        return min(max(inputs.num_frames, 0), MOST_SECONDS * fps) / fps
    seconds = DEFAULT_SECONDS if inputs.seconds is None else inputs.seconds
    return min(max(seconds, 0.0), MOST_SECONDS) if math.isfinite(seconds) else 0.0
