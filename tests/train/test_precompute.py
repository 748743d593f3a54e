"""Precomputing in several processes, and its size and cost beforehand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from salt.models.text_encoder import CachedTextEncoder
from tests.helpers import tiny_recipes
from train.config.loader import load_recipe
from train.config.recipe import RecipeError
from train.data import cost, precompute
from train.data.clip_dataset import generate_clips
from train.data.shards import own_shards

CPU = torch.device("cpu")


def as_process(monkeypatch, rank, count):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))


def ode_recipe(folder: Path, clips: str):
    recipe = tiny_recipes.recipe(folder, rollout=dict(share={4: 1.0}), data=dict(clips=str(folder / clips)))
    return replace(recipe, stage="ode", start=replace(recipe.start, teacher_steps=4, guidance=2.0, clips=5))


def files(folder: str) -> dict[str, tuple[dict[str, str], dict[str, bytes]]]:
    """Metadata, whose order in a file is not fixed, and the bytes of the tensors."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        with safe_open(path, "pt") as file:
            found[path.name] = file.metadata(), {n: x.numpy().tobytes() for n, x in load_file(path).items()}
    return found


def test_several_processes_write_the_files_of_one(tmp_path, monkeypatch):
    one, several = (ode_recipe(tmp_path, name) for name in ("one", "several"))
    assert generate_clips(one, CPU) == 5
    written = []
    for rank in (1, 0):
        as_process(monkeypatch, rank, 2)
        written.append(generate_clips(several, CPU))
    assert written == [2, 3] and files(several.data.clips) == files(one.data.clips)
    (tmp_path / "several" / "000001.safetensors").unlink()  # half of a shard of two: its other half is kept
    assert generate_clips(several, CPU) == 1 and files(several.data.clips) == files(one.data.clips)


def test_every_shard_falls_to_one_process_whatever_exists(tmp_path, monkeypatch):
    paths = [tmp_path / str(i) for i in range(11)]
    shards = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        shards += own_shards(paths, 2)
        for i in shards[0]:
            paths[i].touch()
    assert sorted(i for shard in shards for i in shard) == list(range(11))
    assert own_shards(paths, 2) == [range(4, 6), range(10, 11)]


def test_prompts_are_embedded_once_by_all_processes_together(tmp_path, monkeypatch, capsys):
    class Encoder:
        def encode(self, prompts):
            return torch.stack([torch.full((4, 8), float(len(p))) for p in prompts])

    monkeypatch.setattr(precompute.UMT5TextEncoder, "from_pretrained", lambda *_, **__: Encoder())
    prompts = ["a" * (i + 1) for i in range(20)] * 2
    for rank, new in ((0, 12), (1, 8)):
        as_process(monkeypatch, rank, 2)
        assert precompute.precompute_embeddings(prompts, str(tmp_path), str(tmp_path / "out"), "cpu") == new
    assert len(files(tmp_path / "out")) == 20
    again = CachedTextEncoder(lambda: pytest.fail("all are there"), tmp_path / "out", precompute.EMBEDDINGS_KEY)
    assert again.encode(["aaa"])[0, 0, 0] == 3
    said = capsys.readouterr().out
    assert "out: 20 of 20 files to compute, at most 0.0839 GB, about 0.117 PFLOP" in said
    assert "out: 1 of 1 shards (process 1 of 2), left 0:00:00" in said


def test_the_size_said_beforehand_is_that_of_the_files(tmp_path, monkeypatch, capsys):
    recipe = ode_recipe(tmp_path, "clips")
    size, flops = cost.trajectory_cost(recipe)
    generate_clips(recipe, CPU)
    tensors = load_file(tmp_path / "clips" / "000000.safetensors")
    assert size == sum(x.numel() * x.element_size() for x in tensors.values()) and flops > 0
    large = load_recipe("self_forcing_ode", [f"data.clips={tmp_path / 'large'}"])
    size, flops = cost.trajectory_cost(large)
    assert size == 2 * 5 * 16 * 21 * 60 * 104 and flops == pytest.approx(96 * 2.9e14, rel=0.05)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1e11}))
    paths = [tmp_path / "large" / str(i) for i in range(16000)]
    with pytest.raises(RecipeError, match="data.clips: found 100.0 GB free for .*large, expected 335.5 GB"):
        cost.announce("data.clips", large.data.clips, paths, size, flops)
