"""Text-to-video pipeline in diffusers' form: prompts in, frames out."""

from .components import TINY_NAME, load_components
from .inputs import Length, PipelineInputs, plan_length
from .pipeline import SaltPipeline, SaltPipelineOutput
from .run import Chunk

__all__ = [
    "TINY_NAME",
    "Chunk",
    "Length",
    "PipelineInputs",
    "SaltPipeline",
    "SaltPipelineOutput",
    "load_components",
    "plan_length",
]
