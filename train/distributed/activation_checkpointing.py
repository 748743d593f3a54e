"""Activation checkpointing: what backward finds kept of a transformer block, and what it computes a second time.

`benchmarks.training` measures the grains: of each block its input alone; what self-attention made as well, which is
most of a block's arithmetic and little of its memory; or what the linear layers made too. The numbers are the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Keep

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


def recompute(model: SaltTransformer3DModel, keep: Keep) -> None:
    """Let backward compute the model's blocks again, all but what is kept of them."""
    contexts: dict[str, Any] = {}
    if keep != "input":
        policy = partial(_policy, keep == "products")
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, policy)

    def run(block: Any, *arguments: Any) -> Tensor:
        # Nothing in a block is random, so the generators' states need not be kept and put back.
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False, **contexts)

    model.enable_gradient_checkpointing(run)


def _policy(products: bool, _: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Attention is worth keeping where keys are no fewer than queries: over the clip, that is, not over its prompt."""
    kept = products and operation in _PRODUCTS
    if operation in _ATTENTION:
        query, key = arguments[:2]
        kept = key.shape[-2] >= query.shape[-2]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
