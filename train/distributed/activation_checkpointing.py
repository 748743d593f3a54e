"""Activation checkpointing: which activations of a transformer block are saved for backward, and which recomputed.

Three choices, measured by `benchmarks.training`: the block's input alone; the output of self-attention too, which is
most of a block's arithmetic and little of its memory; or the outputs of the linear layers as well. Gradients are the
same to the bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import SavedActivations

_ATTENTION = {
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
}
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def recompute(model: SaltTransformer3DModel, saved: SavedActivations) -> None:
    """Let backward recompute the model's blocks, except for the activations that are saved."""
    contexts: dict[str, Any] = {}
    if saved != "input":
        policy = partial(_policy, saved == "products")
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    model.enable_gradient_checkpointing(partial(_checkpointed, contexts))


def _checkpointed(contexts: dict[str, Any], block: nn.Module, *arguments: object) -> Tensor:
    # Nothing in a block is random, so the generators' states need not be saved and restored.
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False, **contexts)


def _policy(products: bool, _: object, operation: object, *arguments: Tensor, **options: object) -> CheckpointPolicy:
    """Save attention where keys are no fewer than queries: self-attention, not attention over the prompt."""
    save = products and operation in _PRODUCTS
    if operation in _ATTENTION:
        query, key = arguments[:2]
        save = key.shape[-2] >= query.shape[-2]
    return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE
