"""LoRA files of every spelling: the scale of each layer, what they add to which weight, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from salt.checkpoints import CheckpointError, LoraFile, describe, load_student, save_wan
from salt.checkpoints.lora import read_lora
from salt.checkpoints.lora_merge import merge_loras
from salt.errors import InputError
from salt.memory import MemoryFileError, load_memory, save_memory
from salt.models.fingerprint import fingerprint
from salt.models.transformer_salt import SaltTransformer3DModel
from tests.helpers import tiny_system

SMALL = {"num_attention_heads": 1, "attention_head_dim": 128, "ffn_dim": 96, "num_layers": 2, "text_dim": 32}
LAYER, WEIGHT = "blocks.1.self_attn.q", "blocks.1.attn1.to_q.weight"
RANK = 4
Tensors = dict[str, torch.Tensor]


def student() -> SaltTransformer3DModel:
    torch.manual_seed(0)
    return SaltTransformer3DModel(**SMALL).eval()  # type: ignore[arg-type]


def pair(layer: str = f"diffusion_model.{LAYER}", ends: str = "lora_A lora_B", rank: int = RANK) -> Tensors:
    torch.manual_seed(1)
    down, up = ends.split()
    return {f"{layer}.{down}.weight": torch.randn(rank, 128), f"{layer}.{up}.weight": torch.randn(128, rank)}


def added(file: Path, strength: float = 1.0, weight: str = WEIGHT) -> torch.Tensor:
    model = student()
    merge_loras(model, LoraFile(file, strength))
    return model.get_parameter(weight) - student().get_parameter(weight)


def assert_scale(file: Path, factors: Tensors, scale: float) -> None:
    down, up = (factor for name, factor in factors.items() if factor.ndim == 2)
    torch.testing.assert_close(added(file), scale * (up @ down), rtol=1e-5, atol=1e-5)


KOHYA = "lora_down lora_up"
FLAT = "lora_unet_" + LAYER.replace(".", "_")
ALPHA = torch.tensor(2.0)
# Tensors, header, expected scale.
FILES: dict[str, tuple[Tensors, dict[str, str], float]] = {
    "nothing said": (pair(), {}, 1),
    "diffusers' names": (pair("transformer.blocks.1.attn1.to_q"), {}, 1),
    "peft's adapter name": (pair(f"base_model.model.{LAYER}", "lora_A.default lora_B.default"), {}, 1),
    "ComfyUI's alpha": (pair(ends=KOHYA) | {f"diffusion_model.{LAYER}.alpha": ALPHA}, {}, 0.5),
    "musubi's alpha": (pair(FLAT, KOHYA) | {f"{FLAT}.alpha": ALPHA}, {"ss_network_alpha": "8"}, 0.5),
    "Wan Fun's prefix": (pair(FLAT.replace("unet_", "unet__"), "lora.down lora.up"), {}, 1),
    "kohya's header": (pair(FLAT, KOHYA), {"ss_network_alpha": "8", "ss_network_dim": "4"}, 2),
    "kohya's None": (pair(FLAT, KOHYA), {"ss_network_alpha": "None"}, 1),
    "alpha of a header that is the rank": (pair(), {"lora_alpha": "4"}, 1),
    "diffusers' header": (
        pair("transformer.blocks.1.attn1.to_q"),
        {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 16, "transformer.r": 4})},
        4,
    ),
    "diffusers' header with patterns": (
        pair("transformer.blocks.1.attn1.to_q"),
        {
            "lora_adapter_metadata": json.dumps(
                {
                    "transformer.lora_alpha": 16,
                    "transformer.r": 8,
                    "transformer.rank_pattern": {"^blocks.1.attn1.to_q": 4},
                    "transformer.alpha_pattern": {"to_q": 12},
                }
            )
        },
        3,
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_scale_in_the_file(case: str, tmp_path: Path) -> None:
    factors, header, scale = FILES[case]
    save_file(factors, tmp_path / "lora.safetensors", header)
    assert_scale(tmp_path / "lora.safetensors", factors, scale)
    assert describe(tmp_path / "lora.safetensors")["scale"] == scale


# Fields of adapter_config.json beside rank 4 and alpha 6, expected scale.
CONFIGS: dict[str, tuple[dict[str, Any], float]] = {
    "alpha": ({}, 1.5),
    "rslora": ({"use_rslora": True}, 3),
    "null alpha": ({"lora_alpha": None}, 1),
    "alpha_pattern": ({"alpha_pattern": {"self_attn.q": 2}}, 0.5),
    "rank_pattern": ({"r": 64, "rank_pattern": {r".*\.q": 4}}, 1.5),
    "fields without effect": ({"lora_dropout": 0.1, "target_modules": ["q"], "init_lora_weights": "gaussian"}, 1.5),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_scale_in_peft_config(case: str, tmp_path: Path) -> None:
    fields, scale = CONFIGS[case]
    factors = pair(f"base_model.model.{LAYER}")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6} | fields))
    save_file(factors, tmp_path / "adapter_model.safetensors")
    assert_scale(tmp_path, factors, scale)
    # The settings belong to adapter_model.safetensors, not to another file in its folder.
    save_file(factors, tmp_path / "another.safetensors")
    assert_scale(tmp_path / "another.safetensors", factors, 1)


# Tensors, header or config, part of the error.
REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "DoRA": (pair() | {f"diffusion_model.{LAYER}.dora_scale": torch.ones(128, 1)}, {}, "is DoRA"),
    "LoHa": ({f"diffusion_model.{LAYER}.hada_w1_a": torch.ones(4, 4)}, {}, "is LoHa"),
    "LoKr": ({f"{FLAT}.lokr_w1": torch.ones(4, 4)}, {}, "is LoKr"),
    "another model": (pair("transformer.single_blocks.0.to_q"), {}, "names that no LoRA for Wan has"),
    "half a pair": ({k: v for k, v in pair().items() if "lora_A" in k}, {}, "1 factors for 1 layers"),
    "rank 0": (pair(rank=0), {}, "expected pairs lora_A, lora_B of one rank"),
    "alpha 0": (pair() | {f"diffusion_model.{LAYER}.alpha": torch.tensor(0.0)}, {}, "a scale of"),
    "converted or not": (pair(), {"ss_network_alpha": "1"}, "without alpha tensors"),
    "another rank": (pair(ends=KOHYA), {"ss_network_alpha": "1", "ss_network_dim": "32"}, "says rank 32"),
    "another tool's alpha": (pair(), {"lora_alpha": "16"}, "found lora_alpha '16' for rank 4"),
    "another tool's scale": (pair(), {"scale": "0.5"}, "found scale '0.5'"),
    "no number": (pair(ends=KOHYA), {"ss_network_alpha": "Dynamic"}, "found 'Dynamic'"),
    "use_dora": (pair(), {"r": 4, "use_dora": True}, "use_dora=True"),
    "a field to come": (pair(), {"r": 4, "lora_gamma": 3}, "lora_gamma=3"),
    "changed base": (pair(), {"r": 4, "init_lora_weights": "pissa_niter_4"}, "pissa"),
    "peft's rank": (pair(), {"r": 32}, "says rank 32"),
    "pattern of nothing": (pair(), {"r": 4, "alpha_pattern": {"to_qkv": 2}}, "fits none"),
    "LoHa of peft": (pair(), {"peft_type": "LOHA"}, "expected LORA"),
    "alpha in words": (pair(), {"r": 4, "lora_alpha": "four"}, "lora_alpha 'four'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    tensors, facts, expected = REFUSED[case]
    header = {} if "r" in facts or "peft_type" in facts else facts
    save_file(tensors, tmp_path / "adapter_model.safetensors", header)
    if facts is not header:
        (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError) as caught:
        read_lora(tmp_path)
    message = str(caught.value)
    assert expected in message and len(message.replace(str(tmp_path), "")) <= 400


def test_whole_differences(tmp_path: Path) -> None:
    """lightx2v's diff (a weight), diff_b (a bias) and diff_m (a modulation), beside factors."""
    changes = {
        "blocks.0.norm3.diff": ("blocks.0.norm2.weight", torch.randn(128)),
        "blocks.0.ffn.0.diff_b": ("blocks.0.ffn.net.0.proj.bias", torch.randn(96)),
        "blocks.0.diff_m": ("blocks.0.scale_shift_table", torch.randn(1, 6, 128)),
        "head.diff_m": ("scale_shift_table", torch.randn(1, 2, 128)),
        "head.head.diff": ("proj_out.weight", torch.randn(64, 128)),
        "patch_embedding.diff": ("patch_embedding.weight", torch.randn(128, 16, 1, 2, 2)),
    }
    file = tmp_path / "lora.safetensors"
    save_file({f"diffusion_model.{name}": value for name, (_, value) in changes.items()} | pair(ends=KOHYA), file)
    for weight, value in changes.values():
        torch.testing.assert_close(added(file, 0.5, weight), 0.5 * value, rtol=1e-5, atol=1e-5)
    assert added(file).any()


