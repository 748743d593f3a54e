"""*Load Salt Tiny*: the embedded model as a native MODEL, CLIP and VAE. Nothing to download."""

from __future__ import annotations

from comfy_api.latest import io

from .adapter.core_versions import schema
from .adapter.loading import load_model
from .adapter.tiny_model import load_clip, load_vae


class SaltLoadTiny(io.ComfyNode):
    """The embedded model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltLoadTiny",
            display_name="Load Salt Tiny",
            category="Salt/loaders",
            description="The small model inside the pack: coloured shapes that move, 64x64, on any CPU, nothing to "
            "download. Prompts have the form: a [fast|slow] COLOUR SHAPE moving DIRECTION. For trying out workflows "
            "and memory nodes before downloading large weights.",
            search_aliases=["demo model", "test model", "salt-tiny", "embedded"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="A student with 4.3 million weights and Wan 2.1's architecture."),
                io.Clip.Output(tooltip="Its text encoder: core's CLIP Text Encode works with it."),
                io.Vae.Output(tooltip="Its autoencoder: core's VAE Decode and Salt Decode work with it."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..salt.pipeline.components import tiny_folder

        return io.NodeOutput(load_model(tiny_folder() / "transformer"), load_clip(), load_vae())


NODES = [SaltLoadTiny]
