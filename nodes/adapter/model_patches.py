"""What other nodes have patched on a MODEL: what a rollout honours as it is, and what it refuses by the node's name.

ComfyUI keeps patches in `model_options`. A rollout calls the MODEL through ComfyUI's own functions, so most of them
work block by block: wrappers, guidance functions (`core_guidance`), patches that Wan's layers read, weight and object
patches. This module names the others before the first model call, so that none is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...salt.errors import InputError
from .method_patch import unwrap_compiled
from .model_sampling import sampling_problem
from .patch_names import node_ids, patch_name, words_of

if TYPE_CHECKING:
    from comfy.ldm.wan.model import WanModel
    from comfy.model_patcher import ModelPatcher

# Functions of ComfyUI's sampling that `core_guidance` calls, one or a list, and the function around a model call.
SAMPLER_FUNCTIONS = (
    "sampler_cfg_function",
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
)
HONOURED = (*SAMPLER_FUNCTIONS, "model_function_wrapper")
# Nodes of core for one other model each. Their functions find nothing on Wan 2.1, or fail on it.
OTHER_MODELS = {
    "ChromaRadianceOptions": "Chroma Radiance",
    "HiDreamO1PatchSeamSmoothing": "HiDream-O1",
    "LTXVModalityGuidance": "LTX-Video",
    "LTXVReferenceAudio": "LTX-Video",
    "LTXVSpatioTemporalGuidance": "LTX-Video",
    "RenormCFG": "Lumina 2",
    "TripoSplatSamplingPreview": "TripoSplat",
}
# A refused patch: the name of its node, and the rest of a sentence about it.
Problem = tuple[str, str]

UNREAD = "patches {what}, which Wan 2.1 in this ComfyUI does not read"


def sampler_functions(options: dict[str, Any]) -> list[object]:
    """The functions of `model_options` that take part in guidance."""
    found: list[object] = []
    for key in SAMPLER_FUNCTIONS:
        value = options.get(key)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return found


def wrappers_of(options: dict[str, Any], *kinds: str) -> list[object]:
    """The wrappers in `model_options`; with `kinds` (`predict_noise`, `calc_cond_batch`, ...), of those only."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    return [wrapper for kind in (kinds or wrappers) for keyed in wrappers.get(kind, {}).values() for wrapper in keyed]


def names_of(functions: list[object]) -> str:
    """The nodes that have made some functions, each once."""
    return ", ".join(dict.fromkeys(patch_name(function) for function in functions))


def check_model(model: ModelPatcher, wan: WanModel) -> None:
    """Raise InputError, naming the nodes, for patches of a MODEL that have no meaning in a rollout with a memory."""
    problem = sampling_problem(model)
    check_options(model.model_options, wan, [] if problem is None else [problem])


def check_options(options: dict[str, Any], wan: WanModel, problems: list[Problem] | None = None) -> None:
    """`check_model` for `model_options` as a sampler has them, with what hooks have added."""
    found = dict(reversed([*(problems or []), *option_problems(options), *transformer_problems(options, wan)]))
    if found:
        (name, reason), *others = reversed(found.items())
        more = f"; also refused: {', '.join(other for other, _ in others)}" if others else ""
        raise InputError("model", f"has a patch by {name} that a Salt rollout cannot use: it {reason}{more}"[:380])


def option_problems(options: dict[str, Any]) -> Iterator[Problem]:
    """Of functions and settings beside `transformer_options`."""
    handler, mask = options.get("context_handler"), options.get("denoise_mask_function")
    if handler is not None:
        yield patch_name(handler), "cuts a whole clip into windows, and a rollout samples block by block"
    if mask is not None:
        yield patch_name(mask), "works on a noise mask, and a rollout generates whole blocks"
    if options.get("multigpu_clones"):
        yield "MultiGPU_WorkUnits", "splits a step over several devices, and the memory lies on one"
    for function in sampler_functions(options):
        words = words_of(function)
        if words & {"encode_model_conds", "process_conds"}:
            yield patch_name(function), "guides by a conditioning of its own, for which there is no memory"
        if "set_model_options_patch_replace" in words and words & {"attn1", "attn2"}:
            yield patch_name(function), UNREAD.format(what="attention")
    for function in [*sampler_functions(options), options.get("model_function_wrapper"), *wrappers_of(options)]:
        for name in node_ids(function):
            if name in OTHER_MODELS:
                yield patch_name(function), f"is for {OTHER_MODELS[name]}, and finds nothing on Wan 2.1"
    for key, value in options.items():
        functions = value if isinstance(value, list) else [value]
        known = key in (*HONOURED, "denoise_mask_function")
        for function in functions:
            if callable(function) and not isinstance(function, type) and not known:
                yield patch_name(function), f"is set as {key}, which Salt does not know"


def transformer_problems(options: dict[str, Any], wan: WanModel) -> Iterator[Problem]:
    """Of `transformer_options`, which the transformer and its wrappers read."""
    transformer = options.get("transformer_options", {})
    cache = transformer.get("easycache")
    if cache is not None:
        yield cache.name, "reuses the results of earlier steps, and a rollout has few steps per block, each needed"
    rope = transformer.get("rope_options") or {}
    if any(value != (1.0 if name.startswith("scale") else 0.0) for name, value in rope.items()):
        yield "ScaleROPE", "moves positions, and the memory's are those that the student was trained with"
    if "audio_embeds" in transformer:
        yield "WanInfiniteTalkToVideo", "adds speech for a whole clip, and a rollout samples block by block"
    of_model, of_block = words_of(type(wan).forward_orig), words_of(type(unwrap_compiled(wan.blocks[0])).forward)
    read = of_block | (of_model if "patches" in of_model else set())
    for kind, functions in transformer.get("patches", {}).items():
        for function in functions:
            if kind == "attn1_patch":
                yield patch_name(function), "patches self-attention (attn1), whose place the memory takes"
            elif hasattr(function, "models"):  # as core asks for the models that a patch runs beside this one
                yield patch_name(function), "adds a control net for a whole clip, and a rollout samples block by block"
            elif kind not in read:
                yield patch_name(function), UNREAD.format(what=kind)
    for group, replacements in transformer.get("patches_replace", {}).items():
        for key, function in replacements.items():
            block, layer = (*key, 0)[:2] if isinstance(key, tuple) else (key, 0)
            if group != "dit" or block not in of_model or layer >= len(wan.blocks):
                where = " ".join(str(part) for part in (key if isinstance(key, tuple) else (key,)))
                yield patch_name(function), UNREAD.format(what=f"{group} {where}")
