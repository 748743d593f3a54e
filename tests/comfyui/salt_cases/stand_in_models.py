"""`python -m salt_cases.stand_in_models FOLDER` writes tiny random models of the released files' layouts.

They lie below FOLDER/models under the names that the workflows use. They need the custom node pack shrunk_encoders.
"""

from __future__ import annotations

import inspect
import io
import json
import sys
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from . import startup

FOLDER = Path(sys.argv[1])
startup.start()

WORDS = "a red blue green circle square moving right left up down fast slow cat the over street sea at night".split()


def save(weights: dict[str, torch.Tensor], *parts: str) -> None:
    path = FOLDER.joinpath("models", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    if path.suffix == ".pt":
        torch.save({"generator": prefixed(contiguous), "generator_ema": prefixed(contiguous)}, path)
    else:
        save_file(contiguous, path)


def prefixed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor.clone() for name, tensor in weights.items()}


def drawn_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's weights, drawn at a size that keeps signals alive; norms at one."""
    weights = {}
    for name, tensor in module.state_dict().items():
        value = torch.randn(tensor.shape) * (0.7 / max(tensor[0].numel(), 1) ** 0.5 if tensor.ndim > 1 else 0.02)
        weights[name] = torch.ones(tensor.shape) if "norm" in name and tensor.ndim == 1 else value
        if name.endswith(("gamma", "layer_norm.weight")):
            weights[name] = torch.ones(tensor.shape)
    return weights


def students(pack) -> None:
    t2v = dict(num_attention_heads=2, ffn_dim=256, num_layers=2)
    i2v = dict(t2v, in_channels=36, image_dim=1280, added_kv_proj_dim=256)
    files = {
        "salt_cf.pt": t2v,
        "salt_ll.pt": t2v,
        "salt_bidirectional_t2v_1.3b.safetensors": t2v,
        "salt_bidirectional_i2v_14b.safetensors": i2v,
    }
    for seed, (name, config) in enumerate(files.items()):
        torch.manual_seed(seed)
        student = pack.transformer_salt.SaltTransformer3DModel(**config).eval()
        with torch.no_grad():
            student.proj_out.weight.normal_(std=0.1)
        weights = {pack.wan_keys.to_wan(key): tensor for key, tensor in student.state_dict().items()}
        save(weights, "diffusion_models", name)


def lora() -> None:
    """Of the first block's queries, in core's names."""
    name = "diffusion_model.blocks.0.self_attn.q"
    down, up = torch.randn(4, 256) * 0.1, torch.randn(256, 4) * 0.1
    save(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up},
        "loras",
        "your_lora_for_wan2.1_1.3b.safetensors",
    )


def text_encoder() -> None:
    from comfy.ops import disable_weight_init
    from comfy.text_encoders import t5
    from shrunk_encoders import TEXT

    config = json.loads((Path(t5.__file__).parent / "umt5_config_xxl.json").read_text())
    weights = drawn_weights(t5.T5(config, torch.float32, "cpu", disable_weight_init))
    # By this one core tells the file from other encoders; the shrunk model has no such layer and leaves it.
    weights["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(10240, 4096, dtype=torch.float8_e4m3fn)
    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 50), model_writer=vocabulary, vocab_size=TEXT["vocab_size"],
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    weights["spiece_model"] = torch.frombuffer(bytearray(vocabulary.getvalue()), dtype=torch.uint8)
    save(weights, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors")


def clip_vision() -> None:
    import comfy.clip_model
    import comfy.clip_vision
    from comfy.ops import disable_weight_init

    config = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_h.json").read_text())
    model = comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, "cpu", disable_weight_init)
    weights = drawn_weights(model)
    weights["vision_model.encoder.layers.30.layer_norm1.weight"] = torch.zeros(1)  # so that core takes it for H
    save(weights, "clip_vision", "clip_vision_h.safetensors")


def vae() -> None:
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    # Before 0.4 core knows Wan's VAE in its full width alone.
    narrow = "decoder.head.0.gamma" in inspect.getsource(comfy.sd.VAE.__init__)
    layout = dict(
        dim=8 if narrow else 96,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
    )
    weights = {name: tensor.half() for name, tensor in drawn_weights(WanVAE(**layout)).items()}
    save(weights, "vae", "wan_2.1_vae.safetensors")


def after_the_clip() -> None:
    """A narrow RRDB that enlarges four times, and a narrow RIFE, where this version of core has frame interpolation."""
    from spandrel.architectures.ESRGAN import ESRGAN

    save(ESRGAN(num_filters=8, num_blocks=1, scale=4).state_dict(), "upscale_models", "RealESRGAN_x4plus.safetensors")
    try:
        from comfy_extras.frame_interpolation_models.ifnet import IFNet
    except ImportError:
        return
    weights = drawn_weights(IFNet(head_ch=4, channels=(8, 8, 8, 8, 8)))
    save(weights, "frame_interpolation", "film_net_fp16.safetensors")


if __name__ == "__main__":
    torch.manual_seed(0)
    import shrunk_encoders  # noqa: F401 - shrinks the encoders here as the pack does in the server

    students(startup.import_pack(FOLDER))
    lora()
    text_encoder()
    clip_vision()
    vae()
    after_the_clip()
