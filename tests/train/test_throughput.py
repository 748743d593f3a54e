"""Throughput of a run: counted operations beside torch's own count, tokens, and devices that are known."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from salt.checkpoints import save_diffusers
from tests.helpers import tiny_recipes
from train.methods.sc_dmd import SCDMDTrainer
from train.monitoring.throughput import Throughput, device_peak
from train.monitoring.update_flops import UpdateFlops


@pytest.mark.parametrize("first_steps", [0, 8])
def test_operations_of_an_update_are_those_that_torch_counts(tmp_path, monkeypatch, first_steps):
    """A model whose text, embeddings and head are small beside its blocks; nothing is recomputed."""
    monkeypatch.setattr("train.monitoring.update_flops.TEXT_TOKENS", 16)
    for seed, name in enumerate(("student", "teacher")):
        save_diffusers(tiny_recipes.model(seed, attention_head_dim=64, ffn_dim=512), tmp_path / name)
    recipe = tiny_recipes.recipe(
        tmp_path, models=dict(checkpointing=False),
        rollout=dict(height=16, width=16, share={2: 1.0}, first_steps=first_steps),
        loss=dict(semigroup=0.0, align="none"), optimisation=dict(batch=1, micro_batch=1, critic_per_generator=1),
    )  # fmt: skip
    trainer = SCDMDTrainer(recipe)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it counts no other one on a CPU
        trainer.update(0)
    known = Throughput(recipe, trainer.configurations(), 1, None)
    found = known.flops(0)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.1)
    mean = sum(known.flops(update) for update in range(200)) / 200
    expected = sum(work.total for work in UpdateFlops(recipe, trainer.configurations()).expected().values())
    assert mean == pytest.approx(expected, rel=0.02)


def test_values_of_an_update(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    config = SimpleNamespace(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48, patch_size=(1, 2, 2),
        in_channels=16, out_channels=16,
    )  # fmt: skip
    configs = dict.fromkeys(("student", "critic", "teacher"), config)
    known = Throughput(recipe, configs, 2, 1e9)
    values = known.values(0, 2.0)
    assert values["tokens_per_second"] == 4 * 3 * 6 * 4 / 2.0  # clips x (critic, critic, student) x frames x patches
    assert values["peak_share"] == pytest.approx(known.flops(0) / 2 / 2.0 / 1e9)
    assert set(Throughput(recipe, configs, 1, None).values(0, 2.0)) == {"tokens_per_second"}


@pytest.mark.parametrize(
    "name, precision, peak",
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "no", None),
        ("Some other device", "bf16", None),
    ],
)
def test_the_peak_of_known_devices(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_peak(torch.device("cuda"), precision) == peak
    assert device_peak(torch.device("cpu"), precision) is None
