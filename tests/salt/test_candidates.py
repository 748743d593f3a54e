"""Which files are offered as students: by name, metadata and names of tensors, without reading weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salt.checkpoints.candidates import likeness
from salt.spec import TINY_FOLDER, StudentSpec

WAN = "blocks.0.self_attn.q.weight"
OTHER = {"transformer_blocks.0.attn.q.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("salt_cf.pt", OTHER, "student"),
        ("krea-realtime-video-14b.safetensors", OTHER, "student"),
        ("a.pt", {"generator_ema": {f"model.{WAN}": torch.zeros(2)}}, "wan"),
        (
            "a.pt",
            {"generator": {"_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.self_attn.q.weight": torch.ones(1)}},
            "wan",
        ),
        ("a.pt", OTHER, "other"),
        ("a.safetensors", {f"model.diffusion_model.{WAN}": torch.zeros(2)}, "wan"),
        ("a.safetensors", {"blocks.0.attn1.to_qkv.weight": torch.zeros(2)}, "wan"),
        ("lora.safetensors", {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2)}, "other"),
        ("umt5.safetensors", {"blocks.0.attn.q.weight": torch.zeros(2)}, "other"),
        ("flux.safetensors", OTHER, "other"),
    ],
)
def test_files_by_name_and_tensors(tmp_path: Path, name, content, expected):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    assert likeness(path) == expected


def test_settings_in_the_metadata_and_folders(tmp_path: Path):
    save_file(OTHER, tmp_path / "mine.safetensors", metadata={"salt": json.dumps(StudentSpec().to_dict())})
    assert likeness(tmp_path / "mine.safetensors") == "student"
    assert likeness(TINY_FOLDER) == "student"
    folder = tmp_path / "wan"
    (folder / "transformer").mkdir(parents=True)
    save_file(OTHER, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    assert likeness(folder) == "wan"
    (folder / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    assert likeness(folder) == "other"


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\0\0\0\0\0\0{broken}", b"PK\x03\x04 cut short", b"version https://git-lfs"]
)
def test_what_cannot_be_read_is_offered_with_the_rest(tmp_path: Path, content):
    for name in ("a.safetensors", "b.pt"):
        (tmp_path / name).write_bytes(content)
        assert likeness(tmp_path / name) == "other"
    assert likeness(tmp_path / "gone.pt") == "other"
