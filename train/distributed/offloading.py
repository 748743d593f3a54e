"""A wrapped model with the signature of its transformer, moved to the device for each call if it is offloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from salt.memory import MemoryPolicy
from salt.models.attention import AttentionContext, BlockCausal
from salt.models.transformer_salt import SaltTransformer3DModel
from train.distributed.parallel import DistributedModel

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class OffloadedModel:
    """Critic or teacher as the losses call it (a `train.rollout.block_causal.FeatureModel`).

    offload: the weights are on the CPU between calls.
    """

    def __init__(self, wrapped: DistributedModel, device: torch.device, offload: bool = False) -> None:
        self.wrapped, self.device, self.offload = wrapped, device, offload

    def __call__(
        self, x: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None, /, *,
        return_dict: Literal[False], attention_context: AttentionContext | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return self._run(
            SaltTransformer3DModel.__call__,
            x,
            timestep,
            text,
            image,
            return_dict=return_dict,
            attention_context=attention_context,
        )

    def features(
        self, x: Tensor, timestep: Tensor, text: Tensor, after_block: int, /, *,
        encoder_hidden_states_image: Tensor | None = None, attention_context: AttentionContext | None = None,
    ) -> Tensor:  # fmt: skip
        image = encoder_hidden_states_image
        return self._run(
            SaltTransformer3DModel.features,
            x, timestep, text, after_block, encoder_hidden_states_image=image, attention_context=attention_context,
        )  # fmt: skip

    def block_causal(
        self, blocks: Sequence[int], height: int, width: int, *, clean_context: bool, policy: MemoryPolicy
    ) -> BlockCausal:
        self._load()  # the mask's rotary table is created on the model's device
        return self.wrapped.model.block_causal(blocks, height, width, clean_context=clean_context, policy=policy)

    def _load(self) -> None:
        if self.offload:
            nn.Module.to(self.wrapped.model, self.device)

    def _run(
        self,
        function: Callable[Concatenate[SaltTransformer3DModel, Parameters], Result],
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        self._load()
        try:
            return self.wrapped(function, *arguments, **options)
        finally:
            # Where gradient flows through it (alignment), backward needs its weights.
            if self.offload and not torch.is_grad_enabled():
                nn.Module.to(self.wrapped.model, "cpu")
