"""Precomputed clips are kept by content: what changes is made anew, nothing is deleted, and both are said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from salt.checkpoints import save_diffusers
from salt.errors import InputError
from salt.io.content import path_digest
from salt.io.video import VideoWriter
from salt.spec import StudentSpec
from tests.helpers import families, tiny_recipes, tiny_system
from train.data.encode_videos import encode_videos
from train.models import student_spec

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path):
    tiny_system.vae().save_pretrained(tmp_path / "vae")
    made = tiny_recipes.recipe(
        tmp_path, models=dict(vae=str(tmp_path / "vae")), data=dict(clips=str(tmp_path / "clips"))
    )
    return replace(made, stage="tf")


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


def film(folder, name, level, frames=21, fps=16):
    path = folder / name
    with VideoWriter(folder / "film.mp4", fps=fps) as video:
        video.write(np.full((frames, 32, 32, 3), level, np.uint8))
    (folder / "film.mp4").rename(path)
    path.with_suffix(".txt").write_text(f"clip {path.stem}", encoding="utf-8-sig")


def prompts(folder):
    return sorted(safe_open(path, "pt").metadata()["prompt"] for path in folder.glob("*.safetensors"))


def test_new_videos_and_corrected_captions_are_seen(recipe, videos, tmp_path, capsys):
    film(videos, "b.mp4", 100)
    film(videos, "c.MOV", 200)
    assert encode_videos(recipe, videos, CPU) == 2 and encode_videos(recipe, videos, CPU) == 0
    film(videos, "a.MP4", 10)  # sorts first
    (videos / "b.txt").write_text("clip b, corrected")
    assert encode_videos(recipe, videos, CPU) == 2
    assert prompts(tmp_path / "clips") == ["clip a", "clip b, corrected", "clip c"]
    assert prompts(tmp_path / "clips" / "unused") == ["clip b"]
    assert "its video, caption or settings have changed" in capsys.readouterr().out
    other = tmp_path / "others"
    other.mkdir()
    film(other, "d.mp4", 50)
    assert encode_videos(recipe, other, CPU) == 1  # clips of another folder stay
    assert prompts(tmp_path / "clips") == ["clip a", "clip b, corrected", "clip c", "clip d"]


@pytest.mark.parametrize("change", ["video", "size", "vae"])
def test_what_a_clip_is_made_from_is_its_key(recipe, videos, tmp_path, change):
    film(videos, "a.mp4", 100)
    assert encode_videos(recipe, videos, CPU) == 1
    if change == "video":
        film(videos, "a.mp4", 101)
    elif change == "size":
        recipe = replace(recipe, rollout=replace(recipe.rollout, height=2))
    else:
        vae = tiny_system.vae()
        torch.nn.init.zeros_(vae.quant_conv.weight)
        vae.save_pretrained(tmp_path / "vae")
    assert encode_videos(recipe, videos, CPU) == 1 and encode_videos(recipe, videos, CPU) == 0
    assert len(prompts(tmp_path / "clips")) == 1


@pytest.mark.parametrize("damage, said", [("cut", "is damaged"), ("shape", "has other shapes")])
def test_damaged_clips_are_made_anew_and_said(recipe, videos, tmp_path, capsys, damage, said):
    film(videos, "a.mp4", 100)
    encode_videos(recipe, videos, CPU)
    (path,) = (tmp_path / "clips").glob("*.safetensors")
    before = load_file(path)["latents"].clone()  # the file is mapped
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file({"latents": before[:, :1].contiguous()}, path, metadata)
    assert encode_videos(recipe, videos, CPU) == 1
    assert torch.equal(load_file(path)["latents"], before)
    assert f"{path}: {said}; moved to" in capsys.readouterr().out


def test_the_student_decides_the_rate_and_what_the_latents_are(recipe, videos, tmp_path):
    film(videos, "a.mp4", 100, frames=42, fps=48)  # 21 frames at 24 a second, 14 at 16
    with pytest.raises(ValueError, match="has 14 frames at 16 a second, expected at least 21"):
        encode_videos(recipe, videos, CPU)
    save_diffusers(tiny_recipes.model(1), tmp_path / "student", spec=StudentSpec(fps=24))
    assert encode_videos(recipe, videos, CPU) == 1
    save_diffusers(tiny_recipes.model(1, in_channels=48, out_channels=48), tmp_path / "student")
    families.vae22().save_pretrained(tmp_path / "vae")
    assert encode_videos(recipe, videos, CPU) == 1
    (path,) = (tmp_path / "clips").glob("*.safetensors")
    assert load_file(path)["latents"].shape == (48, 6, 4, 4) and student_spec(recipe).fps == 24


def test_all_parts_of_a_long_video_are_used(recipe, videos, tmp_path):
    film(videos, "long.mp4", 100, frames=2 * 66, fps=32)  # 66 frames at 16 a second: three clips of 21
    assert encode_videos(recipe, videos, CPU) == 3
    assert prompts(tmp_path / "clips") == ["clip long"] * 3


def test_bad_folders_are_named(recipe, videos, tmp_path):
    with pytest.raises(InputError, match="videos: found no such folder .*nowhere"):
        encode_videos(recipe, tmp_path / "nowhere", CPU)
    (videos / "._a.mp4").write_bytes(b"of a Mac")
    with pytest.raises(InputError, match="videos: found no video in"):
        encode_videos(recipe, videos, CPU)
    film(videos, "a.mp4", 100)
    (videos / "notes.doc").write_bytes(b"no video")  # passed over
    (videos / "b.mp4").write_bytes(b"no video")
    (videos / "b.txt").write_text("a caption")
    with pytest.raises(ValueError, match="b.mp4: cannot be read as a video"):
        encode_videos(recipe, videos, CPU)
    (videos / "b.mp4").unlink()
    (videos / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="a.txt: not UTF-8 text"):
        encode_videos(recipe, videos, CPU)


def test_a_digest_is_of_content(tmp_path):
    (tmp_path / "a").mkdir()
    large = bytearray(20 * 2**20)
    (tmp_path / "a" / "x.bin").write_bytes(large)
    before = path_digest(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.bin").write_bytes(large)
    assert path_digest(tmp_path / "b") == before and path_digest(tmp_path / "none") == ""
    large[10 * 2**20 : 10 * 2**20 + 25_000] = b"\1" * 25_000
    (tmp_path / "b" / "x.bin").write_bytes(large)
    assert path_digest(tmp_path / "b") != before
