"""LoRA adapters of `SaltPipeline`: diffusers' methods, for every LoRA file that `salt.checkpoints` reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from diffusers.loaders import WanLoraLoaderMixin
from diffusers.loaders.peft import _SET_ADAPTER_SCALE_FN_MAPPING
from diffusers.utils.hub_utils import _get_model_file
from peft.tuners.lora import LoraLayer
from torch import Tensor

from ..checkpoints.lora import Lora, is_lora, lora_of, read_lora
from ..checkpoints.lora_merge import adapter_of
from ..checkpoints.lora_scale import ADAPTER_CONFIG, ADAPTER_STEM
from ..errors import InputError

if TYPE_CHECKING:
    from ..acceleration.presets import AccelerationPreset
    from ..models.transformer_salt import SaltTransformer3DModel

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


AdapterState = tuple[tuple[str, float, int, bool, bool], ...]

# diffusers 0.37 looks a model's class up here by name and knows Wan's alone; our model takes adapters as Wan's does.
_SET_ADAPTER_SCALE_FN_MAPPING["SaltTransformer3DModel"] = _SET_ADAPTER_SCALE_FN_MAPPING["WanTransformer3DModel"]


class SaltLoraMixin(WanLoraLoaderMixin):
    """diffusers' LoRA methods. Reading is that of `read_lora`; adapters, their weights and fusing are diffusers'."""

    _lora_loadable_modules = ["transformer"]
    transformer: SaltTransformer3DModel
    acceleration: AccelerationPreset

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA as an adapter: a file, a folder, a repository on the hub, or a state dict.

        Options and the other methods (`set_adapters`, `fuse_lora`, `unload_lora_weights`, ...) are diffusers'. Every
        layer gets the scale that the file says. Raises `CheckpointError` for what cannot be an adapter.
        """
        if self.acceleration.fp8:
            raise InputError(
                "prefer", "found 'fastest', whose float8 layers take no LoRA, expected it to be loaded before"
            )
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, dict):
            if not is_lora(source):
                super().load_lora_weights(source, adapter_name=adapter_name, hotswap=hotswap, **kwargs)
                return
            lora = lora_of(source, Path("state dict"), {})
        else:
            lora = _find(str(source), kwargs.pop("weight_name", None), kwargs)
        tensors, metadata = adapter_of(lora, self.transformer)
        self.load_lora_into_transformer(
            tensors,
            transformer=self.transformer,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            low_cpu_mem_usage=kwargs.pop("low_cpu_mem_usage", True),
            hotswap=hotswap,
        )


def _find(source: str, weight_name: str | None, options: dict[str, Any]) -> Lora:
    if Path(source).exists():
        folder = Path(source, options.get("subfolder") or "")
        return read_lora(folder / weight_name if weight_name else folder)
    hub: dict[str, Any] = {key: options[key] for key in HUB_OPTIONS if key in options}
    name = weight_name or DIFFUSERS_FILE
    if name.startswith(ADAPTER_STEM):
        _get_model_file(source, weights_name=ADAPTER_CONFIG, **hub)  # its settings, found beside it then
    return read_lora(_get_model_file(source, weights_name=name, **hub))


@contextmanager
def lora_scale(transformer: SaltTransformer3DModel, attention_kwargs: dict[str, Any] | None) -> Iterator[None]:
    """While open, adapters act `attention_kwargs["scale"]` times. Raises InputError for any other key."""
    options = attention_kwargs or {}
    if unknown := [key for key in options if key != "scale"]:
        raise InputError("attention_kwargs", f"found {', '.join(unknown)}, expected scale")
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)] if options else []
    before = [dict(layer.scaling) for layer in layers]
    for layer, scaling in zip(layers, before, strict=True):
        layer.scaling.update({name: scale * options["scale"] for name, scale in scaling.items()})
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def adapter_strengths(transformer: SaltTransformer3DModel) -> dict[str, float]:
    """The loaded adapters by name, each with the strength at which it acts, 0 where it does not.

    Empty while adapters are fused into the weights: then peft lets no other one act. Raises InputError for an adapter
    whose strength differs from layer to layer.
    """
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    if any(layer.merged for layer in layers):
        return {}
    found: dict[str, set[float]] = {}
    for layer in layers:
        for name, scale in layer.scaling.items():
            rank = math.sqrt(layer.r[name]) if layer.use_rslora.get(name) else layer.r[name]
            acts = name in layer.active_adapters and not layer.disable_adapters
            found.setdefault(name, set()).add(round(scale * rank / layer.lora_alpha[name], 6) if acts else 0.0)
    if several := next((name for name, strengths in found.items() if len(strengths) > 1), None):
        raise InputError("lora", f"found several strengths of the adapter {several}, expected one for all layers")
    return {name: strengths.pop() for name, strengths in found.items()}


def set_strengths(transformer: SaltTransformer3DModel, strengths: Mapping[str, float]) -> None:
    """Let these adapters act, in their order, and no others; those at 0 are left out of the layers' sums."""
    acting = {name: strength for name, strength in strengths.items() if strength}
    if acting:
        transformer.enable_lora()
        transformer.set_adapters(list(acting), list(acting.values()))
    else:
        transformer.disable_lora()


def adapter_state(transformer: SaltTransformer3DModel) -> AdapterState:
    """What decides the effect of a model's adapters; a CUDA graph holds for one such state."""
    return tuple(
        (
            name,
            scale,
            cast(Tensor, layer.lora_A[name].weight).data_ptr(),
            name in layer.active_adapters and not layer.disable_adapters,
            name in layer.merged_adapters,
        )
        for layer in transformer.modules()
        if isinstance(layer, LoraLayer)
        for name, scale in layer.scaling.items()
    )
