"""Backward of a training update: the host reads nothing of the device, and copies nothing to it.

On the meta device, at true width: a tensor there has no data, so that whatever the host would read of one is an error.
Float32 without autocast, whose casts would be further operations on the device. Kernels are not run.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from salt.conditioning import Conditioning
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.model_configs import WAN_1_3B, meta_model
from train.config.recipe import Losses, Recipe, Rollouts
from train.data.batch import Batch
from train.distributed.activation_checkpointing import recompute
from train.losses.semigroup import grid_triples
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.sc_dmd_losses import critic_term
from train.rollout.random_draws import UpdateDraws

RECIPE = replace(
    Recipe(),
    rollout=Rollouts(frames=6, memory="sink:3,window:6"),  # two blocks at 832x480
    loss=Losses(semigroup=1.0, align="paper", align_start=0, align_block=1),
)
DRAWS = {  # step list, exit step, semigroup triple, guidance
    "dmd": UpdateDraws(RECIPE.schedule(4), 0, None, 3.0),
    "semigroup": UpdateDraws(RECIPE.schedule(8), 3, grid_triples(RECIPE.schedule(8), 3)[0][1][0], 3.0),
    "alignment": UpdateDraws(RECIPE.schedule(2), 1, None, 3.0),
}


class Crossings(TorchDispatchMode):
    """Operations on tensors of main memory and of the device; numbers go with a kernel's arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor) and x.dim()]
        if len({x.device.type for x in tensors}) > 1:
            self.found.append(str(func))
        return out


def model(layers: int = 2, **kept: str) -> SaltTransformer3DModel:
    made = meta_model({"out_channels": 16, **WAN_1_3B, "num_layers": layers})
    if kept:
        recompute(made, **kept)
    return made.train()


def batch() -> Batch:
    text = Conditioning(torch.zeros(1, 512, 4096, device="meta"))
    return Batch(range(1), text, text)


def check_backward(loss: torch.Tensor, learner: SaltTransformer3DModel) -> None:
    with Crossings() as crossings:
        loss.backward()
    assert not crossings.found
    assert all(p.grad is not None for p in learner.blocks.parameters())


@pytest.mark.parametrize(
    "saved", ["attention", *(pytest.param(s, marks=pytest.mark.slow) for s in ("input", "products", None))]
)
@pytest.mark.parametrize("terms", DRAWS)
def test_backward_of_the_generators_loss_reads_nothing(terms, saved):
    kept = {} if saved is None else {"saved": saved}
    student, teacher, critic = model(**kept), model(**kept).requires_grad_(False), model().requires_grad_(False)
    trainer = SCDMDTrainer.__new__(SCDMDTrainer)  # its losses, without optimizers and processes
    trainer.recipe, trainer.teacher, trainer.critic_score, trainer.reward_weight = RECIPE, teacher, critic, None
    loss, parts = trainer.generator_terms(student, batch(), DRAWS[terms], 0)
    assert terms.replace("alignment", "align") in parts
    check_backward(loss, student)


def test_backward_of_the_critics_loss_reads_nothing():
    critic = model(saved="attention")
    clip = torch.zeros(1, 16, 6, 60, 104, device="meta")
    check_backward(critic_term(critic, clip, batch(), RECIPE, 0), critic)
