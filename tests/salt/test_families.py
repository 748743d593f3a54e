"""Released students of other families: their layouts are read, and `salt inspect` names every file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salt.checkpoints import load_student, read_checkpoint
from salt.checkpoints.families import KREA
from salt.cli.inspect import describe_file
from salt.memory import MemoryPolicy
from tests.salt.test_checkpoints import assert_same, prefixed, shards, tiny, wan_names

KREA_FILE = "krea-realtime-video-14b.safetensors"


def fused(tensors: dict[str, torch.Tensor], parts: tuple[str, ...], name: str) -> dict[str, torch.Tensor]:
    """The layers `parts` of every block as one layer `name`."""
    found = dict(tensors)
    for end in ("weight", "bias"):
        for first in [key for key in tensors if key.endswith(f"{parts[0]}.{end}")]:
            front = first.removesuffix(f"{parts[0]}.{end}")
            found[f"{front}{name}.{end}"] = torch.cat([found.pop(f"{front}{part}.{end}") for part in parts])
    return found


SELF = ("self_attn.q", "self_attn.k", "self_attn.v")
LAYOUTS = {
    "split": lambda x: x,
    "qkv": lambda x: fused(x, SELF, "self_attn.qkv"),
    "to_qkv": lambda x: fused(x, SELF, "self_attn.to_qkv"),
    "kv too": lambda x: fused(fused(x, SELF, "self_attn.qkv"), ("cross_attn.k", "cross_attn.v"), "cross_attn.kv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_krea_files_are_read_with_their_authors_settings(tmp_path: Path, layout: str) -> None:
    model = tiny()
    save_file(prefixed(LAYOUTS[layout](wan_names(model)), "model."), tmp_path / KREA_FILE)
    assert_same(load_student(tmp_path / KREA_FILE).state_dict(), model.state_dict())
    found = read_checkpoint(tmp_path / KREA_FILE)
    assert found.spec == KREA and not found.ignored
    assert KREA.policy == MemoryPolicy.parse("rebuild:3") and KREA.schedule.timesteps[-1] == 0 and KREA.shift == 5
    described = describe_file(tmp_path / KREA_FILE)
    assert described["model"] == "Krea realtime 14B (krea/krea-realtime-video)"
    assert "CC BY-NC-SA 4.0" in described["licence"] and "memory rebuild:3" in described["trained for"]


def test_krea_shards_of_diffusers_with_fused_layers(tmp_path: Path) -> None:
    model, folder = tiny(), tmp_path / "krea-realtime-video" / "transformer"
    folder.mkdir(parents=True)
    state = fused({k: x.clone() for k, x in model.state_dict().items()}, ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                  "attn1.to_qkv")  # fmt: skip
    shards(folder, state)
    for path in (folder, folder.parent, folder / "diffusion_pytorch_model.safetensors.index.json"):
        assert_same(load_student(path).state_dict(), model.state_dict())
        assert read_checkpoint(path).spec == KREA


def test_a_renamed_krea_file_is_an_ordinary_student(tmp_path: Path) -> None:
    save_file(prefixed(wan_names(tiny()), "model."), tmp_path / "mine.safetensors")
    assert read_checkpoint(tmp_path / "mine.safetensors").spec is None
    assert "model" not in describe_file(tmp_path / "mine.safetensors")


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


OTHERS = {
    "LongLive-2.0-5B-NVFP4-S4/model_4o6.pt": (
        {"model.blocks.0.self_attn.q.quantized_weight_values": zeros(4, 4)}, "packed NVFP4", "LongLive 2.0 5B"),
    "Wan2.2_VAE.pth": (
        {"conv2.weight": zeros(48, 48, 1, 1, 1), "encoder.conv1.weight": zeros(4, 12, 3, 3, 3),
         "decoder.conv1.weight": zeros(4, 48, 3, 3, 3)}, "Wan 2.2's autoencoder", None),
    "models_t5_umt5-xxl-enc-bf16.pth": (
        {"token_embedding.weight": zeros(8, 4), "blocks.0.attn.q.weight": zeros(4, 4)}, "UMT5 text encoder", None),
    "taew2_1.pth": ({"decoder.1.weight": zeros(4, 4, 3, 3), "encoder.0.weight": zeros(4, 3, 3, 3)}, "TAEHV", None),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_files_beside_the_students_are_named(tmp_path: Path, name: str) -> None:
    content, kind, family = OTHERS[name]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save(content, tmp_path / name)
    found = describe_file(tmp_path / name)
    assert kind in found["format"] and (family is None or family in found["model"])


@pytest.mark.parametrize("key", ["generator", "generator_ema", "state_dict"])
def test_streamdiffusionv2_files(tmp_path: Path, key: str) -> None:
    model, folder = tiny(), tmp_path / "wan_causal_dmd_v2v_14b"
    folder.mkdir()
    torch.save({key: prefixed(wan_names(model), "model.")}, folder / "model.pt")
    assert_same(load_student(folder / "model.pt").state_dict(), model.state_dict())
    assert describe_file(folder / "model.pt")["model"].startswith("StreamDiffusionV2 14B")


def test_an_anyflow_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "AnyFlowTransformer3DModel", "num_layers": 30}')
    assert "AnyFlow transformer" in describe_file(tmp_path)["format"]
