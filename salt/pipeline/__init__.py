"""The front desk: prompts in, frames out, in diffusers' habits."""

from .components import TINY, load_components
from .inputs import FPS, Length, PipelineInputs, plan_length
from .pipeline import Chunk, SaltPipeline, SaltPipelineOutput

__all__ = [
    "FPS",
    "TINY",
    "Chunk",
    "Length",
    "PipelineInputs",
    "SaltPipeline",
    "SaltPipelineOutput",
    "load_components",
    "plan_length",
]
