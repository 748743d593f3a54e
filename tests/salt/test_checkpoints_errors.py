"""Invalid checkpoints: each raises one `CheckpointError` that names the file, what was found and what is expected."""

import errno
import importlib.util
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salt.checkpoints import CheckpointError, describe, load_student, read_checkpoint, save_diffusers, save_wan
from salt.checkpoints.lora import read_lora
from salt.checkpoints.wan_keys import to_wan
from salt.checkpoints.writer import write_safetensors
from salt.io import atomic
from salt.models.transformer_salt import SaltTransformer3DModel

SALT = Path(atomic.__file__).parents[1]
SMALL = {"num_attention_heads": 1, "attention_head_dim": 128, "ffn_dim": 96, "num_layers": 2, "text_dim": 32}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    model = SaltTransformer3DModel(**SMALL)  # type: ignore[arg-type]
    return {to_wan(name) or "": tensor for name, tensor in model.state_dict().items()}


def error_of(path: Path, action: Callable[[Path], Any] = read_checkpoint) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(path)
    message = str(caught.value)
    assert path.name in message and len(message) < 1200, message
    return message


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_files(suffix: str, part: float, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"student.{suffix}"
    save_file(weights, path) if suffix == "safetensors" else torch.save({"generator": weights}, path)
    read_checkpoint(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert ("damaged or cut short" if part else "empty") in error_of(path)
    assert error_of(path, describe) == error_of(path, load_student)


class Payload:
    """Unpickling this would create the folder `trace`."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


def test_code_is_never_run(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    torch.save({"generator": weights, "extra": Payload(trace)}, path)
    message = error_of(path)
    assert "none of it was run" in message and "mkdir" in message
    path.write_bytes(pickle.dumps(Payload(trace)))
    assert "bare pickle" in error_of(path)
    path.write_bytes(pickle.dumps({"generator_lora": Payload(trace)}, protocol=0))
    assert "bare pickle" in error_of(path)
    assert not trace.exists()
    # The payload works: a loader that ran it would have created the folder.
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()


OTHER_MODELS = {
    "Stable Diffusion UNet": ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight", "img_in.weight"],
    "a diffusers UNet": ["down_blocks.0.resnets.0.conv1.weight", "mid_block.attentions.0.norm.weight"],
    "an autoencoder": ["decoder.up_blocks.0.resnets.0.conv1.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"],
    "a LoRA": ["lora_unet_down_blocks_0_attn.lora_down.weight"],
    "a CLIP text encoder": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "autoencoder": ["decoder.conv1.weight", "encoder.conv1.weight"],
    "T5 text encoder": ["encoder.block.0.layer.0.weight", "shared.weight"],
    "another model": ["wte.weight"],
}


@pytest.mark.parametrize("what", OTHER_MODELS)
def test_another_architecture(what: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.ones(2, 2) for name in OTHER_MODELS[what]}, path)
    message = error_of(path)
    assert what in message and "expected a Wan 2.1 transformer" in message


def test_other_models_of_the_wan_family(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    image = weights["patch_embedding.weight"].squeeze(2).contiguous()
    save_file(weights | {"patch_embedding.weight": image}, path)
    assert "image model" in error_of(path)
    save_file(weights | {"patch_embedding.weight": torch.zeros(128, 48, 1, 2, 2)}, path)
    assert "48 input and 16 output channels" in error_of(path)
    vace = {f"vace_blocks.{i}.after_proj.weight": torch.zeros(1) for i in range(9)}
    save_file(weights | vace, path)
    message = error_of(path)
    assert "9 unexpected: vace_blocks.0.after_proj.weight" in message and "vace_blocks.7" not in message


def test_missing_unexpected_and_misshapen(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    del weights["blocks.1.ffn.2.bias"]
    weights["blocks.0.self_attn.k.weight"] = torch.zeros(64, 128)
    weights["blocks.0.self_attn.gate"] = torch.zeros(1)
    save_file(weights, path)
    message = error_of(path)
    assert "1 missing: blocks.1.ffn.net.2.bias" in message
    assert "1 unexpected: blocks.0.self_attn.gate" in message
    assert "1 misshapen: blocks.0.attn1.to_k.weight [64, 128] (expected [128, 128])" in message
    save_file({name: tensor for name, tensor in weights.items() if "patch_embedding" not in name}, path)
    assert "patch_embedding.weight is missing" in error_of(path)
    save_file({f"{owner}{name}": t.clone() for name, t in weights.items() for owner in ("", "model.")}, path)
    assert "both" in error_of(path)


def test_a_config_that_does_not_fit_the_tensors(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_file(weights, path, {"config": json.dumps({"dim": 256, "heads": 2})})
    assert "dim 256 (tensors: 128)" in error_of(path)
    save_file(weights, path, {"config": json.dumps({"heads": 3})})
    assert "do not divide" in error_of(path)
    save_file(weights, path, {"config": "{"})
    assert "no valid JSON" in error_of(path)
    save_file(weights, path, {"salt": json.dumps({"policy": {"kind": "elephant"}})})
    assert "elephant" in error_of(path)
    save_file(weights, path, {"salt_size": json.dumps({"height": -1, "width": 64})})
    assert "its metadata salt_size.height: found -1" in error_of(path)
    (tmp_path / "config.json").write_text("[]")
    assert "expected a JSON object" in error_of(tmp_path)


def test_weights_that_the_file_does_not_have(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    torch.save({"generator": weights}, path)
    assert "no ema weights; it has regular" in error_of(path, lambda path: read_checkpoint(path, "ema"))
    torch.save({"critic": weights}, path)
    assert "no ema or regular weights; it has critic" in error_of(path)
    torch.save({"step": 3, "optimizer": {}}, path)
    assert "step, optimizer; expected" in error_of(path).replace("holds ", "")
    torch.save([1], path)
    assert "holds a list" in error_of(path)


def test_names_that_are_no_text(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    odd = {0: torch.zeros(2), None: 1}
    for wrapped in (dict, lambda content: {"model": content}):
        torch.save(wrapped({**weights, None: 1, 1: torch.tensor(1)}), path)
        assert len(read_checkpoint(path).ignored) == 2 and "None" in describe(path)["ignored"]
        torch.save(wrapped({**weights, **odd}), path)
        assert "1 unexpected: 0" in error_of(path)
    name = "base_model.model.blocks.0.self_attn.q.lora_"
    pair = {f"{name}A.weight": torch.zeros(4, 128), f"{name}B.weight": torch.zeros(128, 4)}
    for content in ({**pair, **odd}, {"generator_lora": {**pair, **odd}}):
        torch.save(content, path)
        assert "found 1 names that no LoRA for Wan has: 0;" in error_of(path, read_lora)


def test_loras(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    base, lora = tmp_path / "base.safetensors", tmp_path / "lora.pt"
    save_file(weights, base)
    name = "base_model.model.blocks.0.self_attn.q.lora_"
    pair = {f"{name}A.weight": torch.zeros(4, 128), f"{name}B.weight": torch.zeros(128, 4)}

    def merge(path: Path) -> Any:
        return load_student(base, lora=path)

    torch.save({"generator_lora": pair}, lora)
    assert "is a LoRA: load its base model" in error_of(lora)
    merge(lora)
    torch.save({"generator_lora": {f"{name}A.weight": torch.zeros(4, 128)}}, lora)
    assert "1 factors for 1 layers" in error_of(lora, merge)
    torch.save({"generator_lora": pair | {"unet.x.lora_A.weight": torch.zeros(4, 4)}}, lora)
    assert "unet.x.lora_A.weight" in error_of(lora, merge)
    torch.save({"generator_lora": pair | {f"{name}A.weight": torch.zeros(4, 64)}}, lora)
    assert "blocks.0.attn1.to_q.lora_A.weight [4, 64]" in error_of(lora, merge)
    assert "is not a LoRA" in error_of(base, merge)


def test_errors_are_named_without_the_path_of_the_pack() -> None:
    """ComfyUI imports a pack under its path, and shows an error's class with its module."""
    pack = "/home/me/custom_nodes/Salt"
    spec = importlib.util.spec_from_file_location(pack, SALT / "__init__.py", submodule_search_locations=[str(SALT)])
    assert spec is not None
    sys.modules[pack] = importlib.util.module_from_spec(spec)
    try:
        for module, name in (("errors", "InputError"), ("models.word_embedder", "UnknownWordError")):
            error = getattr(importlib.import_module(f"{pack}.{module}"), name)
            assert error is not getattr(importlib.import_module(f"salt.{module}"), name)
            assert "/home/me" not in error.__module__
    finally:
        for module in [name for name in sys.modules if name.startswith(pack)]:
            del sys.modules[module]


def test_missing_files_and_files_of_other_formats(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "nowhere.pt")
    for content, what in (
        (b"GGUF\x03\x00\x00\x00\x00\x00", "GGUF"),
        (b"version git-lfs/spec/v1\noid", "git-LFS pointer"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a web page, not weights: the download failed"),
        (b"Invalid username or password.", "a text that begins with 'Invalid username"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09", "neither"),
    ):
        path = tmp_path / "student.safetensors"
        path.write_bytes(content)
        assert what in error_of(path)
    path.unlink()
    assert "found none" in error_of(tmp_path)
    save_file(weights, tmp_path / "a.safetensors")
    save_file(weights, tmp_path / "b.safetensors")
    assert "a.safetensors, b.safetensors" in error_of(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "gone.safetensors"}}))
    assert "1 of its 2 files are missing: gone.safetensors" in error_of(index)
    save_file({"blocks.0.self_attn.q.weight": torch.zeros(1)}, tmp_path / "gone.safetensors")
    assert "both hold blocks.0.self_attn.q.weight" in error_of(index)
    index.write_text("[]")
    assert "expected a JSON object" in error_of(index)
    save_file(weights | {"blocks.0.ffn.0.weight": torch.zeros(96, 64, dtype=torch.uint8)}, path)
    assert "torch.uint8" in error_of(path)


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "..\\a.safetensors", "C:a", "a\0", 7, ["a"]])
def test_an_index_that_names_files_outside_its_folder(name: object, tmp_path: Path) -> None:
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.parent.mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    assert "weight_map: found the file name" in error_of(index)


