"""Bytes of each phase of a run, from the model's configuration and settings alone.

Weights, KV memory and caches are counted exactly. What a forward, a decoded frame and the text encoder need while they
run are fits to the simulated peaks of this project's own code at true size (docs/performance.md, "Memory plan"); torch,
attention back ends and the allocator add RESERVE. Nothing here has been measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..io.pixel_sizes import check_multiple
from ..memory import MemoryPolicy, estimate_bytes
from ..memory.policy import FAR_BLOCK
from .models import BF16, FP8, FP32, PlannedModel
from .settings import PlanSettings

RESERVE = 500_000_000  # CUDA context, libraries' workspaces
TEXT_TOKENS, IMAGE_TOKENS = 512, 257
TILED_PIXELS = 262
TAEHV_BYTES, TAEHV_CACHE, TAEHV_FRAME = 39_400_000, 237, 2611
# UMT5-XXL in bfloat16: token embeddings, one of its blocks; while it encodes 512 tokens, and of every further prompt.
UMT5_LAYERS, UMT5_EMBEDDINGS, UMT5_BLOCK = 24, 2_100_300_000, 385_900_000
UMT5_FORWARD, UMT5_PROMPT = 126_000_000, 92_500_000
CLIP_BYTES = 1_264_000_000  # the image encoder of image-to-video models, in bfloat16
FORWARD_FIXED = 9_000_000  # rotary tables, embedded prompt, latents


@dataclass(frozen=True)
class VaeCosts:
    """Of a VAE whose first layer has `width` channels: parameters; elements per pixel of the causal cache and of what a
    decoded frame needs; bytes per pixel of the block's frames in float32 and their copies."""

    width: int
    parameters: int
    cache: int
    frame: int
    pixels: int


WAN_VAE = VaeCosts(96, 126_900_000, 2364, 2305, 992)
WAN22_VAE = VaeCosts(160, 704_700_000, 1784, 3592, 206)


@dataclass(frozen=True)
class Phase:
    """A phase of a run and its peak, bytes on the device. parts: what they consist of, by name."""

    name: str
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """Peaks of a run by phase. host: bytes in main memory that offloading needs.

    The last phase, decoding beside denoising, is what a GPU holds: a block is decoded on a stream of its own while the
    next one is computed. The phases before it are those of one operation after another.
    """

    model: PlannedModel
    settings: PlanSettings
    phases: tuple[Phase, ...]
    host: int

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return self.largest.bytes

    @property
    def largest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    def fits(self, vram: int) -> bool:
        """Whether a card with `vram` bytes runs it, with RESERVE to spare."""
        return self.peak + RESERVE <= vram


def memory_plan(model: PlannedModel, settings: PlanSettings) -> MemoryPlan:
    """The plan of a run of `model` with `settings`.

    Raises InputError for pixels that fill no whole tokens, and for a memory that does not hold a block.
    """
    for field, pixels in (("width", settings.width), ("height", settings.height)):
        check_multiple(field, pixels, model.token_pixels)
    (settings.policy or model.spec.policy).check_block(model.spec.frames_per_block)
    always = _resident(model, settings)
    text, umt5 = _text(model, settings)
    if settings.text == "device":
        always["text encoder"] = umt5
    encoding = {k: v for k, v in always.items() if k != "weights" or settings.text != "int8 alone"}
    kept = always | _memory(model, settings)
    cache, frame = _decoder(model, settings)
    kept |= {"decoder's cache": cache} if cache else {}
    denoising, decoding = {"denoising": _forward(model, settings)}, {"decoding": frame} if frame else {}
    phases = [
        Phase("text", encoding | text),
        Phase("denoising", kept | denoising),
        Phase("decoding", kept | decoding),
        Phase("decoding beside denoising", kept | denoising | decoding),
    ]
    return MemoryPlan(model, settings, tuple(phases), _host_bytes(model, settings, umt5))


def weights_bytes(model: PlannedModel, settings: PlanSettings) -> int:
    """Of the transformer, on the device."""
    whole = model.layers * model.block_bytes + model.rest_bytes
    if settings.weights == "float32":
        return 2 * whole
    if settings.weights == "fp8":  # linear layers of the blocks, cast one by one when they are used
        return whole - (BF16 - FP8) * model.layers * model.block_linear + BF16 * model.dim * model.ffn
    if settings.weights == "layers":  # the block that computes, and the next one
        return min(2, model.layers) * model.block_bytes + model.rest_bytes
    return whole


def _resident(model: PlannedModel, settings: PlanSettings) -> dict[str, int]:
    """What is on the device throughout."""
    costs, scale = _vae_costs(model)
    vae = int(costs.parameters * scale**2) * _vae_itemsize(settings)
    parts = {"weights": weights_bytes(model, settings), "VAE": vae}
    if settings.decoder == "taehv":
        parts["TAEHV"] = TAEHV_BYTES
    if model.image_dim:
        parts["image encoder"] = CLIP_BYTES
    return parts


def _text(model: PlannedModel, settings: PlanSettings) -> tuple[dict[str, int], int]:
    """What encoding prompts adds on the device, and the bytes of the text encoder."""
    if not model.umt5 or settings.text == "none":
        return {}, 0
    whole = UMT5_EMBEDDINGS + UMT5_LAYERS * UMT5_BLOCK
    forward = UMT5_FORWARD + UMT5_PROMPT * (settings.clips + settings.guided - 1)
    if settings.text == "cpu":
        return {}, whole
    if settings.text == "int8 alone":
        whole = UMT5_EMBEDDINGS + UMT5_LAYERS * UMT5_BLOCK // 2
    placed = {"device": 0, "layers": UMT5_BLOCK, "visit": whole, "int8 alone": whole}[settings.text]
    return {"text encoder": placed, "encoding": forward} if placed else {"encoding": forward}, whole


