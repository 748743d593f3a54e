"""Host 1: a stock ComfyUI MODEL (any Wan 2.1, from any loader) as the engine's model callable, and its memory.

The path is core's own: conditioning, hooks, image channels, dtype casts, sigma and timestep conversion happen in
`calc_cond_batch` as in every other sampler. Only two things are changed, for the length of a call: self-attention goes
through the memory (`attention_patch`), and frames that are at different noise levels get a timestep each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...salt.memory import KVMemory, MemoryGeometry, MemoryPolicy
from ...salt.model_input import ModelInput
from ...salt.schedule import NUM_TRAIN_TIMESTEPS
from .cross_attention_cache import CrossAttentionCaches, keeping
from .fingerprint import fingerprint
from .self_attention_patch import remembering, warn_of_replaced_attention

WAN_CLASSES = ("WanModel", "CausalWanModel")
LATENT_CHANNELS = 16
Conds = list[dict[str, Any]]


def wan_of(model: Any) -> Any:
    """The WanModel inside a MODEL. Raises ValueError naming what was found if it is no Wan 2.1 T2V or I2V."""
    wan = uncompiled(model.model.diffusion_model)
    found = type(wan).__name__
    if found not in WAN_CLASSES or wan.out_dim != LATENT_CHANNELS:
        channels = f" with {wan.out_dim} latent channels" if found in WAN_CLASSES else ""
        raise ValueError(
            f"MODEL: found {type(model.model).__name__} ({found}{channels}), expected a Wan 2.1 text-to-video or "
            "image-to-video model"
        )
    return wan


def uncompiled(module: Any) -> Any:
    """What torch.compile's wrapper holds. The wrapper passes new attributes on to it, but their removal it does not."""
    return getattr(module, "_orig_mod", module)


def compute_dtype(model: Any) -> torch.dtype:
    """What the MODEL computes in, whatever its weights are stored in (fp8, GGUF): the dtype of its keys and values."""
    patched = model.object_patches.get("manual_cast_dtype")
    return patched or model.model.manual_cast_dtype or model.model.get_dtype()


def memory_geometry(model: Any, batch: int, height: int, width: int) -> MemoryGeometry:
    """Geometry of a memory of this MODEL for latents of height x width.

    Raises ValueError if the patch does not divide them.
    """
    wan = wan_of(model)
    _, p_h, p_w = wan.patch_size
    if height % p_h or width % p_w:
        raise ValueError(f"latent size: found {height}x{width}, expected multiples of the patch {p_h}x{p_w}")
    return MemoryGeometry(len(wan.blocks), wan.num_heads, wan.dim // wan.num_heads, height // p_h, width // p_w, batch)


def new_memory(
    model: Any, policy: MemoryPolicy, batch: int, height: int, width: int, frames: int | None = None
) -> KVMemory:
    """An empty memory for this MODEL and latents [batch, 16, F, height, width], on the device that the MODEL runs on.

    frames sizes a full memory at once. No tensor is allocated before the first use.
    """
    geometry = memory_geometry(model, batch, height, width)
    return KVMemory(policy, geometry, compute_dtype(model), model.load_device, frames, fingerprint(model))


class ComfyModel:
    """A `salt.model_input.FlowModel`: flow [B, C, F, H, W] of a block, from a loaded MODEL and processed conds.

    Made inside a sampler, where core has loaded the MODEL and processed the conditioning for the whole clip.
    base: the loaded BaseModel (a guider's `inner_model`). model_options: the sampler's, hooks and patches included.
    first_frame: latent frame of the clip at which the conditioning's own frames (I2V channels) begin.
    A conditioning is a list of processed conds as `guider.conds` holds them; exactly one may be active in a call. The
    engine's guidance calls once per branch, so every branch writes its own memory.
    """

    def __init__(self, base: Any, model_options: dict[str, Any], first_frame: int = 0) -> None:
        self.base, self.model_options, self.first_frame = base, model_options, first_frame
        self.wan = uncompiled(base.diffusion_model)
        self.contexts = CrossAttentionCaches()
        warn_of_replaced_attention(self.wan)

    def __call__(self, inputs: ModelInput[Conds], /) -> Tensor:
        """Flow of a block with a timestep per frame, [B, F].

        The flow of a pass at timestep 0 comes back as zeros: nothing reads it.
        Errors: core's InterruptProcessingException when the user has cancelled; ValueError for an input that does not
        fit the memory, conditioning that does not reach this far, and whatever keeps a layer from the memory.
        """
        import comfy.model_management
        import comfy.samplers

        x, memory = inputs.x, inputs.memory
        if memory is None:
            raise ValueError("memory: found none, expected the pass of a KV-cache memory")
        # Cores before 0.8 look for Cancel nowhere in a model call, and compiled code does not on any.
        comfy.model_management.throw_exception_if_processing_interrupted()
        _, p_h, p_w = self.wan.patch_size
        memory.check(x.shape[0], x.shape[2], x.shape[3] // p_h, x.shape[4] // p_w)
        conds = conds_of_frames(inputs.conditioning, memory.start_frame - self.first_frame, x.shape[2])
        # Core knows one sigma per clip: the noisiest frame's. It divides out below, so the others lose nothing.
        sigma_BF = inputs.timestep.to(torch.float32) / NUM_TRAIN_TIMESTEPS
        sigma = sigma_BF.amax(dim=1)
        blocks = len(memory.segments)
        conds = self.contexts.prepared(conds, x, self.base.manual_cast_dtype or self.base.get_dtype())
        timesteps = timestep_per_frame(self.base, sigma_BF if blocks > 1 else sigma_BF[:, :1])
        with remembering(self.wan, memory), keeping(self.wan, self.contexts), timesteps:
            (denoised,) = comfy.samplers.calc_cond_batch(self.base, [conds], x, sigma, self.model_options)
        # Through x0 rather than the raw output, so that the MODEL's sampling class is honoured.
        sigma = sigma.to(x.dtype).view(-1, 1, 1, 1, 1)
        return (x - denoised) / sigma.clamp_min(torch.finfo(x.dtype).tiny)


@contextmanager
def timestep_per_frame(base: Any, sigma_BF: Tensor) -> Iterator[None]:
    """While open, the transformer reads a timestep for every frame, or one per clip where sigma is [B, 1]."""
    timesteps = base.model_sampling.timestep(sigma_BF).float()
    base.process_timestep = lambda timestep, **_: timesteps
    try:
        yield
    finally:
        del base.process_timestep


def conds_of_frames(conds: Conds, start: int, frames: int) -> Conds:
    """The conditioning of latent frames start to start + frames: channels beside the noise (I2V) are cut to them.

    Raises ValueError where they do not reach that far.
    """
    cut = []
    for cond in conds:
        channels = cond["model_conds"].get("c_concat")
        if channels is not None:
            have = channels.cond.shape[2]
            if start < 0 or start + frames > have:
                raise ValueError(
                    f"image conditioning: found {have} latent frames, expected it to cover {start} to {start + frames}"
                )
            here = type(channels)(channels.cond[:, :, start : start + frames])
            cond = {**cond, "model_conds": {**cond["model_conds"], "c_concat": here}}
        cut.append(cond)
    return cut
