"""LongLive 2.0's released layouts, made from a small model of Wan 2.2 TI2V's shape, and what their settings are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salt.checkpoints import describe, load_student, read_checkpoint
from salt.checkpoints.families import STUDENTS
from salt.checkpoints.longlive2 import LONGLIVE2, TWO_STEPS
from salt.checkpoints.tensor_files import CheckpointError
from salt.checkpoints.wan22 import WAN22
from salt.checkpoints.wan_keys import to_wan
from salt.cli.inspect import describe_file
from salt.errors import InputError
from salt.pipeline.checkpoint import load_transformer
from salt.pipeline.from_options import PipelineOptions, load_pipeline
from salt.spec import StudentSpec
from tests.helpers import golden_longlive2 as longlive2


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """By diffusers' names."""
    return longlive2.student().state_dict()


def layout(kind: str, tensors: dict[str, torch.Tensor]) -> dict:
    wan = {f"model.{to_wan(name)}": x.clone() for name, x in tensors.items()}
    if kind == "generator_ema":
        inside = {name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): x for name, x in wan.items()}
        return {"generator_ema": inside, "step": 3000}
    if kind == "merged":
        facts = {"checkpoint_format": "merged", "merged_lora": "lora.pt", "model_name": "Wan2.2-TI2V-5B"}
        return {"generator": wan, **facts, "dtype": "bfloat16"}
    return {name.removeprefix("model."): x for name, x in wan.items()} if kind == "bare" else {kind: wan}


@pytest.mark.parametrize("kind", ["generator", "generator_ema", "model", "merged", "bare"])
def test_every_layout_is_read(kind: str, tensors, tmp_path: Path) -> None:
    torch.save(layout(kind, tensors), tmp_path / "model_bf16.pt")
    found = load_student(tmp_path / "model_bf16.pt")
    assert all(torch.equal(found.state_dict()[name], x) for name, x in tensors.items())
    assert read_checkpoint(tmp_path / "model_bf16.pt").spec == LONGLIVE2
    assert LONGLIVE2.schedule.timesteps == (999, 937, 833, 624)


@pytest.mark.parametrize(("folder", "steps"), [("LongLive-2.0-5B-NVFP4-S2", 2), ("LongLive-2.0-5B-NVFP4-S4", 4)])
def test_the_folder_names_the_steps(folder: str, steps: int, tensors, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    torch.save(layout("generator", tensors), tmp_path / folder / "model_te.pt")
    spec = read_checkpoint(tmp_path / folder / "model_te.pt").spec
    assert spec is not None and len(spec.steps) == steps
    assert replace(spec, steps=LONGLIVE2.steps) == LONGLIVE2


def test_inspect_names_the_file(tensors, tmp_path: Path) -> None:
    torch.save(layout("merged", tensors), tmp_path / "model_bf16.pt")
    assert describe(tmp_path / "model_bf16.pt")["variant"] == "TI2V"
    text = describe_file(tmp_path / "model_bf16.pt")["trained for"]
    assert text.startswith("4 steps, blocks of 8, shift 5, memory shots:8,window:32,offset:8")
    assert "longlive2" in text and "unipc" in text and "24 fps" in text


@pytest.mark.parametrize("nested", [False, True])
def test_packed_weights_are_refused_by_name(nested: bool, tmp_path: Path) -> None:
    packed = {"model.blocks.0.ffn.0.quantized_weight_values": torch.zeros(4, 4, dtype=torch.uint8)}
    torch.save({"generator": packed} if nested else packed, tmp_path / "model_4o6.pt")
    with pytest.raises(CheckpointError, match="NVFP4.*expected the bfloat16 file.*model_te.pt") as caught:
        load_student(tmp_path / "model_4o6.pt")
    assert "model_4o6.pt" in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_lora_of_rank_128_is_merged(tensors, tmp_path: Path) -> None:
    torch.save(layout("bare", tensors), tmp_path / "base.pt")
    down, up = torch.randn(128, 128) * 0.01, torch.randn(128, 128) * 0.01
    name = "model.blocks.0._fsdp_wrapped_module.self_attn.q"
    pair = {f"base_model.{name}.lora_A.default.weight": down, f"base_model.{name}.lora_B.default.weight": up}
    torch.save({"generator_lora": pair}, tmp_path / "lora.pt")
    found = load_student(tmp_path / "base.pt", lora=tmp_path / "lora.pt").blocks[0].attn1.to_q.weight
    torch.testing.assert_close(found, tensors["blocks.0.attn1.to_q.weight"] + up @ down, rtol=1e-5, atol=1e-6)


def test_settings_are_stored_and_read() -> None:
    assert StudentSpec.from_dict(LONGLIVE2.to_dict()) == LONGLIVE2
    with pytest.raises(ValueError, match="rule"):
        StudentSpec.from_dict({**LONGLIVE2.to_dict(), "rule": "wan3"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wan2.2_ti2v_5B_fp16.safetensors", WAN22),
        ("Wan2.2-TI2V-5B/diffusion_pytorch_model.safetensors", WAN22),
        ("LongLive2_bf16.safetensors", LONGLIVE2),
        ("LongLive-2.0-5B-S2/wan2.2_ti2v_5b.safetensors", TWO_STEPS),
        ("renamed.safetensors", None),
        ("renamed.pt", LONGLIVE2),
    ],
)
def test_names_tell_the_plain_model_from_longlive(name, expected, tensors, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    wan = layout("bare", tensors)
    torch.save(wan, file) if file.suffix == ".pt" else save_file(wan, file)
    assert read_checkpoint(file).spec == expected
    assert ("and the plain" in describe_file(file).get("student", "")) == (expected is None)


def test_what_may_be_either_has_to_be_named(tensors, tmp_path: Path) -> None:
    save_file(layout("bare", tensors), tmp_path / "renamed.safetensors")
    with pytest.raises(InputError) as error:
        load_transformer(tmp_path / "renamed.safetensors", "auto", None, None)
    assert error.value.field == "student" and "say longlive2, longlive2-s2 or wan22" in str(error.value)
    for name in ("longlive2", "wan22"):
        spec = STUDENTS[name]
        assert load_transformer(tmp_path / "renamed.safetensors", "auto", None, None, spec)[1] == spec
    with pytest.raises(InputError, match="student: found 'wan3', expected one of self-forcing, .*longlive, longlive2"):
        load_pipeline(PipelineOptions(model=str(tmp_path / "renamed.safetensors"), student="wan3"), torch.device("cpu"))
    with pytest.raises(InputError, match="student has no effect with salt-tiny"):
        load_pipeline(PipelineOptions(student="krea"), torch.device("cpu"))
