"""Configuration of a Wan transformer inferred from its weights' shapes, and the check of all shapes against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel

from ..io.fields import Between, Count, FieldError, read_fields, shown
from ..spec import WAN22_CHANNELS
from .tensor_files import CheckpointError, shorten

# Keys of Wan's own configs, ComfyUI's metadata and the golden files -> diffusers' keys.
CONFIG_ALIASES = {
    "num_heads": "num_attention_heads",
    "heads": "num_attention_heads",
    "layers": "num_layers",
    "ffn": "ffn_dim",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
}


@dataclass(frozen=True)
class DeclaredConfig:
    """The numbers of a declared configuration, by diffusers' keys, with their types and ranges."""

    num_attention_heads: Count | None = None
    attention_head_dim: Count | None = None
    num_layers: Count | None = None
    ffn_dim: Count | None = None
    in_channels: Count | None = None
    out_channels: Count | None = None
    dim: Count | None = None
    text_dim: Count | None = None
    freq_dim: Count | None = None
    eps: Annotated[float, Between(0, 1)] | None = None
    rope_max_seq_len: Count | None = None


def infer_config(
    shapes: Mapping[str, tuple[int, ...]], declared: Mapping[str, Any] | None, where: str
) -> dict[str, Any]:
    """Arguments of `WanTransformer3DModel`, from `shapes` (by diffusers' names) and a `declared` configuration.

    declared: a config.json or the metadata's `config`, with Wan's, ComfyUI's or diffusers' keys. It supplies what
    shapes do not determine (heads, eps); without it a head has 128 channels, as in every Wan 2.1 model.

    Raises `CheckpointError` if a weight that determines the configuration is missing, or if both disagree.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f"{where}: {name} is missing, so the model's configuration cannot be inferred")
        return tuple(shapes[name])

    embedding, block = shape("patch_embedding.weight"), "blocks.0."
    if len(embedding) != 5:
        raise CheckpointError(
            f"{where}: patch_embedding.weight has shape {list(embedding)}: an image model; a video model's patch "
            f"embedding has five axes"
        )
    inner, patch = embedding[0], embedding[2:]
    image = "condition_embedder.image_embedder."
    config: dict[str, Any] = {
        "patch_size": patch,
        "in_channels": embedding[1],
        "out_channels": shape("proj_out.weight")[0] // prod(patch),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "ffn_dim": shape(block + "ffn.net.0.proj.weight")[0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "cross_attn_norm": block + "norm2.weight" in shapes,
        "qk_norm": "rms_norm_across_heads" if block + "attn1.norm_q.weight" in shapes else None,
        "image_dim": shape(image + "norm1.weight")[0] if image + "norm1.weight" in shapes else None,
        "added_kv_proj_dim": inner if block + "attn2.add_k_proj.weight" in shapes else None,
        "pos_embed_seq_len": shape(image + "pos_embed")[1] if image + "pos_embed" in shapes else None,
    }
    settings = _normalize_config(declared or {}, where)
    heads = settings.get("num_attention_heads", inner // 128)
    if not heads or inner % heads:
        raise CheckpointError(
            f"{where}: {inner} channels do not divide into heads of 128; a `config` with num_heads must say how many"
        )
    config |= {"num_attention_heads": heads, "attention_head_dim": inner // heads}
    for key in ("eps", "rope_max_seq_len"):
        if key in settings:
            config[key] = settings[key]
    inferred = {"dim": inner} | config
    differing = [
        f"{key} {settings[key]!r} (tensors: {inferred[key]!r})"
        for key in sorted(settings)
        if settings[key] != inferred.get(key)
    ]
    if differing:
        raise CheckpointError(f"{where}: its configuration does not fit its tensors: {shorten(differing)}")
    return config


def _normalize_config(declared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The numbers of a configuration under diffusers' keys, without those that only the tensors determine.

    Its class name says nothing that they do not: every trainer calls its own class otherwise.
    """
    inner = declared.get("transformer", declared)
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{where}: config.transformer: found {shown(inner)}, expected an object")
    try:
        config = read_fields(DeclaredConfig, {CONFIG_ALIASES.get(key, key): value for key, value in inner.items()})
    except FieldError as error:
        raise CheckpointError(f"{where}: its configuration: {error}") from error
    return {key: value for key, value in vars(config).items() if value is not None}


def variant_of(config: Mapping[str, Any], where: str) -> str:
    """The variant by channels: "T2V", "TI2V" (Wan 2.2, 48 latent channels), "I2V" or "FLF2V" = first and last frame
    (beside the latents a mask and the image)."""
    inputs, outputs = config["in_channels"], config["out_channels"]
    if inputs == outputs:
        return "T2V" if outputs != WAN22_CHANNELS else "TI2V"
    if inputs == 2 * outputs + 4:
        return "FLF2V" if config["pos_embed_seq_len"] else "I2V"
    raise CheckpointError(
        f"{where}: a Wan model with {inputs} input and {outputs} output channels; expected {outputs} inputs (T2V) or "
        f"{2 * outputs + 4} (I2V)"
    )


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a model with this configuration. Allocates nothing."""
    with init_empty_weights(include_buffers=True):
        model = WanTransformer3DModel(**config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], extra: Iterable[str], config: Mapping[str, Any], where: str
) -> None:
    """Raise one `CheckpointError` that lists all missing, unexpected and misshapen weights, if there are any."""
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in shapes]
    unexpected = [*extra, *(name for name in shapes if name not in expected)]
    misshapen = [
        f"{name} {list(shape)} (expected {list(expected[name])})"
        for name, shape in shapes.items()
        if name in expected and tuple(shape) != expected[name]
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    problems = "; ".join(f"{len(names)} {kind}: {shorten(names)}" for kind, names in faults if names)
    if problems:
        raise CheckpointError(f"{where}: its weights are not those of a Wan 2.1 transformer of its size. {problems}")
