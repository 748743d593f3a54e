"""The engine's loop inside ComfyUI's sampling: a SAMPLER that is any function, and a run of it without a sampler node.

ComfyUI loads the MODEL, sets up hooks and wrappers, processes the conditioning, and cleans up, cancelled or not. In
between it calls the function, which is where `salt.rollout` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.model_input import Guide
from ..io_types import Conditioning
from .comfy_model import ComfyModel, Conds, wan_model
from .conditioning_checks import check_conditioning
from .core_guidance import GuiderGuide, needs_guider
from .model_patches import check_model, check_options, names_of, wrappers_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider, Sampler

WRAPPER_KEY = "salt_memory"
T = TypeVar("T")


@dataclass(frozen=True)
class SamplerInputs:
    """What ComfyUI passes to a sampler, in the engine's terms.

    model: the engine's model callable. conds: processed conditioning by name (`positive`, `negative`, or the names that
    `sample` was called with), each ready to be the engine's conditioning. cfg: the guider's, 1 where it has none.
    noise [B, C, F, H, W] lies on the MODEL's device; sigmas [N + 1] end with 0. latent: of the noise's shape, in the
    model's space; None or zeros where the graph's is empty. mask: a noise mask, if the graph has set one. patcher: the
    loaded ModelPatcher. seed: None where the guider was called without one.
    guider: ComfyUI's, ready to be called. guide: for `rollout`, where nodes take part in guidance.
    """

    model: ComfyModel
    conds: dict[str, Conds]
    cfg: float
    noise: Tensor
    sigmas: Tensor
    latent: Tensor | None
    mask: Tensor | None
    patcher: ModelPatcher
    seed: int | None
    guider: CFGGuider
    guide: Guide[Conds] | None


@dataclass(frozen=True)
class SamplerOutput(Generic[T]):
    """latents [B, C, F, H, W], and whatever else a run results in."""

    latents: Tensor
    extra: T


def new_sampler(run: Callable[[SamplerInputs], Tensor], causal: bool = True) -> Sampler:
    """A SAMPLER for ComfyUI's custom sampling whose whole work is `run`, which returns latents in the model's space.

    causal: `run` calls the MODEL block by block, with a memory. Sampling raises InputError where the guider's MODEL is
    no Wan 2.1, or a guider is not of ComfyUI's kind; and, if causal, for patches and conditioning that a memory cannot
    follow.
    """
    import comfy.samplers

    class SaltSampler(comfy.samplers.Sampler):
        def sample(  # ComfyUI calls it with these, in this order
            self,
            model_wrap: CFGGuider,
            sigmas: Tensor,
            extra_args: dict[str, Any],
            callback: object,
            noise: Tensor,
            latent_image: Tensor | None = None,
            denoise_mask: Tensor | None = None,
            disable_pbar: bool = False,
        ) -> Tensor:
            if not hasattr(model_wrap, "conds"):
                raise InputError(
                    "guider", f"found {type(model_wrap).__name__}, expected one with conds, as ComfyUI's own have"
                )
            wan, options = wan_model(model_wrap.model_patcher), extra_args.get("model_options", {})
            seed = extra_args.get("seed")
            if causal:
                check_options(options, wan)
                given = getattr(model_wrap, "original_conds", model_wrap.conds)
                check_conditioning(given, model_wrap.conds, sigmas, wan)
            model = ComfyModel(model_wrap.inner_model, options)
            return run(
                SamplerInputs(
                    model,
                    model_wrap.conds,
                    getattr(model_wrap, "cfg", 1.0),
                    noise,
                    sigmas,
                    latent_image,
                    denoise_mask,
                    model_wrap.model_patcher,
                    seed,
                    model_wrap,
                    GuiderGuide(model_wrap, model, seed) if needs_guider(options, model_wrap) else None,
                )
            )

    return SaltSampler()


def sample(
    model: ModelPatcher,
    conds: Mapping[str, Conditioning],
    noise: Tensor,
    sigmas: Tensor,
    run: Callable[[SamplerInputs], SamplerOutput[T]],
    *,
    seed: int | None = None,
    reserve: tuple[int, int] | None = None,
    cfg: float = 1.0,
) -> SamplerOutput[T]:
    """Call `run` inside ComfyUI's sampling of MODEL, without a sampler node.

    `run` returns latents in the model's space; those of the result are as a LATENT holds them.

    conds: CONDITIONING by name, as many as wanted (a prompt schedule has one per prompt). noise: [B, C, F, H, W] of
    the whole clip (its shape is what image conditioning is fitted to).
    reserve: (bytes of KV memory, latent frames in one model call), so that ComfyUI frees as much memory as is needed;
    None for a whole clip in one call, without a memory. cfg: the guidance, as nodes that take part in it see it.
    """
    import comfy.samplers

    wan, causal = wan_model(model), reserve is not None
    if causal:
        check_model(model, wan)
    if reserve is not None:
        model = with_reservation(model, *reserve)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conds)
    guider.set_cfg(cfg)
    extras: list[T] = []

    def run_once(inputs: SamplerInputs) -> Tensor:
        if inputs.noise.any() or not torch.equal(inputs.sigmas.cpu(), sigmas):
            names = names_of(wrappers_of(inputs.model.model_options, "outer_sample", "sampler_sample"))
            raise InputError("model", f"has a patch by {names} that changes noise or sigmas of a Salt rollout")
        output = run(inputs)
        extras.append(output.extra)  # ComfyUI hands back nothing but the latents
        return output.latents

    latents = guider.sample(noise, torch.zeros_like(noise), new_sampler(run_once, causal), sigmas, seed=seed)
    return SamplerOutput(latents, extras[0])


def with_reservation(model: ModelPatcher, memory_bytes: int, frames: int) -> ModelPatcher:
    """A clone of MODEL for which ComfyUI frees room for one call of `frames` latent frames and `memory_bytes`.

    ComfyUI would reserve for the whole clip in one call, which a rollout never makes, and knows nothing of the memory.
    """
    import comfy.patcher_extension

    def prepare(
        executor: Callable[..., T], patcher: ModelPatcher, noise_shape: list[int], *args: object, **kwargs: object
    ) -> T:
        base = patcher.model
        required = base.memory_required
        base.memory_required = lambda *a, **k: required(*a, **k) + memory_bytes
        try:
            return executor(patcher, [*noise_shape[:2], min(frames, noise_shape[2]), *noise_shape[3:]], *args, **kwargs)
        finally:
            del base.memory_required

    clone = model.clone()
    wrapper_type = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    clone.remove_wrappers_with_key(wrapper_type, WRAPPER_KEY)
    clone.add_wrapper_with_key(wrapper_type, WRAPPER_KEY, prepare)
    return clone
