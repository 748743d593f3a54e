"""The embedded model salt-tiny as a native CLIP and VAE."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...salt.models.word_embedder import WordEmbedder
from .core_versions import narrow_vae

if TYPE_CHECKING:
    from comfy.sd import CLIP, VAE


class WordTokenizer:
    """A tokenizer as ComfyUI's CLIP calls it. Prompts stay whole: the word table splits them itself."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: object) -> dict[str, list[str]]:
        return {"words": [text]}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class WordTable(torch.nn.Module):
    """salt-tiny's word table as a text encoder for ComfyUI's CLIP. It has no weights to patch or to move."""

    dtypes = frozenset({torch.float32})

    def __init__(self, embedder: WordEmbedder) -> None:
        super().__init__()
        self.embedder = embedder

    def set_clip_options(self, options: dict[str, object]) -> None:
        """Layers, projections and devices mean nothing for a table."""

    def reset_clip_options(self) -> None:
        """As above."""

    def encode_token_weights(self, tokens: dict[str, list[str]]) -> tuple[Tensor, None]:
        """[1, L, D], and no pooled output. Raises ValueError for a word that the table lacks, listing those it has."""
        return self.embedder.encode(tokens["words"]), None


def load_clip() -> CLIP:
    """salt-tiny's words as a native CLIP, so that hooks, LoRA loaders and other nodes that take a CLIP work with it."""
    import comfy.sd

    cpu = torch.device("cpu")
    target = SimpleNamespace(
        params={}, clip=lambda **_: WordTable(WordEmbedder()), tokenizer=lambda **_: WordTokenizer()
    )  # fmt: skip
    return comfy.sd.CLIP(target, model_options={"load_device": cpu, "offload_device": cpu})


def load_vae() -> VAE:
    """salt-tiny's autoencoder as a native VAE."""
    from safetensors.torch import load_file

    from ...salt.checkpoints.vae_keys import vae_to_wan
    from ...salt.pipeline.components import tiny_folder

    path = tiny_folder() / "vae" / "diffusion_pytorch_model.safetensors"
    return narrow_vae(vae_to_wan(load_file(path), str(path)))
