"""Host 1: the engine's loop inside core's sampling: a SAMPLER that is any function, and a run of one without a graph.

Core loads the MODEL, sets up hooks and wrappers, processes the conditioning, and cleans up, cancelled or not; between
these it hands over to `work`, which is where `salt.rollout` is played.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .comfy_model import ComfyModel, Conds, wan_of

RESERVE_KEY = "salt_memory"


@dataclass(frozen=True)
class Sampling:
    """What core hands to a sampler, in the engine's words.

    model: the engine's model callable. conds: processed conditioning by name (`positive`, `negative`, or whatever
    `sample` was given), each ready to be the engine's conditioning. cfg: the guider's, 1 where it has none.
    noise [B, C, F, H, W] and latents (None, or as noise, in the model's normalised space) lie on the MODEL's device;
    sigmas [N + 1] end with 0. mask: a noise mask, if the graph has set one. patcher: the loaded ModelPatcher.
    callback: core's (step, denoised, x, steps) for progress and previews, or None.
    """

    model: ComfyModel
    conds: dict[str, Conds]
    cfg: float
    noise: Tensor
    latents: Tensor | None
    sigmas: Tensor
    mask: Tensor | None
    patcher: Any
    callback: Callable[..., None] | None
    seed: int | None


Work = Callable[[Sampling], Tensor]


def sampler(work: Work) -> Any:
    """A SAMPLER for core's custom sampling whose whole job is `work`: Sampling -> latents, in the model's space.

    Using it raises ValueError where the guider's MODEL is no Wan 2.1, or a guider is not one of core's kind.
    """
    import comfy.samplers

    class SaltSampler(comfy.samplers.Sampler):
        def sample(  # core calls it with these, in this order
            self,
            model_wrap: Any,
            sigmas: Tensor,
            extra_args: dict,
            callback: Any,
            noise: Tensor,
            latent_image: Tensor | None = None,
            denoise_mask: Tensor | None = None,
            disable_pbar: bool = False,
        ) -> Tensor:
            if not hasattr(model_wrap, "conds"):
                raise ValueError(f"GUIDER: found {type(model_wrap).__name__}, expected one of core's kind (with conds)")
            wan_of(model_wrap.model_patcher)
            return work(
                Sampling(
                    ComfyModel(model_wrap.inner_model, extra_args.get("model_options", {})),
                    model_wrap.conds,
                    getattr(model_wrap, "cfg", 1.0),
                    noise,
                    latent_image,
                    sigmas,
                    denoise_mask,
                    model_wrap.model_patcher,
                    callback,
                    extra_args.get("seed"),
                )
            )

    return SaltSampler()


def sample(
    model: Any,
    conds: dict[str, Any],
    noise: Tensor,
    sigmas: Tensor,
    work: Work,
    *,
    latents: Tensor | None = None,
    cfg: float = 1.0,
    seed: int | None = None,
    reserve: tuple[int, int] | None = None,
) -> Tensor:
    """Run `work` inside core's sampling of MODEL, without a graph's sampler node; latents as a LATENT holds them.

    conds: CONDITIONING by name, as many as wanted (a prompt schedule has one per prompt). noise: [B, 16, F, H, W] of
    the whole clip (its shape is what image conditioning is fitted to). latents: a LATENT's samples of the same shape.
    reserve: (bytes of KV memory, latent frames in one model call), so that core makes the right room.
    """
    import comfy.samplers

    wan_of(model)
    if reserve is not None:
        model = reserving(model, *reserve)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conds)
    guider.set_cfg(cfg)
    image = torch.zeros_like(noise) if latents is None else latents
    return guider.sample(noise, image, sampler(work), sigmas, seed=seed)


def reserving(model: Any, memory_bytes: int, frames: int) -> Any:
    """A clone of MODEL that asks core for room for one call of `frames` latent frames and `memory_bytes` of KV memory.

    Core would reserve for the whole clip in one call, which a rollout never makes, and knows nothing of the memory.
    """
    import comfy.patcher_extension

    def prepare(executor: Any, patcher: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        base = patcher.model
        required = base.memory_required
        base.memory_required = lambda *a, **k: required(*a, **k) + memory_bytes
        try:
            return executor(patcher, [*noise_shape[:2], min(frames, noise_shape[2]), *noise_shape[3:]], *args, **kwargs)
        finally:
            del base.memory_required

    clone = model.clone()
    wrapper_type = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    clone.remove_wrappers_with_key(wrapper_type, RESERVE_KEY)
    clone.add_wrapper_with_key(wrapper_type, RESERVE_KEY, prepare)
    return clone
