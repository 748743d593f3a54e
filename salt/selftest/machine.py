"""The device under test, with salt-tiny on it, and the clips that checks compare."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoints import load_student
from ..conditioning import Conditioning
from ..memory import MemoryPolicy
from ..models.causal_model import CausalModel, StudentTransformer
from ..models.transformer_salt import SaltTransformer3DModel
from ..models.word_embedder import WordEmbedder
from ..noise import SeededNoise
from ..pipeline import SaltPipeline
from ..pipeline.from_options import PipelineOptions, load_pipeline
from ..pipeline.run import InFloat32
from ..rollout import RolloutSettings, rollout
from ..schedule import Schedule
from ..spec import TINY_FOLDER

PROMPT = "a fast red circle moving right"
FRAMES, NFE, SIZE = 15, 4, 8  # latent frames, evaluations per block, latent height and width
WINDOWED = "sink:3,window:9"
# Latents of salt-tiny in float32 on a CPU (x86_64, torch 2.13), by memory policy. The engine that made them equals the
# published implementations (tests/salt/test_golden_rollouts.py).
GOLDEN = Path(__file__).parents[1] / "assets" / "selftest" / "golden.safetensors"
GOLDEN_POLICIES = ("full", "window:9", WINDOWED, "relative:3,window:9", "cyclic:9", "blended:3,window:9")


class Machine:
    """A device and what is computed on it once for several checks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.student = cache(self._student)
        self.plain = cache(self._plain)

    def _student(self, dtype: torch.dtype) -> SaltTransformer3DModel:
        student = load_student(TINY_FOLDER / "transformer", dtype=dtype).eval()
        nn.Module.to(student, self.device)
        return student

    @cached_property
    def pipe(self) -> SaltPipeline:
        return load_pipeline(PipelineOptions(dtype="float32"), self.device)

    def _plain(self, policy: str, dtype: torch.dtype) -> Tensor:
        """Latents of the reference path: nothing fused, recorded, quantised or moved."""
        return self.clip(self.student(dtype), policy, dtype)

    @torch.no_grad()
    def clip(
        self, model: StudentTransformer, policy: str, dtype: torch.dtype, fuse: bool = False, frames: int = FRAMES
    ) -> Tensor:
        """Latents [1, C, frames, SIZE, SIZE] of a clip, in float32 on the CPU. model: the student, or what calls it."""
        memory = self.student(dtype).new_memory(MemoryPolicy.parse(policy), 1, SIZE, SIZE)
        text = Conditioning(WordEmbedder().encode([PROMPT]).to(self.device, dtype))
        noise = SeededNoise(0, 1, 16, SIZE, SIZE, self.device)
        settings = RolloutSettings(Schedule.of(NFE), fuse=fuse)
        blocks = rollout(InFloat32(CausalModel(model), dtype), text, memory, noise, frames, settings)
        return torch.cat([block.latents for block in blocks], dim=2).float().cpu()


def golden() -> dict[str, Tensor]:
    """Latents [1, C, FRAMES, SIZE, SIZE] by memory policy."""
    return load_file(GOLDEN)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; infinite where a number is not finite."""
    error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
    return error if error == error else float("inf")
