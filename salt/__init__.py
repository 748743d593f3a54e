"""Salt: few-step autoregressive video in latent blocks. The engine; it knows nothing of ComfyUI and of training.

prompt -> conditioning -> rollout (schedule, memory, model call) -> latents -> streaming decode -> video.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Resolved on first use: importing torch, diffusers and transformers takes seconds, `salt --help` should not.
_HOMES = {
    "SaltPipeline": ".pipeline",
    "SaltTransformer3DModel": ".models.transformer_salt",
    "StudentSpec": ".spec",
    "KVMemory": ".memory",
    "MemoryPolicy": ".memory",
    "Schedule": ".schedule",
    "RolloutSettings": ".rollout",
    "rollout": ".rollout",
    "load_student": ".checkpoints",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
