"""Clips of Shapes-world students and teachers, sampled and decoded with the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.conditioning import Conditioning
from salt.models.causal_model import BidirectionalModel, CausalModel
from salt.models.streaming_vae import WanStreamDecoder
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.sampling import sample_bidirectional
from salt.schedule import Schedule, step_list
from salt.spec import StudentSpec
from train.config.model_configs import WAN21_CHANNELS

CHANNELS, SIDE = WAN21_CHANNELS, 8  # of salt-tiny's latents of 64x64 pixels
TEACHER_GUIDANCE = 2.0  # of whole clips; 1 is none
BLOCK_GUIDANCE = 2.5  # of a causal teacher, as in the trajectories that the initial student learns from
DEFAULT_SPEC = StudentSpec()  # of a checkpoint without one


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Store the weights channels last: twice as fast on a CPU with so few channels, and the same values."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return vae


def load_vae(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """The VAE of a diffusers folder, frozen, with its weights channels last."""
    vae = channels_last(AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype))
    nn.Module.to(vae, device)
    return vae.requires_grad_(False)


def decode_latents(vae: AutoencoderKLWan, latents_BCFHW: Tensor) -> Tensor:
    """Normalised latents of whole clips to pixels [B, 3, 4F-3, 8H, 8W] in [-1, 1], float32."""
    return WanStreamDecoder(vae).decode(latents_BCFHW)


@dataclass(frozen=True)
class BatchNoise:
    """Noise of a whole batch from one generator (`SeededNoise` has one per clip), for clips sampled in one piece.

    The reported scores of bidirectional teachers were measured with it.
    """

    seed: int
    batch: int
    device: torch.device

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,) * self.batch

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + draw)
        return torch.randn(self.batch, CHANNELS, frames, SIDE, SIDE, generator=generator).to(self.device)


@torch.no_grad()
def student_clips(
    student: SaltTransformer3DModel,
    text: Tensor,
    steps: int,
    frames: int,
    seed: int,
    spec: StudentSpec = DEFAULT_SPEC,
) -> Tensor:
    """Latents [B, 16, frames, 8, 8] of a student, rolled out as its spec says; clip i has seed `seed` + i."""
    schedule = spec.schedule.with_steps(step_list(steps, spec.rule))
    settings = RolloutSettings(schedule=schedule, stepping=spec.stepping)
    if spec.frames_per_block:
        return _in_blocks(student, text, frames, seed, spec, settings)
    noise = SeededNoise(seed, text.shape[0], CHANNELS, SIDE, SIDE, device=text.device)
    settings = replace(settings, stepping="ode")
    return sample_bidirectional(BidirectionalModel(student), Conditioning(text), noise, frames, settings)


@torch.no_grad()
def teacher_clips(
    teacher: SaltTransformer3DModel, text: Tensor, steps: int, frames: int, seed: int, spec: StudentSpec
) -> Tensor:
    """Latents [B, 16, frames, 8, 8] of a teacher: Euler steps with guidance, whole clips or in blocks as `spec` says.

    In blocks clip i has seed `seed` + i; whole clips draw their noise from one generator.
    """
    settings = RolloutSettings(schedule=Schedule.of(steps, spec.shift), stepping="ode")
    if spec.frames_per_block:
        return _in_blocks(teacher, text, frames, seed, spec, replace(settings, guidance=BLOCK_GUIDANCE))
    noise = BatchNoise(seed, text.shape[0], text.device)
    settings = replace(settings, guidance=TEACHER_GUIDANCE)
    negative = Conditioning(torch.zeros_like(text))
    model = BidirectionalModel(teacher)
    return sample_bidirectional(model, Conditioning(text), noise, frames, settings, negative=negative)


def _in_blocks(
    model: SaltTransformer3DModel, text: Tensor, frames: int, seed: int, spec: StudentSpec, settings: RolloutSettings
) -> Tensor:
    """A rollout by `settings`, with the blocks and the memory of `spec`; clip i has seed `seed` + i."""
    batch = text.shape[0]
    noise = SeededNoise(seed, batch, CHANNELS, SIDE, SIDE, device=text.device)
    memory = model.new_memory(spec.policy, batch, SIDE, SIDE, frames)
    settings = replace(
        settings,
        frames_per_block=spec.frames_per_block,
        independent_first_frame=spec.independent_first_frame,
        fuse=True,
    )
    negative = Conditioning(torch.zeros_like(text)) if settings.guidance != 1 else None
    blocks = rollout(CausalModel(model), Conditioning(text), memory, noise, frames, settings, negative=negative)
    return torch.cat([block.latents for block in blocks], dim=2)
