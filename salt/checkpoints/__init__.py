"""Reading and writing checkpoints of Wan transformers, in every file format that students are published in.

`read_checkpoint` identifies and checks a file, `load_student` builds the model from it and merges LoRAs into it,
`save_student` writes one (as `save_wan` or `save_diffusers`), `describe` summarises what a file holds. All raise
`CheckpointError`.
"""

from .loading import describe, load_student
from .lora_merge import LoraFile
from .reader import Checkpoint, read_checkpoint
from .tensor_files import CheckpointError
from .writer import save_diffusers, save_student, save_wan

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoraFile",
    "describe",
    "load_student",
    "read_checkpoint",
    "save_diffusers",
    "save_student",
    "save_wan",
]
