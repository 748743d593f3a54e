"""A whole system small enough for a test: random student, random VAE, the word table; and its folder on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from salt.models.transformer_salt import SaltTransformer3DModel
from salt.pipeline import SaltPipeline
from salt.spec import StudentSpec

SMALL = dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=48, num_layers=2, text_dim=4096, freq_dim=32)


def vae() -> AutoencoderKLWan:
    torch.manual_seed(7)
    return AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, z_dim=16).eval()


def student(seed: int = 0, **config) -> SaltTransformer3DModel:
    torch.manual_seed(seed)
    model = SaltTransformer3DModel(**{**SMALL, **config}).eval()
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.3)
    return model


def pipeline(seed: int = 0, spec: StudentSpec | None = None, **config) -> SaltPipeline:
    words = {"dim": 4096, "max_length": 16}
    made = SaltPipeline(
        student(seed, **config), vae(), student=spec or StudentSpec(), words=words, default_size=(32, 32)
    )
    made.set_progress_bar_config(disable=True)
    return made


def folder(path: Path, seed: int = 0) -> Path:
    pipeline(seed).save_pretrained(path)
    return path


def anyflow_folder(path: Path, **config) -> Path:
    """A random AnyFlow-FAR as `AnyFlowFARPipeline` saves it, with a UMT5 of a few words."""
    from diffusers import AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, FlowMapEulerDiscreteScheduler

    torch.manual_seed(0)
    tokenizer, encoder = umt5_models()
    given = dict(SMALL, text_dim=32, full_chunk_limit=3, chunk_partition=(1, 3, 3, 3, 3))
    transformer = AnyFlowFARTransformer3DModel(**{**given, **config}).eval()
    with torch.no_grad():
        transformer.proj_out.weight.normal_(std=0.3)
        transformer.far_patch_embedding.weight.normal_(std=0.1)
    scheduler = FlowMapEulerDiscreteScheduler(shift=3.0)
    AnyFlowFARPipeline(tokenizer, encoder, transformer, vae(), scheduler).save_pretrained(path)
    return path


def umt5_models(width: int = 32) -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    """A random UMT5 and its tokenizer of a few words, `</s>` at every end."""
    words = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "moving", "right"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return fast, UMT5EncoderModel(config)


def umt5(path: Path) -> Path:
    """A diffusers-like folder with `umt5_models` in it."""
    tokenizer, encoder = umt5_models()
    tokenizer.save_pretrained(path / "tokenizer")
    encoder.save_pretrained(path / "text_encoder")
    return path


def image_encoder(path: Path) -> Path:
    """A random CLIP of width 48 and its processor, in a diffusers-like folder."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    CLIPVisionModel(vision).save_pretrained(path / "image_encoder")
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(path / "image_processor")
    return path
