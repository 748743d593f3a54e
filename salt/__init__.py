"""Salt: few-step autoregressive video diffusion in latent blocks, with a KV-cache memory (arXiv 2604.03118).

prompt -> conditioning -> rollout (schedule, memory, model call) -> latents -> streaming decode -> video

The names below are the public API. Each is imported from its module at first use: torch, diffusers and transformers
take seconds to import, and `salt --help` needs none of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoints import load_student, save_student
    from .conditioning import Conditioning, PromptChange, PromptSchedule
    from .io.video import VideoWriter
    from .live.pipeline_host import PipelineHost
    from .live.session import LiveSession
    from .live.settings import LiveSettings
    from .memory import KVMemory, MemoryPolicy, load_memory, save_memory
    from .models.causal_model import CausalModel
    from .models.streaming_vae import WanStreamDecoder, encode_video
    from .models.taehv import TinyStreamDecoder
    from .noise import SeededNoise
    from .pipeline import SaltPipeline
    from .rollout import RolloutSettings, rollout
    from .schedule import Schedule
    from .semigroup_defect import semigroup_defect

__version__ = "0.1.0"
__all__ = [
    "CausalModel",
    "Conditioning",
    "KVMemory",
    "LiveSession",
    "LiveSettings",
    "MemoryPolicy",
    "PipelineHost",
    "PromptChange",
    "PromptSchedule",
    "RolloutSettings",
    "SaltPipeline",
    "Schedule",
    "SeededNoise",
    "TinyStreamDecoder",
    "VideoWriter",
    "WanStreamDecoder",
    "__version__",
    "encode_video",
    "load_memory",
    "load_student",
    "rollout",
    "save_memory",
    "save_student",
    "semigroup_defect",
]

_MODULES = {
    "CausalModel": ".models.causal_model",
    "Conditioning": ".conditioning",
    "KVMemory": ".memory",
    "LiveSession": ".live.session",
    "LiveSettings": ".live.settings",
    "MemoryPolicy": ".memory",
    "PipelineHost": ".live.pipeline_host",
    "PromptChange": ".conditioning",
    "PromptSchedule": ".conditioning",
    "RolloutSettings": ".rollout",
    "SaltPipeline": ".pipeline",
    "Schedule": ".schedule",
    "SeededNoise": ".noise",
    "TinyStreamDecoder": ".models.taehv",
    "VideoWriter": ".io.video",
    "WanStreamDecoder": ".models.streaming_vae",
    "encode_video": ".models.streaming_vae",
    "load_memory": ".memory",
    "load_student": ".checkpoints",
    "rollout": ".rollout",
    "save_memory": ".memory",
    "save_student": ".checkpoints",
    "semigroup_defect": ".semigroup_defect",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The type of this package: public names are never replaced by the submodules of the same name.

    Importing `salt.rollout` sets the attribute `rollout` of this package to the module, which would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