def test_several_with_strengths_and_mixed_ranks(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    second = "diffusion_model.blocks.0.cross_attn.v"
    save_file(pair() | pair(second, rank=8), a)
    save_file(pair(), b)
    base = save_wan(student(), tmp_path / "base.safetensors")
    down, up = pair().values()
    found = load_student(base, lora=[LoraFile(a, 0.8), b])
    torch.testing.assert_close(found.get_parameter(WEIGHT), student().get_parameter(WEIGHT) + 1.8 * up @ down)
    down, up = pair(second, rank=8).values()
    weight = "blocks.0.attn2.to_v.weight"
    torch.testing.assert_close(found.get_parameter(weight), student().get_parameter(weight) + 0.8 * up @ down)
    assert describe(a)["rank"] == "4 to 8"


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "a.safetensors")
    model, plain = student().bfloat16(), student()
    base = plain.get_parameter(WEIGHT).bfloat16()
    down, up = pair().values()
    merge_loras(model, [LoraFile(tmp_path / "a.safetensors", 0.01)] * 3)
    assert torch.equal(model.get_parameter(WEIGHT), (base.float() + 3 * 0.01 * (up @ down)).bfloat16())


def test_a_lora_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "good.safetensors")
    save_file(pair("diffusion_model.blocks.7.self_attn.q"), tmp_path / "deep.safetensors")
    model = student()
    with pytest.raises(CheckpointError, match=r"deep\.safetensors: 2 tensors do not fit .*blocks\.7\.attn1\.to_q"):
        merge_loras(model, [tmp_path / "good.safetensors", tmp_path / "deep.safetensors"])
    assert torch.equal(model.get_parameter(WEIGHT), student().get_parameter(WEIGHT))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.safetensors", 1), ("a.safetensors:0.8", 0.8), ("a.safetensors:-1", -1), ("C:\\a.safetensors", 1)],
)
def test_strength_on_the_command_line(text: str, expected: float) -> None:
    file = LoraFile.parse(text)
    assert file.strength == expected and str(file.path).endswith("a.safetensors")


