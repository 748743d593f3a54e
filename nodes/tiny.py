"""Host 1: *Load Salt Tiny*, the embedded model as a native MODEL, CLIP and VAE. Nothing to download."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .loaders import load_model
from .sockets import schema


class WordsClip:
    """salt-tiny's word table as core's `CLIP Text Encode` takes it. It has no weights to patch or to move."""

    use_clip_schedule = False

    def __init__(self, embedder: Any) -> None:
        self.embedder = embedder

    def clone(self) -> WordsClip:
        return WordsClip(self.embedder)

    def tokenize(self, text: str, **_: Any) -> dict[str, list[str]]:
        return {"words": [text]}

    def encode_from_tokens(
        self, tokens: dict[str, list[str]], return_pooled: bool = False, return_dict: bool = False
    ) -> Any:
        """[1, L, D]. Raises ValueError for a word that the table does not have, listing those it has."""
        text = self.embedder.encode(tokens["words"])
        if return_dict:
            return {"cond": text, "pooled_output": None}
        return (text, None) if return_pooled else text

    def encode_from_tokens_scheduled(
        self, tokens: dict[str, list[str]], unprojected: bool = False, add_dict: dict[str, Any] | None = None, **_: Any
    ) -> list[list[Any]]:
        return [[self.encode_from_tokens(tokens), {"pooled_output": None, **(add_dict or {})}]]

    def add_hooks_to_dict(self, pooled_dict: dict[str, Any]) -> dict[str, Any]:
        return pooled_dict


def load_vae() -> Any:
    """salt-tiny's autoencoder as a native VAE. Raises ValueError where this ComfyUI builds Wan's at full width only."""
    import comfy.sd
    from safetensors.torch import load_file

    from ..salt.checkpoints.vae_keys import vae_to_wan
    from ..salt.pipeline.loading import tiny_folder

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
        from ..salt.pipeline.loading import tiny_folder
        from ..salt.words import WordEmbedder

        return io.NodeOutput(load_model(tiny_folder() / "transformer"), WordsClip(WordEmbedder()), load_vae())


NODES = [SaltLoadTiny]
