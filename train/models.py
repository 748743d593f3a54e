"""Models of a run from a recipe: student, critic, teacher, optimizers, and the exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salt.checkpoints import load_student, save_wan
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.spec import SHOT_PREFIX, StudentSpec
from train.config.model_configs import critic_checkpoint, student_fps
from train.config.recipe import Recipe
from train.config.vae_config import latent_scale, wan_vae
from train.distributed.activation_checkpointing import recompute
from train.distributed.low_bit_states import adamw_8bit
from train.lora_adapters import adapter_of, add_lora


def build_student(recipe: Recipe, device: torch.device) -> SaltTransformer3DModel:
    """The student in float32, on the device; with `lora_rank`, a LoRA adapter is its only trainable part."""
    return _trainable(recipe, recipe.models.student, device, "student")


def build_critic(recipe: Recipe, device: torch.device) -> SaltTransformer3DModel:
    """The critic in float32, on the device; with `lora_critic`, a LoRA adapter is its only trainable part."""
    return _trainable(recipe, critic_checkpoint(recipe), device, "critic")


def build_teacher(recipe: Recipe) -> SaltTransformer3DModel:
    """The teacher, frozen, on the CPU."""
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else torch.float32
    teacher = load_student(recipe.models.teacher, dtype=dtype).requires_grad_(False).eval()
    if recipe.models.checkpointing:  # the alignment's gradient flows through it
        recompute(teacher, recipe.saved_activations)
    return teacher


def _trainable(recipe: Recipe, path: str, device: torch.device, name: str) -> SaltTransformer3DModel:
    weights = recipe.models.weights if path == recipe.models.student else "auto"
    model = load_student(path, weights=weights, dtype=torch.float32)
    if recipe.models.checkpointing:
        recompute(model, recipe.saved_activations)
    if settings := adapter_of(recipe, name):
        add_lora(model, settings)
    nn.Module.to(model, device)
    model.train()
    return model


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """AdamW: plain, fused, or with 8-bit states."""
    opt = recipe.optimisation
    if opt.optimizer == "8bit":
        return adamw_8bit(parameters, lr, opt.betas, opt.weight_decay)
    options: dict[str, Any] = {"lr": lr, "betas": opt.betas, "weight_decay": opt.weight_decay}
    return torch.optim.AdamW(parameters, **options, fused=opt.optimizer == "fused")


def student_spec(recipe: Recipe) -> StudentSpec:
    """The exported student's spec; its step list is the densest of the recipe with at most 4 steps, else 8."""
    r = recipe.rollout
    nfe = max((n for n in r.share if n <= 4), default=8)
    blocks = 0 if r.kind == "bidirectional" else r.frames_per_block
    return StudentSpec(
        blocks, recipe.schedule(nfe).steps, r.shift, recipe.policy, r.independent_first_frame, r.rule, r.stepping,
        student_fps(recipe), SHOT_PREFIX if recipe.policy.kind == "shots" else "", r.gives_first_frame,
        recipe.schedule(nfe).first_steps,
    )  # fmt: skip


@dataclass(frozen=True)
class StudentFacts:
    """What an exported student's file says beside its weights. size: (height, width) of its clips in pixels."""

    spec: StudentSpec
    size: tuple[int, int]


def student_facts(recipe: Recipe, channels: int) -> StudentFacts:
    """Read as a run begins, from files that may be gone when it ends. channels: of the student's latents."""
    r, scale = recipe.rollout, latent_scale(recipe.models.vae)
    side = wan_vae(channels)[1] if scale is None else scale.spatial
    return StudentFacts(student_spec(recipe), (r.height * side, r.width * side))


def export_student(
    model: SaltTransformer3DModel,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    facts: StudentFacts,
    path: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write a student's unsharded weights in Wan's names, LoRA adapters merged in, as the loaders and ComfyUI read it.

    model: read for its configuration only, so it may be sharded. state: the merge changes its tensors in place.
    """
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    with torch.device("meta"):
        whole = SaltTransformer3DModel(**config)
        if settings := adapter_of(recipe, "student"):
            add_lora(whole, settings)
    whole.load_state_dict(state, assign=True)
    if settings:
        whole.fuse_lora()
        whole.unload_lora()
    causal = facts.spec.frames_per_block > 0
    return save_wan(whole, path, spec=facts.spec, size=facts.size, dtype=dtype, causal_ar=causal)