@pytest.mark.parametrize("strength", ["0", "nan", "inf", "strong"])
def test_strengths_that_are_refused(strength: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(InputError, match=r"lora: found strength .*a\.safetensors, expected a number"):
        LoraFile.parse(f"{file}:{strength}")


def pipeline_lora(path: Path, **more: torch.Tensor) -> Path:
    """For `tiny_system`'s student, which is 32 wide."""
    torch.manual_seed(2)
    layer = "diffusion_model.blocks.1.self_attn.q"
    factors = {f"{layer}.lora_down.weight": torch.randn(4, 32), f"{layer}.lora_up.weight": torch.randn(32, 4)}
    save_file(factors | {f"{layer}.alpha": torch.tensor(2.0)} | more, path)
    return path


def latents(pipe: Any, **options: Any) -> torch.Tensor:
    return pipe("a red circle", num_frames=9, num_inference_steps=2, seed=0, output_type="latent", **options).latents


def test_adapters_of_the_pipeline(tmp_path: Path) -> None:
    """diffusers' methods give what merging gives; the fingerprint, which memories carry, follows them."""
    bias = {"diffusion_model.blocks.0.cross_attn.o.diff_b": torch.randn(32)}
    file = pipeline_lora(tmp_path / "lora.safetensors", **bias)
    pipe, merged, half = tiny_system.pipeline(), tiny_system.pipeline(), tiny_system.pipeline()
    plain, identity = latents(pipe), fingerprint(pipe.transformer)
    merge_loras(merged.transformer, file)
    merge_loras(half.transformer, LoraFile(file, 0.5))
    expected, expected_half = latents(merged), latents(half)
    assert (expected - plain).abs().max() > 1e-2

    def same(found: torch.Tensor, right: torch.Tensor) -> bool:
        return torch.allclose(found, right, atol=1e-4)

    pipe.load_lora_weights(file, adapter_name="style")
    identities = {identity, fingerprint(pipe.transformer)}
    assert same(latents(pipe), expected)
    pipe.set_adapters("style", 0.5)
    identities.add(fingerprint(pipe.transformer))
    assert same(latents(pipe), expected_half) and len(identities) == 3
    pipe.disable_lora()
    assert same(latents(pipe), plain) and fingerprint(pipe.transformer) == identity
    pipe.enable_lora()
    pipe.set_adapters("style")
    pipe.fuse_lora(components=["transformer"])
    assert same(latents(pipe), expected)
    pipe.unfuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    assert same(latents(pipe), plain)


def test_a_memory_of_another_lora_is_refused_by_name(tmp_path: Path) -> None:
    file = pipeline_lora(tmp_path / "style.safetensors")
    plain, styled = tiny_system.pipeline(), tiny_system.pipeline()
    merge_loras(styled.transformer, LoraFile(file, 0.5))

    def clip(pipe: Any, **more: Any) -> Any:
        return pipe("a red circle", num_inference_steps=2, seed=0, output_type="latent", **more)

    memory = clip(styled, num_frames=9).memory
    with pytest.raises(InputError, match=r"another model or LoRA.*with LoRA style\.safetensors:0\.5, expected"):
        clip(plain, num_frames=12 + 9, memory=memory)
    assert clip(styled, num_frames=12 + 9, memory=memory).memory is memory
    save_memory(memory, tmp_path / "memory.safetensors")
    with pytest.raises(MemoryFileError, match=r"with LoRA style\.safetensors:0\.5"):
        load_memory(tmp_path / "memory.safetensors", fingerprint=fingerprint(plain.transformer))
    # A file that an older version wrote has no names.
    load_memory(tmp_path / "memory.safetensors", fingerprint=fingerprint(styled.transformer).partition(" ")[0])


def test_what_an_adapter_cannot_do(tmp_path: Path) -> None:
    pipe = tiny_system.pipeline()
    zero = {"diffusion_model.blocks.0.norm3.diff": torch.zeros(32)}
    pipe.load_lora_weights(pipeline_lora(tmp_path / "zero.safetensors", **zero))
    other = {"diffusion_model.blocks.0.norm3.diff": torch.ones(32)}
    nothing = tmp_path / "nothing.safetensors"
    save_file(zero, nothing)
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: changes nothing"):
        pipe.load_lora_weights(nothing)
    file = pipeline_lora(tmp_path / "norm.safetensors", **other)
    with pytest.raises(CheckpointError, match=r"norm\.safetensors: changes blocks\.0\.norm2\.weight"):
        pipe.load_lora_weights(file)


def test_scale_of_one_call(tmp_path: Path) -> None:
    """`attention_kwargs` scales the adapters of one call, and leaves their own weights as they were."""
    pipe = tiny_system.pipeline()
    plain = latents(pipe)
    pipe.load_lora_weights(pipeline_lora(tmp_path / "lora.safetensors"), adapter_name="style")
    pipe.set_adapters("style", 0.5)
    half = latents(pipe)
    assert torch.allclose(latents(pipe, attention_kwargs={"scale": 0.0}), plain, atol=1e-5)
    assert torch.equal(latents(pipe), half)
    with pytest.raises(InputError, match="attention_kwargs: found ip_scale"):
        latents(pipe, attention_kwargs={"ip_scale": 1.0})


def test_factors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    tensors = {name: x.clone() for name, x in pair().items()}
    next(iter(tensors.values()))[0] = float("inf")
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="bad.safetensors: found values that are not finite .* for blocks.1"):
        added(tmp_path / "bad.safetensors")
