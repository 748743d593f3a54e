"""All file layouts of Wan students: weights read back are bit-identical, and the model runs like the reference."""

import json
from pathlib import Path

import peft
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from salt.checkpoints import describe, load_student, read_checkpoint, save_diffusers, save_wan
from salt.checkpoints.wan_keys import to_diffusers, to_wan
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.spec import StudentSpec

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SMALL = {"num_attention_heads": 1, "attention_head_dim": 128, "ffn_dim": 96, "num_layers": 2, "text_dim": 32}
VARIANTS = {
    "T2V": {},
    "I2V": {"in_channels": 36, "image_dim": 24, "added_kv_proj_dim": 128},
    "FLF2V": {"in_channels": 36, "image_dim": 24, "added_kv_proj_dim": 128, "pos_embed_seq_len": 6},
}


def tiny(variant: str = "T2V") -> SaltTransformer3DModel:
    """A random student; all its weights differ from each other and from a new model's initial values."""
    model = SaltTransformer3DModel(**SMALL, **VARIANTS[variant])  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def wan_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {to_wan(name) or "": tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def shards(folder: Path, tensors: dict[str, torch.Tensor], stem: str = "diffusion_pytorch_model") -> None:
    """Write two safetensors files and their index."""
    names = list(tensors)
    table = {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        table |= dict.fromkeys(chosen, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def wrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as FSDP, activation checkpointing and torch.compile save them."""
    inside = "_fsdp_wrapped_module._checkpoint_wrapped_module."
    return {
        "model._orig_mod._fsdp_wrapped_module." + name.replace("self_attn.", f"{inside}self_attn."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_key_table_agrees_with_diffusers(variant: str) -> None:
    model = tiny(variant)
    theirs = convert_wan_transformer_to_diffusers(wan_names(model))
    if variant == "FLF2V":  # diffusers' converter does not know the position embedding of two images
        theirs["condition_embedder.image_embedder.pos_embed"] = theirs.pop("img_emb.emb_pos")
    assert_same(theirs, model.state_dict())
    for name in model.state_dict():
        assert to_diffusers(to_wan(name) or "") == name == to_diffusers(name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trips_are_exact(variant: str, tmp_path: Path) -> None:
    model = tiny(variant)
    wan = save_wan(model, tmp_path / "deep" / "student.safetensors")
    assert load_file(wan).keys() == wan_names(model).keys()
    folder = save_diffusers(load_student(wan), tmp_path / "diffusers")
    back = load_student(folder)
    assert_same(back.state_dict(), model.state_dict())
    assert dict(back.config) == dict(model.config)
    assert read_checkpoint(wan).variant == read_checkpoint(folder).variant == variant
    assert_same(load_student(folder / "diffusion_pytorch_model.safetensors").state_dict(), model.state_dict())
    stock = WanTransformer3DModel.from_pretrained(folder)
    assert_same(stock.state_dict(), model.state_dict())


LAYOUTS = {
    "wan.safetensors": lambda p, w, m: save_file(w, p),
    "comfy.safetensors": lambda p, w, m: save_file(prefixed(w, "diffusion_model."), p),
    "checkpoint.safetensors": lambda p, w, m: save_file(
        prefixed(w, "model.diffusion_model.") | {"vae.decoder.conv1.weight": torch.ones(2)}, p
    ),
    "diffusers.safetensors": lambda p, w, m: save_file(
        m.state_dict() | {"blocks.0.attn2.norm_added_q.weight": torch.ones(128)}, p
    ),
    "plain.pt": lambda p, w, m: torch.save(w, p),
    "self_forcing.pt": lambda p, w, m: torch.save({"generator_ema": prefixed(w, "model.")}, p),
    "longlive.pt": lambda p, w, m: torch.save({"generator": wrapped(w), "critic": {"x": torch.ones(1)}}, p),
    "model.pt": lambda p, w, m: torch.save({"model": prefixed(w, "module."), "step": 7}, p),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_single_files(name: str, tmp_path: Path) -> None:
    model = tiny("I2V")
    LAYOUTS[name](tmp_path / name, wan_names(model), model)
    assert_same(read_checkpoint(tmp_path / name).state_dict, model.state_dict())
    # A folder that contains only this file is read in the same way.
    assert_same(load_student(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("spelling", ["wan", "diffusers"])
def test_sharded_folders(spelling: str, tmp_path: Path) -> None:
    model = tiny()
    shards(tmp_path, wan_names(model) if spelling == "wan" else model.state_dict())
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors.index.json"):
        found = read_checkpoint(path)
        assert_same(found.state_dict, model.state_dict())
        assert "2 safetensors files" in found.format and spelling in found.format


def test_diffusers_and_original_wan_folders(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "pipeline" / "transformer", max_shard_size="500KB")
    assert len(list((tmp_path / "pipeline" / "transformer").glob("*.safetensors"))) > 1
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    assert_same(load_student(tmp_path / "pipeline").state_dict(), model.state_dict())

    original = tmp_path / "Wan2.1"
    original.mkdir()
    save_file(wan_names(model), original / "diffusion_pytorch_model.safetensors")
    for beside in ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"):
        torch.save({"weight": torch.ones(1)}, original / beside)
    (original / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": 2, "text_len": 512}))
    for path in (original, original / "diffusion_pytorch_model.safetensors"):
        assert load_student(path).config["num_attention_heads"] == 2


@pytest.mark.parametrize("case", ["full_4step", "framewise_4step", "full_2step_batch2"])
def test_golden_first_flow(case: str, tmp_path: Path) -> None:
    """The first block has no past, so the bidirectional model computes it too; also after a diffusers round trip."""
    golden = load_file(GOLDEN / f"rollout_{case}.safetensors")
    expected = golden["first_flow"].transpose(1, 2)
    noise = golden["noise"].transpose(1, 2)[:, :, : expected.shape[2]]
    model = load_student(GOLDEN / "tiny_a.safetensors")
    assert model.config["num_attention_heads"] == 2
    again = load_student(save_diffusers(model, tmp_path))
    stock = WanTransformer3DModel.from_pretrained(tmp_path).eval()
    for student in (model, again, stock):
        with torch.no_grad():
            flow = student(noise, torch.full((len(noise),), 1000.0), golden["context"]).sample
        assert (flow - expected).norm() / expected.norm() < 5e-5


def test_choice_of_weights(tmp_path: Path) -> None:
    kinds = {"generator": tiny(), "generator_ema": tiny(), "critic": tiny()}
    content = {kind: prefixed(wan_names(model), "model.") for kind, model in kinds.items()}
    path = tmp_path / "mine.pt"
    torch.save(content, path)
    for weights, kind in {"auto": "generator_ema", "regular": "generator", "critic": "critic"}.items():
        found = read_checkpoint(path, weights)  # type: ignore[arg-type]
        assert_same(found.state_dict, kinds[kind].state_dict())
    assert found.available == ("ema", "regular", "critic") and found.spec is None

    path = path.rename(tmp_path / "salt_ll.pt")
    found = read_checkpoint(path)
    assert_same(found.state_dict, kinds["generator"].state_dict())
    assert found.spec is not None and found.spec.policy == MemoryPolicy("sink", window=12, sink=3)


def test_spec_and_comfyui_metadata(tmp_path: Path) -> None:
    spec = StudentSpec(3, (1000.0, 500.0), 5.0, MemoryPolicy("relative", window=9, sink=1))
    path = save_wan(tiny(), tmp_path / "t2v.safetensors", spec=spec)
    assert read_checkpoint(path).spec == spec
    assert read_checkpoint(save_diffusers(tiny(), tmp_path / "folder", spec=spec)).spec == spec

    def config(path: Path) -> dict:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["config"])["transformer"]

    # Core passes every entry to its model class as an argument, so its defaults (128 per head, text 4096) are left out.
    assert config(path) == {"causal_ar": True, "text_dim": 32}
    assert config(save_wan(tiny(), path, causal_ar=False)) == {"text_dim": 32}
    assert config(save_wan(tiny("I2V"), path)) == {"text_dim": 32}
    golden = load_student(GOLDEN / "tiny_a.safetensors")
    assert config(save_wan(golden, path)) == {"causal_ar": True, "text_dim": 64, "num_heads": 2}
    assert load_student(path).config["num_attention_heads"] == 2


def test_dtypes(tmp_path: Path) -> None:
    model = tiny()
    path = save_wan(model, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert {p.dtype for p in load_student(path).parameters()} == {torch.bfloat16}
    # Modules that diffusers keeps in float32 are float32 here too, and the student runs with them.
    half = load_student(save_wan(model, path), dtype=torch.bfloat16)
    assert half.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.blocks[0].scale_shift_table.dtype == torch.float32
    x, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 5, 32)
    with torch.no_grad():
        flow = half(x.bfloat16(), torch.tensor([500.0]), text.bfloat16()).sample
        expected = model(x, torch.tensor([500.0]), text).sample
    assert flow.dtype == torch.bfloat16
    assert (flow - expected).norm() / expected.norm() < 0.05


def test_scaled_fp8(tmp_path: Path) -> None:
    """ComfyUI's two spellings of fp8 weights with scales, one per layer or one per output channel."""
    model = tiny()
    for suffix, annotation in (("scale_weight", "scaled_fp8"), ("weight_scale", "blocks.0.self_attn.q.comfy_quant")):
        tensors = {annotation: torch.zeros(2, dtype=torch.uint8)}
        expected = {}
        for name, tensor in wan_names(model).items():
            key = to_diffusers(name) or ""
            tensors[name] = expected[key] = tensor.bfloat16()
            if tensor.ndim == 2 and name.startswith("blocks."):
                rows = name.endswith("o.weight")
                scale = tensor.abs().amax(dim=1, keepdim=True) / 400 if rows else tensor.abs().max() / 400
                tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
                tensors[name.removesuffix("weight") + suffix] = scale
                tensors[name.removesuffix("weight") + "scale_input"] = torch.ones(())
                expected[key] = (tensors[name].float() * scale).bfloat16()
        path = tmp_path / f"{suffix}.safetensors"
        save_file(prefixed(tensors, "diffusion_model."), path)
        found = read_checkpoint(path)
        assert "fp8" in found.format
        assert_same(found.state_dict, expected)
        # Dequantised weights equal the original ones to fp8's three bits of mantissa.
        close = found.state_dict["blocks.1.attn1.to_q.weight"].float()
        assert (close - model.blocks[1].attn1.to_q.weight).norm() < 0.04 * close.norm()


def test_scales_in_another_shard(tmp_path: Path) -> None:
    model, table = tiny(), {}
    weights, scales, expected = {}, {}, {}
    for name, tensor in wan_names(model).items():
        weights[name], key = tensor, to_diffusers(name) or ""
        expected[key] = tensor
        if tensor.ndim == 2 and name.startswith("blocks."):
            scale = tensor.abs().max() / 400
            weights[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scales[name.removesuffix("weight") + "weight_scale"] = scale
            expected[key] = (weights[name].float() * scale).bfloat16()
    for part, held in enumerate((weights, scales), start=1):
        save_file(held, tmp_path / f"model-0000{part}-of-00002.safetensors")
        table |= dict.fromkeys(held, f"model-0000{part}-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert_same(read_checkpoint(tmp_path).state_dict, expected)


def test_what_lies_beside_good_weights(tmp_path: Path) -> None:
    """It is left alone and named by `describe`."""
    model, path = tiny(), tmp_path / "student.pt"
    weights = wan_names(model)
    for content, ignored in (
        ({"generator": weights, "critic": {}, "step": 3}, "critic, step"),
        (
            {"generator": weights | {"_extra_state": None}, "generator_ema": {}},
            "generator_ema, generator: _extra_state",
        ),
        (weights | {"n_averaged": torch.tensor(7), "epoch": 2}, "n_averaged, epoch"),
    ):
        torch.save(content, path)
        assert_same(load_student(path).state_dict(), model.state_dict())
        assert describe(path)["ignored"] == ignored


def test_other_models_in_the_same_flat_file(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "student.safetensors"
    weights, critic = wan_names(model), wan_names(tiny())
    vae = {f"vae.{part}.conv1.weight": torch.zeros(2) for part in ("encoder", "decoder")}
    unprefixed = {name: torch.zeros(2) for name in ("conv2.weight", "encoder.conv1.weight")}
    for extra, ignored in (
        (prefixed(critic, "critic."), f"critic ({len(critic)} tensors)"),
        (prefixed(critic, "my_teacher.") | vae, f"my_teacher ({len(critic)} tensors), vae (2 tensors)"),
        (unprefixed, "conv2.weight, encoder.conv1.weight"),
    ):
        for held in (weights | extra, prefixed(weights, "model.diffusion_model.") | extra):
            save_file(held, path)
            assert_same(load_student(path).state_dict(), model.state_dict())
            assert sorted(describe(path)["ignored"].split(", ")) == ignored.split(", ")
    both = prefixed(weights, "generator.") | prefixed(critic, "critic.") | {"step": torch.zeros(1)}
    torch.save(both, path)
    assert_same(load_student(path).state_dict(), model.state_dict())
    assert read_checkpoint(path).available == ("regular", "critic")
    assert sorted(describe(path)["ignored"].split(", ")) == [f"critic ({len(critic)} tensors)", "step"]


def test_another_class_name_of_the_same_model(tmp_path: Path) -> None:
    model = tiny()
    folder = save_diffusers(model, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "CausalWanTransformer3DModel"}))
    assert_same(load_student(folder).state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["longlive", "peft"])
def test_lora_is_merged(kind: str, tmp_path: Path) -> None:
    model = tiny()
    base = save_wan(model, tmp_path / "base.safetensors")
    layers = {"self_attn.q": "attn1.to_q", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj"}
    factors, expected = {}, model.state_dict()
    alpha = 4 if kind == "longlive" else 12
    for wan, name in layers.items():
        weight = expected[f"blocks.1.{name}.weight"]
        down, up = torch.randn(4, weight.shape[1]) * 0.1, torch.randn(weight.shape[0], 4) * 0.1
        inside = "_fsdp_wrapped_module." if kind == "longlive" else ""
        factors[f"base_model.model.blocks.1.{inside}{wan}.lora_A.weight"] = down
        factors[f"base_model.model.blocks.1.{inside}{wan}.lora_B.weight"] = up
        expected[f"blocks.1.{name}.weight"] = weight + alpha / 4 * up @ down
    if kind == "longlive":
        lora = tmp_path / "lora.pt"
        torch.save({"generator_lora": factors, "critic_lora": {}}, lora)
    else:
        lora = tmp_path / "adapter"
        lora.mkdir()
        save_file(factors, lora / "adapter_model.safetensors")
        peft.LoraConfig(r=4, lora_alpha=alpha).save_pretrained(str(lora))
    found = load_student(base, lora=lora)
    assert type(found) is SaltTransformer3DModel and found.state_dict().keys() == expected.keys()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    assert not torch.equal(found.blocks[1].attn1.to_q.weight, model.blocks[1].attn1.to_q.weight)
    # The merge happens in memory: the base model's mapped file is unchanged.
    assert_same(load_student(base).state_dict(), model.state_dict())
    summary = describe(lora if lora.is_file() else lora / "adapter_model.safetensors")
    assert (summary["rank"], summary["layers"], summary["alpha"]) == (4, 3, alpha)


def test_describe() -> None:
    summary = describe(GOLDEN / "tiny_a.safetensors")
    assert summary["bytes"] == (GOLDEN / "tiny_a.safetensors").stat().st_size
    known = {"variant": "T2V", "dim": 128, "heads": 2, "layers": 2, "ffn": 256, "text_dim": 64, "dtype": "float32"}
    assert summary.items() >= known.items()
    assert summary["parameters"] == sum(t.numel() for t in load_file(GOLDEN / "tiny_a.safetensors").values())
    assert "wan names" in summary["format"] and summary["available"] == ["regular"]
