"""What a CONDITIONING may hold beside its text: checked as ComfyUI has processed it, before the first model call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...salt.errors import InputError
from .comfy_model import Conds

if TYPE_CHECKING:
    from comfy.ldm.wan.model import WanModel

# Of an entry, and of what ComfyUI has made of it for the model.
REGIONAL = {"area": "an area", "mask": "a mask", "default": "a default for the rest of other areas", "gligen": "GLIGEN"}
AROUND = {
    "time_dim_concat": "latents before or behind the clip",
    "reference_latent": "a reference latent",
    "context_latents": "reference latents",
}


def check_conditioning(given: Mapping[str, Conds], conds: Mapping[str, Conds], sigmas: Tensor, wan: WanModel) -> None:
    """Raise InputError naming the socket, and what was found, for conditioning that a rollout does not support.

    given: as connected, before ComfyUI has processed it (which copies an area to the other conditionings); conds: the
    same after it. sigmas: of the steps [N + 1]; the context pass has the last one, 0.
    """
    for name, entries in [*given.items(), *conds.items()]:
        for entry in entries:
            problem = problem_of(entry, wan)
            if problem is not None:
                raise InputError(socket_of(name), problem)
    for name, entries in conds.items():
        for sigma in sigmas.tolist():
            active = sum(is_active(entry, sigma) for entry in entries)
            if active != 1:
                raise InputError(
                    socket_of(name),
                    f"found {active} prompts in effect at sigma {sigma:.3f}, expected 1 at every step and at 0: "
                    "combined prompts, and prompts that are off at some steps, do not go with a KV-cache memory",
                )


def socket_of(name: str) -> str:
    """The socket of a conditioning; a rollout numbers its prompts."""
    return "negative" if name == "negative" else "positive"


def is_active(entry: dict[str, Any], sigma: float) -> bool:
    """Whether ComfyUI uses an entry at this sigma."""
    return entry.get("timestep_end", 0.0) <= sigma <= entry.get("timestep_start", sigma)


def problem_of(entry: dict[str, Any], wan: WanModel) -> str | None:
    """The sentence on what cannot be, without its first word; None where all is well."""
    processed = entry.get("model_conds", {})  # empty in an entry as connected
    unsupported = [what for key, what in REGIONAL.items() if key in entry]
    unsupported += [what for key, what in AROUND.items() if key in processed]
    unsupported += ["a ControlNet"] * (entry.get("control") is not None)
    if unsupported:
        return f"has {', '.join(unsupported)}, which is not supported with a KV-cache memory"
    if processed and entry.get("concat_latent_image") is not None and "c_concat" not in processed:
        return "has image latents (WanImageToVideo), which a text-to-video model does not read; use start_image"
    if "clip_fea" in processed and wan.img_emb is None:
        return "has a CLIP vision output, which this model does not read"
    if "c_crossattn" in processed and (width := processed["c_crossattn"].cond.shape[-1]) != wan.text_dim:
        own = "Load CLIP with umt5_xxl, type wan; for Salt Tiny its own CLIP"
        return f"has a text of width {width}, as another text encoder makes it, expected {wan.text_dim} ({own})"
    for hook in getattr(entry.get("hooks"), "hooks", []):
        if len(getattr(getattr(hook, "hook_keyframe", None), "keyframes", [])) > 1:
            return "has a hook with keyframes, which would change during the first block only"
    return None
