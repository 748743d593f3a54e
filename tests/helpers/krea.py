"""Krea realtime's recorded rollouts (`tests/data/golden2`), played through the public API."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor

from salt.conditioning import Conditioning, PromptChange, PromptSchedule
from salt.memory import KVMemory, MemoryPolicy
from salt.models.causal_model import CausalModel
from salt.rollout import Block, RolloutSettings, rollout
from salt.schedule import Schedule, add_noise, step_list
from tests.helpers.golden import GOLDEN, relative_error, student
from tests.helpers.recorded_noise import RecordedNoise

FOLDER = GOLDEN.parent / "golden2"
CASES = {
    row["case"]: row
    for row in json.loads((FOLDER / "rollouts2.json").read_text())
    if row["case"].startswith("krea_")
}  # fmt: skip
__all__ = ["CASES", "RecordedHeads", "expected", "play", "policy_of", "relative_error", "schedule_of", "student"]


class RecordedHeads:
    """The re-encoded frames of a recording, for the blocks in order. calls: latents that it was called with."""

    def __init__(self, case: str, first_block: int = 0) -> None:
        row = CASES[case]
        self.recorded = tensors(case)["reencoded_first"]
        self.lag = row["kv_cache_num_frames"] // row["frames_per_block"]
        self.calls: list[Tensor] = [torch.empty(0)] * first_block

    def __call__(self, latents: Tensor) -> Tensor:
        used = len(self.calls) + self.lag  # the block before which the memory is rebuilt from this frame
        self.calls.append(latents)
        found = self.recorded[:, used] if used < self.recorded.shape[1] else torch.zeros_like(self.recorded[:, 0])
        return torch.where(found.abs().sum() > 0, found, torch.nan)[:, :, None]  # a wrong use of others shows


def tensors(case: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"rollout_{case}.safetensors")


def policy_of(case: str) -> MemoryPolicy:
    row = CASES[case]
    return MemoryPolicy.parse(f"rebuild:{row['kv_cache_num_frames']}" + ",keep" * row["keep_first_frame"])


def schedule_of(case: str) -> Schedule:
    row = CASES[case]
    return Schedule(step_list(row["steps"], "krea", row["strength"]), row["shift"], "krea")


def prompts_of(case: str) -> PromptSchedule[Conditioning]:
    """The text of each block; the first also of a start."""
    row, context = CASES[case], tensors(case)["context"]
    starts = [row["init_frames"] + row["frames_per_block"] * block for block in range(row["blocks"])]
    texts = [Conditioning(context[:, block]) for block in range(row["blocks"])]
    return PromptSchedule([PromptChange(start if i else 0, texts[i]) for i, start in enumerate(starts)])


def noise_of(case: str) -> RecordedNoise:
    """Video to video begins with the noised source."""
    data = {name: x.transpose(1, 2) for name, x in tensors(case).items() if x.ndim == 5}
    noise = data["noise"]
    if "source_latents" in data:
        noise = add_noise(data["source_latents"], data["source_noise"], schedule_of(case).calls[0].timestep / 1000)
    return RecordedNoise(noise, tensors(case)["renoise"].transpose(2, 3), CASES[case]["init_frames"])


def initial_latents(case: str) -> Tensor | None:
    return tensors(case)["initial_latent"].transpose(1, 2) if CASES[case]["init_frames"] else None


def expected(case: str) -> Tensor:
    """Latents [B, C, F, H, W] of the new blocks."""
    row = CASES[case]
    return tensors(case)["latents"].transpose(1, 2)[:, :, -row["blocks"] * row["frames_per_block"] :]


def blocks(
    model,
    case: str,
    memory: KVMemory,
    heads: RecordedHeads | None,
    frames: int | None = None,
    initial: bool = True,
    **options,
) -> list[Block]:
    """Latent `frames` of a case from where the memory stands, all by default."""
    row = CASES[case]
    with torch.no_grad():
        return list(
            rollout(
                CausalModel(model), prompts_of(case), memory, noise_of(case),
                row["blocks"] * row["frames_per_block"] if frames is None else frames,
                RolloutSettings(schedule_of(case), frames_per_block=row["frames_per_block"]),
                initial_latents=initial_latents(case) if initial else None, reencode=heads, **options,
            )
        )  # fmt: skip


def new_memory(model, case: str) -> KVMemory:
    noise = tensors(case)["noise"]
    return model.new_memory(policy_of(case), noise.shape[0], *noise.shape[3:])


def play(model, case: str) -> Tensor:
    made = blocks(model, case, new_memory(model, case), RecordedHeads(case))
    return torch.cat([block.latents for block in made], dim=2)
