"""The front desk: prompts in, frames out, in diffusers' habits."""

from .loading import TINY, load_parts
from .pipeline import Chunk, SaltPipeline, SaltPipelineOutput
from .request import FPS, Length, Request, plan_length

__all__ = [
    "FPS",
    "TINY",
    "Chunk",
    "Length",
    "Request",
    "SaltPipeline",
    "SaltPipelineOutput",
    "load_parts",
    "plan_length",
]
