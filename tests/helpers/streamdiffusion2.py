"""StreamDiffusionV2's recorded rollouts (`tests/data/golden2`), played through the public API."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import Tensor

from salt.conditioning import Conditioning
from salt.memory import KVMemory, MemoryPolicy
from salt.models.causal_model import CausalModel
from salt.rollout import Block, RolloutSettings, rollout
from salt.schedule import Schedule
from salt.video_in.motion import MotionNoise, motion_of
from salt.video_in.stream_batch import stream_batch
from tests.helpers.golden import GOLDEN, relative_error, student
from tests.helpers.recorded_noise import RecordedNoise

FOLDER = GOLDEN.parent / "golden2"
CASES = {
    row["case"]: row
    for row in json.loads((FOLDER / "rollouts2.json").read_text())
    if row["case"].startswith("sdv2_")
}  # fmt: skip
__all__ = ["CASES", "expected", "play", "policy_of", "relative_error", "student"]


def tensors(case: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"rollout_{case}.safetensors")


def policy_of(case: str) -> MemoryPolicy:
    row = CASES[case]
    return MemoryPolicy(
        "overwrite", row["memory_frames"], row["sink_frames"], refresh=row["adapt_sink_threshold"],
        reset=0 if row["mode"] == "stream_batch" else row["position_refresh_at"],
    )  # fmt: skip


def settings_of(case: str) -> RolloutSettings:
    row = CASES[case]
    schedule = Schedule(tuple(row["steps"]), row["shift"], "streamdiffusion2")
    return RolloutSettings(schedule, frames_per_block=row["frames_per_chunk"])


def video_of(case: str) -> MotionNoise:
    data = tensors(case)
    pixels = data["video_uint8"].float() / 127.5 - 1
    return MotionNoise(data["source_latents"].transpose(1, 2), motion_of(pixels), CASES[case]["noise_scale"])


def noise_of(case: str) -> RecordedNoise:
    data = tensors(case)
    renoise = data.get("renoise", data.get("renoise_first_chunk"))
    return RecordedNoise(data["source_noise"].transpose(1, 2), renoise.transpose(2, 3))


def expected(case: str) -> Tensor:
    return tensors(case)["latents"].transpose(1, 2)


def new_memory(model, case: str) -> KVMemory:
    return model.new_memory(policy_of(case), 1, *tensors(case)["source_noise"].shape[3:])


def blocks(model, case: str, memory: KVMemory, frames: int | None = None, **options) -> list[Block]:
    """All chunks of a case, or those of the next `frames` latent frames."""
    data, row = tensors(case), CASES[case]
    conditioning, frames = Conditioning(data["context"]), frames or expected(case).shape[2]
    video = options.pop("video", None) or video_of(case)
    arguments = (CausalModel(model), conditioning, memory, noise_of(case), frames, settings_of(case))
    if row["mode"] == "stream_batch":
        fresh = data["renoise_stage"]
        return list(stream_batch(*arguments, video, lambda call, stage: fresh[call, stage][:, :, None]))
    with torch.no_grad():
        return list(rollout(*arguments, video=video, **options))


def play(model, case: str) -> Tensor:
    return torch.cat([block.latents for block in blocks(model, case, new_memory(model, case))], dim=2)