def _memory(model: PlannedModel, settings: PlanSettings) -> dict[str, int]:
    """KV memory and the keys and values of prompts."""
    branches = settings.clips * (1 + settings.guided)
    tokens = TEXT_TOKENS + (IMAGE_TOKENS if model.image_dim else 0)
    prompts = branches * model.layers * 2 * tokens * model.dim * _itemsize(settings)
    memory = _memory_bytes(model, settings)
    on_device = bool(memory) and (settings.policy or model.spec.policy).residence == "device"
    return ({"KV memory": memory} if on_device else {}) | {"prompts' keys and values": prompts}


def _memory_bytes(model: PlannedModel, settings: PlanSettings) -> int:
    block = model.spec.frames_per_block
    if not block:  # bidirectional
        return 0
    policy, geometry = (
        settings.policy or model.spec.policy,
        model.geometry(settings.height, settings.width, settings.clips),
    )
    dtype = torch.float32 if settings.weights == "float32" else torch.bfloat16
    frames = settings.frames(model.spec)
    if policy.kind == "far":  # what it is after a block is written beside what it was
        one = estimate_bytes(MemoryPolicy(), geometry, dtype, 1)
        kept = int(one * (_far_frames(policy, frames - block) + _far_frames(policy, frames)))
    else:
        kept = estimate_bytes(policy, geometry, dtype, frames)
    return (1 + settings.guided) * kept


def _far_frames(policy: MemoryPolicy, frames: int) -> float:
    """Frames' worth of keys and values that a `far` memory of `frames` latent frames keeps."""
    near = min(max(frames, 0), FAR_BLOCK * (policy.window or 0))
    return near + max(frames - near, 0) / 4


def _forward(model: PlannedModel, settings: PlanSettings) -> int:
    """What one forward needs while it runs: the feed-forward layer of all its tokens, or attention of one block."""
    policy, clips, item = settings.policy or model.spec.policy, settings.clips, _itemsize(settings)
    frames = settings.frames(model.spec)
    block = model.spec.frames_per_block or frames
    per_frame = model.geometry(settings.height, settings.width, clips).tokens * clips
    forward = per_frame * block * (2 if settings.fuse and policy.fuses else 1)
    if policy.rebuilt:
        forward = max(forward, per_frame * policy.slots(frames))
    if policy.kind == "far":  # earlier blocks are encoded again, one of them in large patches
        forward = int(per_frame * min(block * ((policy.window or 0) + 0.25), frames))
    keys = per_frame * policy.slots(frames) if model.spec.frames_per_block else 0
    read = 2 * item * keys * model.dim  # keys and values of one layer
    attention = 14 * item * per_frame * block * model.dim
    # Read together with the block, outside the buffers.
    if policy.precision != "model" or policy.rebuilt or policy.kind == "far":
        attention += read
    if policy.residence == "cpu":
        attention += 2 * read if policy.precision == "model" else read
    if policy.relative:
        attention += int(2.1 * read)
    feed_forward = int(forward * (2 * item * model.ffn + 7.25 * item * model.dim))
    recorded = feed_forward if settings.compiled else 0  # a CUDA graph keeps memory of its own
    return max(attention, feed_forward) + recorded + FORWARD_FIXED * clips


def _decoder(model: PlannedModel, settings: PlanSettings) -> tuple[int, int]:
    """Bytes that a decoder keeps between blocks, and those that it needs while it decodes."""
    pixels, item, clips = settings.height * settings.width, _vae_itemsize(settings), settings.clips
    vae, scale = _vae_costs(model)
    if settings.decoder == "none":
        return 0, 0
    if settings.decoder == "taehv":
        return clips * TAEHV_CACHE * pixels, clips * TAEHV_FRAME * pixels
    from ..models.streaming_vae import Tiling, spans  # with diffusers, which the nodes load late

    tiling = Tiling()
    latent = model.latent_pixels
    sides = (settings.height, settings.width)
    tiles = [len(spans(n // latent, tiling.size // latent, tiling.overlap // latent)) for n in sides]
    if settings.decoder == "whole" or tiles == [1, 1]:
        return int(clips * vae.cache * scale * item * pixels), int(
            clips * (vae.frame * scale * item + vae.pixels) * pixels
        )
    tile = min(settings.height, tiling.size) * min(settings.width, tiling.size)
    work = (vae.cache + vae.frame) * scale * item + vae.pixels
    return 0, int(clips * (work * tile + TILED_PIXELS * pixels))


def _host_bytes(model: PlannedModel, settings: PlanSettings, umt5: int) -> int:
    """Bytes that stay in main memory beside what the device holds."""
    host = umt5 if settings.text not in ("device", "none") else 0
    if settings.weights == "layers":
        host += model.layers * model.block_bytes
    if settings.text == "int8 alone":
        host += weights_bytes(model, settings)
    if (settings.policy or model.spec.policy).residence == "cpu":
        host += _memory_bytes(model, settings)
    return host


def _vae_costs(model: PlannedModel) -> tuple[VaeCosts, float]:
    """Those of the model's kind of VAE, and the width of its own over theirs."""
    costs = WAN22_VAE if model.has_wan22_latents else WAN_VAE
    return costs, (model.vae_width or costs.width) / costs.width


def _itemsize(settings: PlanSettings) -> int:
    return FP32 if settings.weights == "float32" else BF16


def _vae_itemsize(settings: PlanSettings) -> int:
    return FP32 if settings.vae == "float32" else BF16
