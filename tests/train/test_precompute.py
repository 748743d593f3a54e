"""Precomputing in several processes, and its size and cost beforehand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from salt.checkpoints import save_diffusers
from tests.helpers import tiny_recipes, tiny_system
from train.config.loader import load_recipe
from train.config.recipe import RecipeError
from train.data import cost, precompute
from train.data.prompts import embeddings_cache
from train.data.shards import own_shards
from train.data.start_images import StartImages
from train.data.trajectories import generate_clips

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
    again = embeddings_cache(lambda: pytest.fail("all are there"), str(tmp_path / "out"), "")
    assert again.encode(["aaa"])[0, 0, 0] == 3
    said = capsys.readouterr().out
    assert "out: 20 of 20 files to compute, at most 0.0839 GB, about 0.117 PFLOP" in said
    assert "out: 1 of 1 shards (process 1 of 2), left 0:00:00" in said


def test_embeddings_of_other_weights_are_made_anew(tmp_path, capsys):
    text, out = str(tiny_system.umt5(tmp_path / "text")), str(tmp_path / "out")
    assert precompute.precompute_embeddings(["a red circle", "a"], text, out, "cpu") == 2
    assert precompute.precompute_embeddings(["a red circle", "a"], text, out, "cpu") == 0
    weights = tmp_path / "text" / "text_encoder" / "model.safetensors"
    save_file({n: x + 1 for n, x in load_file(weights).items()}, weights, {"format": "pt"})
    assert precompute.precompute_embeddings(["a red circle", "a"], text, out, "cpu") == 2
    assert capsys.readouterr().out.count("was made by another text encoder; moved to") == 2


def test_trajectories_to_make_anew_count_as_work(tmp_path, capsys):
    recipe = ode_recipe(tmp_path, "clips")
    generate_clips(recipe, CPU)
    generate_clips(replace(recipe, start=replace(recipe.start, guidance=3.0)), CPU)
    assert capsys.readouterr().out.count("clips: 5 of 5 files to compute, ") == 2


def test_start_images_belong_to_their_picture_and_prompt(tmp_path, capsys):
    parts, pictures = tiny_system.folder(tmp_path / "parts"), tmp_path / "pictures"
    tiny_system.image_encoder(parts)
    pictures.mkdir()
    Image.new("RGB", (32, 32)).save(pictures / "².png")  # str.isdigit, but no number
    for line, colour in enumerate(("red", "green")):
        Image.new("RGB", (32, 32), colour).save(pictures / f"{line}.png")
    (tmp_path / "p.txt").write_text("a red circle\na green circle\n")
    data = dict(prompts=str(tmp_path / "p.txt"), images=str(tmp_path / "images"))
    save_diffusers(tiny_recipes.model(1, in_channels=36, image_dim=48, added_kv_proj_dim=32), tmp_path / "i2v")
    models = dict(text=str(parts), student=str(tmp_path / "i2v"))
    recipe = tiny_recipes.recipe(tmp_path, models=models, data=data)
    assert precompute.precompute_start_images(recipe, pictures, "cpu") == 2
    assert precompute.precompute_start_images(recipe, pictures, "cpu") == 0
    Image.new("RGB", (32, 32), "blue").save(pictures / "1.png")
    assert precompute.precompute_start_images(recipe, pictures, "cpu") == 1
    assert "000001.safetensors: was made from other files or settings" in capsys.readouterr().out
    prompts = ["a red circle", "a green circle"]
    assert StartImages(recipe, CPU, prompts)([0, 1])[0].shape[0] == 2
    with pytest.raises(RecipeError, match="000000.safetensors of the prompt 'a red circle', expected 'a green circle'"):
        StartImages(recipe, CPU, prompts[::-1])([0])
    larger = replace(recipe, rollout=replace(recipe.rollout, height=8))
    with pytest.raises(RecipeError, match=r"000000.safetensors of .*, expected frames and size \(6, 8, 4\)"):
        StartImages(larger, CPU, prompts)([0])
    (tmp_path / "images" / "000000.safetensors").write_bytes(b"cut")
    with pytest.raises(RecipeError, match="found a damaged file .*000000.safetensors"):
        StartImages(recipe, CPU, prompts)([0])


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
