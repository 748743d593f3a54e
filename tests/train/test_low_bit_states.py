"""8-bit optimizer states: sharded like whole, saved and resumed to the bit, refused without torchao."""

import importlib.util

import pytest
import torch
from torch.torch_version import TorchVersion

from tests.helpers import low_bit_processes, tiny_recipes
from tests.helpers.low_bit_processes import RATE, LowBitRun
from train.config.recipe import RecipeError
from train.distributed.launch import check_mode
from train.distributed.low_bit_states import load_low_bit_state
from train.memory_estimate.model_bytes import optimizer_bytes

without_torchao = importlib.util.find_spec("torchao") is None
needs_torchao = pytest.mark.skipif(without_torchao, reason="torchao is not installed")
sharded = pytest.mark.skipif(torch.__version__ < TorchVersion("2.8"), reason="FSDP2 as it is used needs torch 2.8")


def load(path):
    return torch.load(path, weights_only=True)


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def equal_moments(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(a, b)
        for name in found
        for moment in found[name]
        for a, b in zip(found[name][moment], expected[name][moment], strict=True)
    )


@pytest.mark.slow
@needs_torchao
@sharded
def test_shards_are_updated_like_the_whole_and_resume_to_the_bit(tmp_path):
    low_bit_processes.run(2, tmp_path)
    saved, whole, resumed = (load(tmp_path / f"{name}.pt") for name in ("saved", "whole", "resumed"))
    assert equal(resumed["model"], whole["model"])
    assert equal_moments(resumed["optimizer"]["moments"], whole["optimizer"]["moments"])
    one = LowBitRun("single")
    for number in range(2):
        one.update(number)
    # A code apart is 1/128 of a moment at most, so weights differ by that share of the updates' lengths.
    differences = [float((value - one.model.state()[name]).abs().max()) for name, value in saved["model"].items()]
    assert max(differences) < 2 * RATE / 128
    shares = [int((tmp_path / f"{rank}.bytes").read_text()) for rank in range(2)]
    learn = [p.numel() for p in one.model.parameters()]
    for share in shares:
        assert share == pytest.approx(optimizer_bytes(learn, "8bit", 2), rel=0.01)
        assert share == pytest.approx(one.bytes / 2, rel=0.05) and share < 0.35 * optimizer_bytes(learn, "adamw", 2)
    # Shards of whole blocks are the whole's blocks: one process goes on from two shards' states, to their bits.
    joined = LowBitRun("single").load(saved).states()["optimizer"]["moments"]
    for name in ("blocks.0.attn1.to_q.weight", "blocks.0.ffn.net.0.proj.weight"):
        for moment, shards in saved["optimizer"]["moments"][name].items():
            codes, scales = zip(
                *(shard.split([len(shard) * 256 // 260, len(shard) * 4 // 260]) for shard in shards), strict=True
            )
            assert torch.equal(joined[name][moment][0], torch.cat([*codes, *scales])), (name, moment)


@needs_torchao
def test_a_run_in_one_process_resumes_to_the_bit(tmp_path):
    run = LowBitRun("single")
    run.update(0)
    torch.save(run.states(), tmp_path / "saved.pt")
    resumed = LowBitRun("single").load(load(tmp_path / "saved.pt"))
    for one in (run, resumed):
        one.update(1)
    assert equal(resumed.states()["model"], run.states()["model"])
    with pytest.raises(RecipeError, match="optimisation.optimizer: found a checkpoint with states of bitsandbytes"):
        load_low_bit_state(run.model.model, run.optimizer, {"state": {}, "param_groups": []})


@pytest.mark.parametrize("mode", ["single", "ddp", "fsdp"])
def test_without_torchao_it_is_refused_in_every_mode(tmp_path, monkeypatch, mode):
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(optimizer="8bit"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="optimisation.optimizer: found 8bit without torchao: pip install torchao"):
        check_mode(recipe, mode)
