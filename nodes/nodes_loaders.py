"""*Load Salt Student*: any student file as a native MODEL that keeps what it was trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .adapter.core_versions import ADVANCED, page_options, schema
from .adapter.input_errors import accepted
from .adapter.loading import DTYPES, FRAMES_PER_BLOCK, check_student, load_model, student_files, student_path

if TYPE_CHECKING:
    from ..salt.checkpoints.reader import Weights

WEIGHTS = ["auto", "ema", "regular"]


class SaltLoadStudent(io.ComfyNode):
    """A few-step student as a native MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files, students = student_files()
        return schema(
            node_id="SaltLoadStudent",
            display_name="Load Salt Student",
            category="Salt/loaders",
            description=(
                "Loads a few-step student of Wan 2.1 from models/diffusion_models: the released .pt files of Salt, "
                "Self Forcing, Causal Forcing and LongLive, safetensors, or a diffusers folder in models/diffusers. "
                "The MODEL keeps the block size, memory policy and steps it was trained with. LoRA, compile and "
                "attention nodes work on it as usual."
            ),
            search_aliases=[
                "wan",
                "self forcing",
                "causal forcing",
                "longlive",
                "autoregressive",
                "load diffusion model",
                "streaming video",
                "real time",
                "world model",
            ],
            inputs=[
                io.Combo.Input(
                    "student",
                    options=files,
                    default=files[0] if students else "",
                    tooltip="File in models/diffusion_models, or diffusers/NAME for a folder in models/diffusers. "
                    "Known students come first; all files lists the others.",
                    **page_options(salt_students=students),  # how many could be one
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
                    options=list(FRAMES_PER_BLOCK),
                    default="auto",
                    tooltip="For files that do not say it themselves: blocks of 3 latent frames (most students), frame "
                    "by frame, or the whole clip at once (bidirectional SC-DMD).",
                    **ADVANCED,
                ),
            ],
            outputs=[io.Model.Output(tooltip="A native Wan 2.1 MODEL.")],
        )

    @classmethod
    def validate_inputs(cls, student: str | None) -> bool | str:
        """Before anything runs. A linked name is not known yet."""
        return student is None or accepted(check_student, student)

    @classmethod
    def execute(cls, student: str, weights: Weights, weight_dtype: str, trained_as: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(student_path(student), weights, weight_dtype, trained_as))


NODES = [SaltLoadStudent]
