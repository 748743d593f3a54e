"""One model call of a sampling loop as a record, and the type of what is called: the same for every kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from .memory import MemoryPass

# What a model is conditioned on: `salt.conditioning.Conditioning` here, a host's own type elsewhere.
Condition = TypeVar("Condition")
ConditionCo = TypeVar("ConditionCo", covariant=True)
ConditionContra = TypeVar("ConditionContra", contravariant=True)


@dataclass(frozen=True)
class ModelInput(Generic[ConditionCo]):
    """What a video model is called with.

    x: noisy latents [B, C, F, H, W]. timestep: in [0, 1000], [B, F], or [B] where all frames of a clip share one
    (bidirectional models). target: of flow maps, the timestep that the sampler steps to, in the shape of `timestep`;
    None in a pass that steps nowhere. conditioning: a `Conditioning`, or whatever the model understands. memory: one
    forward's view of the KV memory (causal models), None for a model that sees the whole clip at once.
    per_frame: frames of one block have different timesteps.
    """

    x: Tensor
    timestep: Tensor
    conditioning: ConditionCo
    memory: MemoryPass | None = None
    per_frame: bool = False
    target: Tensor | None = None

    @property
    def start_frame(self) -> int:
        """Latent frame of the clip at which `x` starts."""
        return 0 if self.memory is None else self.memory.start_frame


class FlowModel(Protocol[ConditionContra]):
    """A model as the rollout and the bidirectional sampler call it: flow [B, C, F, H, W] of `inputs.x`.

    A causal model reads and writes keys and values through `inputs.memory`.
    """

    def __call__(self, inputs: ModelInput[ConditionContra], /) -> Tensor: ...


class Guide(Protocol[ConditionContra]):
    """Guidance of a host's own: the flow [B, C, F, H, W] of a denoising step from the inputs of its branches.

    branches: the conditional one, and the unconditional one if there is one, on the same latents. Their passes only
    read, so the model may be called with each as often as wanted, or not at all.
    """

    def __call__(self, branches: Sequence[ModelInput[ConditionContra]], /) -> Tensor: ...
