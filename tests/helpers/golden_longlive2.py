"""Reference rollouts of LongLive 2.0 (Wan 2.2 TI2V shape), played through the public API."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from salt.checkpoints import load_student
from salt.conditioning import Conditioning, PromptChange, PromptSchedule
from salt.memory import KVMemory, MemoryPolicy
from salt.models.causal_model import CausalModel
from salt.rollout import Block, RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers import golden
from tests.helpers.recorded_noise import RecordedNoise

ROLLOUTS = {row["case"]: row for row in json.loads((golden.GOLDEN / "rollouts_ll2.json").read_text())}


def student():
    return load_student(golden.GOLDEN / "tiny_ti2v.safetensors", dtype=torch.float32).eval()


class Case:
    """One reference rollout, its inputs in the layout of the public API."""

    def __init__(self, name: str) -> None:
        self.row, self.data = ROLLOUTS[name], golden.tensors(name)
        self.noise, self.expected = (self.data[key].transpose(1, 2) for key in ("noise", "latents"))
        self.block = self.row["frames_per_block"]

    @property
    def policy(self) -> MemoryPolicy:
        row = self.row
        return MemoryPolicy(
            "shots" if row["multi_shot_sink"] else "sink",
            row["window_frames"],
            row["sink_frames"],
            shot_offset=int(row["multi_shot_rope_offset"]) if row["multi_shot_sink"] else 0,
            clean_shots=row["shot_clean_recache"],
        )

    def memory(self, model) -> KVMemory:
        return model.new_memory(self.policy, self.noise.shape[0], *self.noise.shape[3:])

    def prompts(self, texts: int | None = None) -> PromptSchedule[Conditioning]:
        """A text for every block, or only the first `texts` of them."""
        conditionings = [Conditioning(text) for text in self.data["context"].unbind(1)]
        changes = [
            PromptChange(b * self.block, c, "shot" if b in self.row["shot_starts"] else "keep")
            for b, c in enumerate(conditionings[:texts] if texts else conditionings)
        ]
        return PromptSchedule(changes)

    def blocks(
        self, model, memory: KVMemory, frames: int, prompts: PromptSchedule[Conditioning] | None = None, fuse=False
    ) -> list[Block]:
        settings = RolloutSettings(
            Schedule.of(self.row["sampling_steps"], self.row["shift"], "longlive2"),
            "unipc",
            self.block,
            guidance=self.row["guidance"],
            fuse=fuse,
        )
        first, negative = self.data.get("initial_latent"), self.data.get("negative_context")
        with torch.no_grad():
            return list(
                rollout(
                    CausalModel(model),
                    prompts or self.prompts(),
                    memory,
                    RecordedNoise(self.noise, self.noise[None]),
                    frames,
                    settings,
                    negative=None if negative is None else Conditioning(negative),
                    first_frame=None if first is None else first.transpose(1, 2),
                )
            )

    def play(self, model, memory: KVMemory | None = None, **options) -> Tensor:
        memory = memory or self.memory(model)
        blocks = self.blocks(model, memory, self.noise.shape[2] - memory.next_frame, **options)
        return torch.cat([block.latents for block in blocks], dim=2)