@pytest.mark.parametrize("save", [save_wan, save_diffusers])
def test_a_failed_write_loses_nothing(save: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> None:
    model = SaltTransformer3DModel(**SMALL)  # type: ignore[arg-type]
    target = tmp_path / "student.safetensors"
    save(model, target)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    assert "No space left" in error_of(target, lambda path: save(model, path, dtype=torch.bfloat16))
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.undo()
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(model, blocked / "student.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "student.safetensors"]


def test_models_with_other_weights_are_not_written(tmp_path: Path) -> None:
    model = SaltTransformer3DModel(**SMALL)  # type: ignore[arg-type]
    model.register_parameter("elsewhere", torch.nn.Parameter(torch.zeros(1)))
    assert "elsewhere" in error_of(tmp_path / "x.safetensors", lambda path: save_wan(model, path))
    assert not list(tmp_path.iterdir())


def test_safetensors_reads_the_written_bytes(tmp_path: Path) -> None:
    """safetensors itself reads what `write_safetensors` streams, for every dtype and for scalars."""
    tensors = {
        "half": torch.randn(3, 5).bfloat16(),
        "odd": torch.arange(7, dtype=torch.uint8),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "eight": torch.randn(5).to(torch.float8_e4m3fn),
        "slanted": torch.randn(4, 6).t(),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors, None, {"note": "ä"})
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name].float(), tensor.float())
