"""LoRA adapters of student and critic, and the files that hold them beside the merged student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from salt.checkpoints.wan_keys import to_wan
from salt.io.atomic import write_tensors
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.model_configs import critic_checkpoint
from train.config.recipe import Recipe

# The linear layers of a block, as LongLive adapts them: attention to the clip and to the prompt, and the feed-forward.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
PREFIX = "diffusion_model."  # of names in ComfyUI's LoRA files
PARTS = {".lora_A.default.weight": "lora_down.weight", ".lora_B.default.weight": "lora_up.weight"}


@dataclass(frozen=True)
class Adapter:
    """alpha / rank times the product of the factors is added to a layer's weight."""

    rank: int
    alpha: int


def adapter_of(recipe: Recipe, name: str) -> Adapter | None:
    """The adapter that the recipe trains in the model `name`; None where it trains all weights, or none."""
    models = recipe.models
    adapted = ("student", "critic") if models.lora_critic else ("student",)
    if not models.lora_rank or name not in adapted:
        return None
    return Adapter(models.lora_rank, models.lora_alpha or models.lora_rank)


def add_lora(model: SaltTransformer3DModel, adapter: Adapter) -> None:
    """Add a LoRA adapter and freeze everything else."""
    from peft import LoraConfig

    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=TARGETS))


def adapter_path(student: Path, name: str) -> Path:
    """The LoRA file beside an exported student: NAME_lora.safetensors, NAME_critic_lora.safetensors."""
    return student.with_name(f"{student.stem}_{'' if name == 'student' else f'{name}_'}lora.safetensors")


def export_adapter(state: Mapping[str, Tensor], recipe: Recipe, name: str, student: Path) -> None:
    """Write the adapter in the unsharded weights of the model `name`, if it has one, beside the exported student.

    A LoRA file with Wan's names, kohya's parts and an alpha for each layer, for `--lora`, *Load LoRA* and ComfyUI. Its
    factors are float32: merged into the checkpoint that they were trained on, they give the exported student's bits.
    """
    adapter = adapter_of(recipe, name)
    if adapter is None:
        return
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        for end, part in PARTS.items():
            if key.endswith(end):
                layer = f"{PREFIX}{to_wan(key.removesuffix(end) + '.weight')}".removesuffix(".weight")
                tensors[f"{layer}.{part}"] = value.float()
                tensors[f"{layer}.alpha"] = torch.tensor(float(adapter.alpha))
    base = recipe.models.student if name == "student" else critic_checkpoint(recipe)
    write_tensors(adapter_path(student, name), tensors, {"base": base})
