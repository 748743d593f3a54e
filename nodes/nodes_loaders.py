"""Host 1: *Load Salt Student*. Any student file becomes a native MODEL that remembers what it was trained for."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from .adapter.student_spec import with_spec
from .io_types import ADVANCED, schema

log = logging.getLogger(__name__)
KINDS = {"auto": None, "blocks of 3": 3, "frame by frame": 1, "bidirectional": 0}  # latent frames per block
WEIGHTS = ["auto", "ema", "regular"]
DTYPES = {"default": None, "fp8_e4m3fn": "float8_e4m3fn", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def student_files() -> list[str]:
    """Names of files in models/diffusion_models and of diffusers folders in models/diffusers."""
    import folder_paths

    names = list(folder_paths.get_filename_list("diffusion_models"))
    for root in folder_paths.get_folder_paths("diffusers"):
        if Path(root).is_dir():
            names += sorted(f"diffusers/{p.name}" for p in Path(root).iterdir() if p.is_dir())
    return names


def student_path(name: str) -> Path:
    """Where a name of `student_files` lies. Raises FileNotFoundError naming the folder it belongs in."""
    import folder_paths

    if name.startswith("diffusers/"):
        for root in folder_paths.get_folder_paths("diffusers"):
            folder = Path(root) / name.removeprefix("diffusers/")
            if folder.is_dir():
                return folder
    if found := folder_paths.get_full_path("diffusion_models", name):
        return Path(found)
    folders = ", ".join(folder_paths.get_folder_paths("diffusion_models"))
    raise FileNotFoundError(f"{name}: found no such file, expected it in one of: {folders}")


def load_model(
    path: Path, weights: str = "auto", dtype: str = "default", kind: str = "auto", disable_dynamic: bool = False
) -> Any:
    """A MODEL from any file that `salt.checkpoints` reads, through core's own loader, with the student's spec on it.

    disable_dynamic: core's own word, when it makes the MODEL anew. Raises CheckpointError for a file that is no Wan 2.1
    transformer, naming what it looks like.
    """
    import torch

    from ..salt.checkpoints import read_checkpoint
    from ..salt.checkpoints.wan_keys import to_wan
    from ..salt.checkpoints.writer import comfy_metadata

    found = read_checkpoint(path, weights)  # pyright: ignore[reportArgumentType] - one of WEIGHTS
    spec = spec_for(found, kind)
    name = DTYPES[dtype]
    options = {"dtype": getattr(torch, name)} if name else {}
    causal = spec is not None and spec.frames_per_block > 0
    state = {to_wan(key) or key: tensor for key, tensor in found.tensors()}
    model = model_of(state, comfy_metadata(found.config, causal), options, disable_dynamic)
    if model is None:
        raise ValueError(f"{path}: this ComfyUI does not know the model in it, expected Wan 2.1 T2V or I2V")
    model.cached_patcher_init = (load_model, (path, weights, dtype, kind))
    if spec is None:
        log.warning(
            "Salt: %s says nothing of how it was trained; if it is a student, say so in Load Salt Student (trained as)",
            path.name,
        )
        return model
    return with_spec(model, spec)


def spec_for(found: Any, kind: str) -> Any:
    """The student's settings: by the user's word, else the file's own; None where neither says anything.

    A torch file with a generator in it is a student whatever it does not say: no plain Wan comes so.
    """
    from ..salt.spec import StudentSpec

    known = found.spec or (StudentSpec() if "torch" in found.format else None)
    if KINDS[kind] is None:
        return known
    return replace(known or StudentSpec(), frames_per_block=KINDS[kind])


def model_of(state: dict[str, Any], metadata: dict[str, str], options: dict[str, Any], disable_dynamic: bool) -> Any:
    """Core's loader for weights at hand. Older versions see shapes only and have no dynamic loading."""
    import comfy.sd

    load = comfy.sd.load_diffusion_model_state_dict
    given = {"metadata": metadata, "disable_dynamic": disable_dynamic}
    known = inspect.signature(load).parameters
    return load(state, model_options=options, **{k: v for k, v in given.items() if k in known})


class SaltLoadStudent(io.ComfyNode):
    """A few-step student as a native MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltLoadStudent",
            display_name="Load Salt Student",
            category="Salt/loaders",
            description=(
                "Loads a few-step student of Wan 2.1 from models/diffusion_models: the released .pt files of Salt, "
                "Self Forcing, Causal Forcing and LongLive, safetensors, or a diffusers folder in models/diffusers. "
                "The MODEL remembers block size, memory and steps it was trained for. LoRAs, compile and attention "
                "nodes go on behind it as ever."
            ),
            search_aliases=[
                "wan",
                "self forcing",
                "causal forcing",
                "longlive",
                "autoregressive",
                "load diffusion model",
            ],
            inputs=[
                io.Combo.Input(
                    "student",
                    options=student_files(),
                    tooltip="File in models/diffusion_models, or diffusers/NAME for a folder in models/diffusers.",
                ),
                io.Combo.Input(
                    "weights",
                    options=WEIGHTS,
                    default="auto",
                    tooltip="Training files hold averaged (ema) and plain (regular) weights. auto takes what the "
                    "authors sample with: ema for salt_cf, regular for salt_ll, ema elsewhere if there is one.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    tooltip="fp8 halves the weights' memory at a small loss; default keeps what suits your device.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "trained_as",
                    options=list(KINDS),
                    default="auto",
                    tooltip="For files that do not say it themselves: blocks of 3 latent frames (most students), frame "
                    "by frame, or the whole clip at once (bidirectional SC-DMD).",
                    **ADVANCED,
                ),
            ],
            outputs=[io.Model.Output(tooltip="A native Wan 2.1 MODEL.")],
        )

    @classmethod
    def execute(cls, student: str, weights: str, weight_dtype: str, trained_as: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(student_path(student), weights, weight_dtype, trained_as))


NODES = [SaltLoadStudent]
