"""Host 1: *Load Salt Tiny*, the embedded model as a native MODEL, CLIP and VAE. Nothing to download."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..salt.models.word_embedder import WordEmbedder
from .io_types import schema
from .nodes_loaders import load_model


class Tokenizer:
    """As core's CLIP asks for one. Prompts go on whole: the table takes them apart itself."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, list[str]]:
        return {"words": [text]}

    def state_dict(self) -> dict[str, Any]:
        return {}


class WordTable(torch.nn.Module):
    """salt-tiny's word table as core's CLIP asks for a text encoder. It has no weights to patch or to move."""

    dtypes = frozenset({torch.float32})

    def __init__(self, embedder: WordEmbedder) -> None:
        super().__init__()
        self.embedder = embedder

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Layers, projections and devices are nothing to a table."""

    def reset_clip_options(self) -> None:
        """As above."""

    def encode_token_weights(self, tokens: dict[str, list[str]]) -> tuple[Tensor, None]:
        """[1, L, D], and no pooled output. Raises ValueError for a word that the table lacks, listing those it has."""
        return self.embedder.encode(tokens["words"]), None


def load_clip() -> Any:
    """salt-tiny's words as a native CLIP, so that hooks, LoRA loaders and whatever else takes a CLIP take this one."""
    import comfy.sd

    cpu = torch.device("cpu")
    target = SimpleNamespace(params={}, clip=lambda **_: WordTable(WordEmbedder()), tokenizer=lambda **_: Tokenizer())
    return comfy.sd.CLIP(target, model_options={"load_device": cpu, "offload_device": cpu})


def load_vae() -> Any:
    """salt-tiny's autoencoder as a native VAE. Raises ValueError where this ComfyUI builds Wan's at full width only."""
    import comfy.sd
    from safetensors.torch import load_file

    from ..salt.checkpoints.vae_keys import vae_to_wan
    from ..salt.pipeline.components import tiny_folder

    path = tiny_folder() / "vae" / "diffusion_pytorch_model.safetensors"
    try:
        return comfy.sd.VAE(sd=vae_to_wan(load_file(path), str(path)))
    except RuntimeError as error:
        raise ValueError(
            "Load Salt Tiny: this ComfyUI builds Wan's VAE at its full width only, expected 0.8 or newer; the other "
            "nodes work"
        ) from error


class SaltLoadTiny(io.ComfyNode):
    """The embedded model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltLoadTiny",
            display_name="Load Salt Tiny",
            category="Salt/loaders",
            description="The small model inside the pack: coloured shapes that move, 64x64, on any CPU, nothing to "
            "download. Prompts have the form: a [fast|slow] COLOUR SHAPE moving DIRECTION. To try workflows and memory "
            "nodes before the large weights are here.",
            search_aliases=["demo model", "test model", "salt-tiny", "embedded"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="A student of 4.3 million weights with Wan 2.1's architecture."),
                io.Clip.Output(tooltip="Its words: core's CLIP Text Encode works on it."),
                io.Vae.Output(tooltip="Its autoencoder: core's VAE Decode and Salt Decode work on it."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..salt.pipeline.components import tiny_folder

        return io.NodeOutput(load_model(tiny_folder() / "transformer"), load_clip(), load_vae())


NODES = [SaltLoadTiny]
