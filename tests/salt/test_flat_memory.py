"""Rollouts of 2,000 latent frames: no memory grows once its window is full, and nothing beside it does."""

import gc

import pytest
import torch

from salt.conditioning import Conditioning, PromptChange, PromptSchedule
from salt.memory import MemoryPolicy
from salt.models.anyflow import AnyFlowTransformer3DModel
from salt.models.causal_model import CausalModel
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule

FLAT = (
    "window:12",
    "sink:3,window:12",
    "sink:3,window:12,int4,cpu",
    "relative:3,window:12",
    "cyclic:12",
    "blended:3,window:12",
    "shots:3,window:12,offset:2",
    "overwrite:3,window:6",
    "rebuild:3,keep",
)
TINY = dict(num_attention_heads=1, attention_head_dim=12, ffn_dim=16, num_layers=2, text_dim=8, freq_dim=8)
SIDE = 4  # of the latents: four tokens, one larger patch
MARKS = (300, 1002, 2001)  # latent frames


def tensor_bytes() -> int:
    """Bytes of all tensors of this process, each storage once."""
    gc.collect()
    # Of these types alone: tensors without storage, of other tests, are neither.
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter) and not x.is_sparse]
    return sum({s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in tensors)}.values())


@torch.no_grad()
def measured(policy: str, student, marks: tuple[int, ...], flow_map: bool = False) -> list[tuple[int, int]]:
    """Bytes of the memory's buffers and of all tensors, at these latent frames of one rollout."""
    torch.manual_seed(0)
    memory = student.new_memory(MemoryPolicy.parse(policy), 1, SIDE, SIDE)
    text = Conditioning(torch.randn(1, 4, 8))
    shots = [PromptChange(f, text, "shot") for f in range(60, marks[-1], 60)] if memory.policy.kind == "shots" else []
    prompts = PromptSchedule([PromptChange(0, text), *shots])
    settings = RolloutSettings(Schedule.of(1, 3.0), stepping="ode" if flow_map else "sde")
    noise = SeededNoise(0, 1, 16, SIDE, SIDE)
    found = []
    for block in rollout(CausalModel(student, flow_map), prompts, memory, noise, marks[-1] + 3, settings):
        if block.start in marks:
            found.append((memory.nbytes, tensor_bytes()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("policy", FLAT)
def test_a_memory_with_a_window_is_flat_over_2000_frames(policy):
    early, later, last = measured(policy, SaltTransformer3DModel(**TINY).eval(), MARKS)
    assert early[0] > 0
    assert early == later == last


def test_a_far_memory_grows_by_its_large_patches_alone():
    student = AnyFlowTransformer3DModel(**TINY, chunk_partition=(3, 3, 3)).eval()
    (early, _), (late, _) = measured("far:2", student, (30, 60), flow_map=True)
    assert late - early == 30 * 2 * 2 * 12 * 4  # of each frame: keys and values, two layers, one patch of 12 floats
