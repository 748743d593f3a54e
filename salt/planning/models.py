"""What a memory plan knows of a model: its configuration, from a name or from the header of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.fields import read_object
from ..memory import MemoryGeometry, MemoryPolicy
from ..spec import TINY_FOLDER, TINY_NAME, WAN22_CHANNELS, StudentSpec

BF16, FP32, FP8 = 2, 4, 1
FREQUENCIES = 256  # width of the timestep's embedding before its layers
WINDOWED = StudentSpec(policy=MemoryPolicy("sink", window=12, sink=3))


@dataclass(frozen=True)
class PlannedModel:
    """A Wan transformer as far as its memory depends on it, with the VAE and text encoder that go with it.

    image_dim: of the CLIP embeddings that image-to-video models read, 0 for the others. vae_width: channels of the
    VAE's first layer, 0 for Wan's own. umt5: whether prompts are encoded by Wan's UMT5 (else by a word table of no
    size).
    """

    name: str
    heads: int
    layers: int
    ffn: int
    head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    image_dim: int = 0
    vae_width: int = 0
    umt5: bool = True
    spec: StudentSpec = field(default_factory=StudentSpec)

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def block_linear(self) -> int:
        """Parameters of one block's linear layers, biases included."""
        d, projections = self.dim, 8 + 2 * bool(self.image_dim)
        return projections * (d * d + d) + 2 * d * self.ffn + self.ffn + d

    @property
    def block_bytes(self) -> int:
        """One block in bfloat16; modulation and the norm before cross-attention stay in float32."""
        d = self.dim
        norms = 4 + bool(self.image_dim)  # of queries and keys
        return BF16 * (self.block_linear + norms * d) + FP32 * (6 * d + 2 * d)

    @property
    def rest_bytes(self) -> int:
        """Embeddings, time layers and head in bfloat16; the time embedder and modulation stay in float32."""
        d, patch = self.dim, 4
        half = self.in_channels * patch * d + d  # patches
        half += self.text_dim * d + d + d * d + d + d * 6 * d + 6 * d
        half += d * self.out_channels * patch + self.out_channels * patch
        full = FREQUENCIES * d + d + d * d + d + 2 * d
        if i := self.image_dim:
            half += i * i + i + i * d + d
            full += 2 * i + 2 * d
        return BF16 * half + FP32 * full

    @property
    def has_wan22_latents(self) -> bool:
        """Those of Wan 2.2's VAE, whose latents are 16 pixels wide, not 8."""
        return self.out_channels == WAN22_CHANNELS

    @property
    def latent_pixels(self) -> int:
        """Rows and columns of pixels that are one latent."""
        return 16 if self.has_wan22_latents else 8

    @property
    def token_pixels(self) -> int:
        """Rows and columns of pixels that are one token, a patch of 2x2 latents."""
        return 2 * self.latent_pixels

    def geometry(self, height: int, width: int, batch: int = 1) -> MemoryGeometry:
        """Of the KV memory of frames of these pixels."""
        token = self.token_pixels
        return MemoryGeometry(self.layers, self.heads, self.head_dim, height // token, width // token, batch)


WAN_1_3B = PlannedModel("1.3B", heads=12, layers=30, ffn=8960, spec=WINDOWED)
WAN_14B = PlannedModel("14B", heads=40, layers=40, ffn=13824, spec=WINDOWED)
I2V_14B = replace(WAN_14B, name="14B-I2V", in_channels=36, image_dim=1280)
NAMED = {model.name.lower(): model for model in (WAN_1_3B, WAN_14B, I2V_14B)}


def planned_model(name: str) -> PlannedModel:
    """The model of a name (1.3B, 14B, 14B-I2V, salt-tiny), or of a checkpoint's or pipeline folder's header.

    No weights are read. Raises InputError for what is neither, `CheckpointError` for a file that is no Wan transformer.
    """
    if name.lower() in NAMED and not Path(name).exists():
        return NAMED[name.lower()]
    path = TINY_FOLDER if name == TINY_NAME and not Path(name).exists() else Path(name)
    if not path.exists():
        raise InputError(
            "model", f"found {name!r}, expected a file, a folder, or one of {', '.join(NAMED)}, {TINY_NAME}"
        )
    from ..checkpoints import read_checkpoint

    found = read_checkpoint(path)
    model, index = model_of_config(path.stem, found.config), path / "model_index.json"
    spec = found.spec
    if index.is_file():
        values = read_object(index)
        spec = StudentSpec.from_dict(values["student"]) if values.get("student") else spec
        model = replace(model, umt5=not values.get("words"))
    if (vae := path / "vae" / "config.json").is_file():
        model = replace(model, vae_width=int(read_object(vae).get("base_dim", 0)))
    return replace(model, spec=spec or StudentSpec(), name=name)


def model_of_config(name: str, config: Mapping[str, Any]) -> PlannedModel:
    """The model of a transformer's configuration, by diffusers' keys."""
    return PlannedModel(
        name,
        heads=config["num_attention_heads"],
        layers=config["num_layers"],
        ffn=config["ffn_dim"],
        head_dim=config["attention_head_dim"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"] or config["in_channels"],
        text_dim=config["text_dim"],
        image_dim=config.get("image_dim") or 0,
    )
