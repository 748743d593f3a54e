"""Students as model callables of the rollout (`CausalModel`) and of whole-clip sampling (`BidirectionalModel`)."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..memory import MemoryPass
from ..model_input import ModelInput
from .cross_attention_cache import CrossAttentionCache, CrossAttentionCaches


class StudentTransformer(Protocol):
    """The forward of a `SaltTransformer3DModel`, or of a wrapper that is called like one. Returns (flow,)."""

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
        /,
        *,
        return_dict: Literal[False],
        attention_context: MemoryPass | None = None,
        cross_attention_cache: CrossAttentionCache | None = None,
    ) -> tuple[Tensor, ...]: ...


class _StudentModel:
    """A student with caches of its latest prompts. flow_map: it also takes the timestep that is stepped to."""

    def __init__(self, student: StudentTransformer, flow_map: bool = False) -> None:
        self.student, self.flow_map = student, flow_map
        self.cross_attention_caches = CrossAttentionCaches()

    def flow(self, inputs: ModelInput[Conditioning], channels: Tensor | None) -> Tensor:
        """Flow of the latents with `channels` (Wan I2V) of the same frames concatenated to them."""
        x, conditioning = inputs.x, inputs.conditioning
        if channels is not None:
            x = torch.cat([x, channels.to(x)], dim=1)
        cache = self.cross_attention_caches.of(conditioning)
        timestep = inputs.timestep
        if self.flow_map and inputs.target is not None:
            timestep = torch.stack([timestep, inputs.target], dim=-1)
        (flow,) = self.student(
            x, timestep, conditioning.text, conditioning.image,
            return_dict=False, attention_context=inputs.memory, cross_attention_cache=cache,
        )  # fmt: skip
        return flow


class CausalModel(_StudentModel):
    """A causal student as the rollout's model callable (`salt.model_input.FlowModel`).

    Called with a `ModelInput` of latents [B, C, F, H, W] at timesteps [B, F], it returns the flow [B, C, F, H, W].
    `conditioning.channels` (Wan I2V) cover the whole clip; the frames of this forward are cut out of them.
    Without gradient, cross-attention keys and values of the latest prompts are cached: use a new object when the
    weights change. student: a `SaltTransformer3DModel`, or what is called like one.
    Raises ValueError for latents that do not fit the memory.
    """

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        channels = inputs.conditioning.channels
        if channels is not None:
            channels = channels[:, :, inputs.start_frame : inputs.start_frame + inputs.x.shape[2]]
        return self.flow(inputs, channels)


class BidirectionalModel(_StudentModel):
    """A bidirectional student, or a teacher, as a `FlowModel`: flow [B, C, F, H, W] of a whole clip at timesteps [B].

    Channels of the conditioning (Wan I2V) are concatenated to the latents. Caches prompts as `CausalModel` does.
    """

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        return self.flow(inputs, inputs.conditioning.channels)
