"""A stock ComfyUI MODEL (any Wan 2.1, from any loader) as the engine's `FlowModel`, and an empty memory for it.

A call goes through ComfyUI's own `calc_cond_batch`, as in every other sampler: conditioning, hooks, image channels,
dtype casts, sigma and timestep conversion are ComfyUI's. Only two things are changed, for the length of a call:
self-attention goes through the memory (`self_attention_patch`), and frames at different noise levels get a timestep
each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.io.pixel_sizes import check_multiple
from ...salt.memory import KVMemory, MemoryGeometry, MemoryPolicy
from ...salt.model_input import ModelInput
from ...salt.schedule import NUM_TRAIN_TIMESTEPS
from .clip_size import PATCH, PIXELS_PER_LATENT, frame_count
from .core_versions import without_cuda_graphs
from .cross_attention_cache import PromptCaches, cached_cross_attention
from .fingerprint import fingerprint
from .method_patch import unwrap_compiled
from .self_attention_patch import MemoryAttention, memory_attention, warn_of_replaced_attention

if TYPE_CHECKING:
    from comfy.ldm.wan.model import WanModel
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

WAN_CLASSES = ("WanModel", "CausalWanModel")
# A CONDITIONING as ComfyUI has processed it for a model: a dict for every entry.
Conds = list[dict[str, Any]]


def wan_model(model: ModelPatcher) -> WanModel:
    """The WanModel inside a MODEL. Raises InputError naming what was found if it is no Wan 2.1 T2V or I2V, nor Wan 2.2
    TI2V."""
    wan = unwrap_compiled(model.model.diffusion_model)
    found = type(wan).__name__
    if found not in WAN_CLASSES or wan.out_dim not in PIXELS_PER_LATENT:
        channels = f" with {wan.out_dim} latent channels" if found in WAN_CLASSES else ""
        raise InputError(
            "model",
            f"found {type(model.model).__name__} ({found}{channels}), expected a Wan 2.1 text-to-video or "
            "image-to-video model, or Wan 2.2 TI2V",
        )
    return wan


def latent_channels(model: ModelPatcher) -> int:
    return wan_model(model).out_dim


def pixels_per_latent(model: ModelPatcher) -> int:
    """Rows, and columns, of pixels that a latent has."""
    return PIXELS_PER_LATENT[latent_channels(model)]


def pixels_per_token(model: ModelPatcher) -> int:
    """Rows, and columns, of pixels that a token of the transformer has."""
    return PATCH * pixels_per_latent(model)


def takes_image_channels(model: ModelPatcher) -> bool:
    """Whether a MODEL takes channels beside the noise, as image-to-video ones do."""
    return wan_model(model).in_dim > latent_channels(model)


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """The dtype a MODEL computes in, and of its keys and values, whatever its weights are stored in (fp8, GGUF)."""
    patched = model.object_patches.get("manual_cast_dtype")
    return patched or model.model.manual_cast_dtype or model.model.get_dtype()


def memory_geometry(model: ModelPatcher, batch: int, height: int, width: int) -> MemoryGeometry:
    """Geometry of a memory of this MODEL for latents of height x width.

    Raises InputError if they are no multiples of the model's patch.
    """
    wan, pixels = wan_model(model), pixels_per_latent(model)
    _, p_h, p_w = wan.patch_size
    for name, size, patch in (("width", width, p_w), ("height", height, p_h)):
        check_multiple(name, size * pixels, patch * pixels)
    return MemoryGeometry(len(wan.blocks), wan.num_heads, wan.dim // wan.num_heads, height // p_h, width // p_w, batch)


def new_memory(
    model: ModelPatcher, policy: MemoryPolicy, batch: int, height: int, width: int, frames: int | None = None
) -> KVMemory:
    """An empty memory for this MODEL and latents [batch, C, F, height, width], on the device that the MODEL runs on.

    frames: size of a full memory, in latent frames, where it is known. Nothing is allocated before the first use.
    """
    geometry = memory_geometry(model, batch, height, width)
    return KVMemory(policy, geometry, compute_dtype(model), model.load_device, frames, fingerprint(model))


LEAST_SIGMA = 1e-3  # that ComfyUI is given for a denoising step at timestep 0 (Krea), whose flow it would lose


class ComfyModel:
    """A `salt.model_input.FlowModel`: flow [B, C, F, H, W] of a block, from a loaded MODEL and processed conditioning.

    It is created inside a sampler, where ComfyUI has loaded the MODEL and processed the conditioning for the whole
    clip.
    base: the loaded BaseModel (a guider's `inner_model`). model_options: the sampler's, hooks and patches included.
    first_frame: latent frame of the clip at which the conditioning's own frames (I2V channels) start.
    A conditioning is a list of processed entries as `guider.conds` holds them; exactly one may be active in a call.
    The engine's guidance makes one call per branch, so every branch writes its own memory.
    """

    def __init__(self, base: BaseModel, model_options: dict[str, Any], first_frame: int = 0) -> None:
        self.base, self.model_options, self.first_frame = base, model_options, first_frame
        self.wan = unwrap_compiled(base.diffusion_model)
        self.prompt_caches = PromptCaches()
        warn_of_replaced_attention(self.wan)

    def __call__(self, inputs: ModelInput[Conds], /) -> Tensor:
        """Flow of a block with a timestep per frame, [B, F].

        The flow of a context pass at timestep 0 is zeros: nothing reads it.
        Errors: ComfyUI's InterruptProcessingException when the user has cancelled; ValueError for an input that does
        not fit the memory, for conditioning that ends before this block does, and for whatever keeps a layer from the
        memory.
        """
        import comfy.samplers

        x, conds = inputs.x, self.conds_of(inputs)
        # ComfyUI has one sigma per clip: the noisiest frame's. It is divided out below, so the others lose nothing.
        sigma_BF = inputs.timestep.to(torch.float32) / NUM_TRAIN_TIMESTEPS
        sigma = sigma_BF.amax(dim=1)
        if inputs.memory is not None and not inputs.memory.segments[-1].writes:
            sigma = sigma.clamp_min(LEAST_SIGMA)
        with self.attending(inputs, x, sigma_BF) as attention:
            (denoised,) = comfy.samplers.calc_cond_batch(self.base, [conds], x, sigma, self.model_options)
        attention.check_complete(len(self.wan.blocks))
        return flow_to(denoised, x, sigma)

    def conds_of(self, inputs: ModelInput[Conds]) -> Conds:
        """The conditioning of a call, cut to its frames, as ComfyUI takes it."""
        conds = conds_of_frames(inputs.conditioning, inputs.start_frame - self.first_frame, inputs.x.shape[2])
        return self.prompt_caches.prepared(conds, inputs.x, self.base.manual_cast_dtype or self.base.get_dtype())

    @contextmanager
    def attending(self, inputs: ModelInput[Conds], x: Tensor, sigma_BF: Tensor) -> Iterator[MemoryAttention]:
        """While open, a call of the MODEL with latents x goes through the memory of `inputs`."""
        import comfy.model_management

        memory = inputs.memory
        if memory is None:
            raise InputError("memory", "is needed by a model that generates block by block")
        # ComfyUI before 0.8 looks for Cancel nowhere in a model call, and compiled code does not in any version.
        comfy.model_management.throw_exception_if_processing_interrupted()
        _, p_h, p_w = self.wan.patch_size
        memory.check(x.shape[0], x.shape[2], x.shape[3] // p_h, x.shape[4] // p_w)
        per_frame = len(memory.segments) > 1 or inputs.per_frame
        timesteps = timestep_per_frame(self.base, sigma_BF if per_frame else sigma_BF[:, :1])
        caches = cached_cross_attention(self.wan, self.prompt_caches)
        with memory_attention(self.wan, memory) as attention, caches, timesteps, without_cuda_graphs():
            yield attention


def flow_to(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The flow at x [B, C, F, H, W] and sigma [B] that leads to `denoised`; zeros at sigma 0.

    Through x0 rather than the raw output, so that the MODEL's sampling class is honoured.
    """
    sigma = sigma.to(x.dtype).view(-1, 1, 1, 1, 1)
    return (x - denoised) / sigma.clamp_min(torch.finfo(x.dtype).tiny)


@contextmanager
def timestep_per_frame(base: BaseModel, sigma_BF: Tensor) -> Iterator[None]:
    """While open, the transformer gets a timestep for every frame, or one per clip where sigma is [B, 1]."""
    timesteps = base.model_sampling.timestep(sigma_BF).float()
    base.process_timestep = lambda timestep, **_: timesteps
    try:
        yield
    finally:
        del base.process_timestep


def conds_of_frames(conds: Conds, start: int, frames: int) -> Conds:
    """The conditioning of latent frames start to start + frames: channels beside the noise (I2V) are cut to them.

    Raises InputError where they end before that.
    """
    cut = []
    for cond in conds:
        channels = cond["model_conds"].get("c_concat")
        if channels is not None:
            have = channels.cond.shape[2]
            if start < 0 or start + frames > have:
                needed = f"the clip needs {frame_count(start + frames)}"
                raise InputError("positive", f"has image conditioning for {frame_count(have)} frames, and {needed}")
            here = type(channels)(channels.cond[:, :, start : start + frames])
            cond = {**cond, "model_conds": {**cond["model_conds"], "c_concat": here}}
        cut.append(cond)
    return cut
