"""The checkpoint room: every file format that a Wan student comes in is known here and nowhere else.

`read_checkpoint` finds out what a file is, `load_student` makes a model of it (with a LoRA, if one belongs to it),
`save_wan` and `save_diffusers` write one, `describe` tells a person what a file holds. All complain by
`CheckpointError`.
"""

from .errors import CheckpointError
from .loading import describe, load_student
from .reader import Checkpoint, read_checkpoint
from .writer import save_diffusers, save_wan

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "describe",
    "load_student",
    "read_checkpoint",
    "save_diffusers",
    "save_wan",
]
