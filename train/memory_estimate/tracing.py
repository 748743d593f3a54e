"""Activation memory of a recipe, measured by running its forwards and backwards on tensors without storage.

The training code itself runs here, on models of two and of three transformer blocks; every further block costs what
the third one did. So no formula can fall behind the model, and a 14B model is measured in a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from salt.block_plan import block_lengths
from salt.conditioning import Conditioning
from salt.memory import KVMemory
from salt.model_input import ModelInput
from salt.models.causal_model import BidirectionalModel, CausalModel
from salt.models.text_encoder import TOKENS
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.models.word_embedder import WordEmbedder
from salt.parallel.heads import HeadGroup
from salt.parallel.processes import set_head_group
from train.config.model_configs import meta_model
from train.config.recipe import Recipe
from train.distributed.activation_checkpointing import recompute
from train.lora_adapters import adapter_of, add_lora
from train.memory_estimate.allocations import MemoryUse, measure, without_storage, without_weights
from train.methods.sc_dmd_losses import alignment_distance, score_flow
from train.rollout.block_causal import add_channels, causal_flow, clip_blocks
from train.rollout.recipe_rollout import rollout_settings

IMAGE_TOKENS = 257  # of Wan 2.1's CLIP, per start image
SHALLOW_DEPTH, DEEP_DEPTH = 2, 3  # transformer blocks of the two models that are measured


@dataclass(frozen=True)
class Activations:
    """Bytes of a recipe's activations on one GPU, by forward.

    rollout: one student forward without gradient. exits: all forwards with gradient of one rollout together.
    scores: one forward without gradient of the larger of critic and teacher. critic: its update. alignment: teacher
    features, with gradient, and their distance. whole: the block-causal forward of the stages `ode`, `cd` and `tf`.
    """

    rollout: MemoryUse = MemoryUse()
    exits: MemoryUse = MemoryUse()
    scores: MemoryUse = MemoryUse()
    critic: MemoryUse = MemoryUse()
    alignment: MemoryUse = MemoryUse()
    whole: MemoryUse = MemoryUse()


class AloneGroup(HeadGroup):
    """One process of a group whose exchanges take the memory that they do, and move nothing."""

    def exchanged(self, x: Tensor) -> Tensor:
        return x.clone()

    def gathered(self, x: Tensor) -> Tensor:
        return torch.stack([x] * self.size)


def text_length(recipe: Recipe) -> int:
    """Tokens of a prompt's embedding."""
    return WordEmbedder().max_length if recipe.models.text == "words" else TOKENS


@dataclass(frozen=True)
class Tracer:
    """Measures the forwards of one recipe.

    configs: of its models by name, as `backbones` returns them. gathered: weights arrive in bfloat16 (FSDP's mixed
    precision).
    """

    recipe: Recipe
    configs: dict[str, dict[str, Any]]
    gathered: bool

    def activations(self) -> Activations:
        recipe = self.recipe
        with without_storage(recipe.optimisation.precision == "bf16"):
            if recipe.stage != "distill":
                targets = self._layers("teacher", self._whole, gradient=False) if recipe.stage == "cd" else MemoryUse()
                return Activations(whole=self._layers("student", self._whole, gradient=True), scores=targets)
            rollout, exits = self._clip() if recipe.rollout.kind == "bidirectional" else self._rollout()
            scores = [self._layers(name, self._score, gradient=False) for name in ("critic", "teacher")]
            aligns = recipe.loss.align != "none"
            return Activations(
                rollout,
                exits,
                scores=max(scores, key=lambda use: use.peak),
                critic=self._layers("critic", self._score, gradient=True),
                alignment=self._layers("teacher", self._alignment, True, self._align_layers) if aligns else MemoryUse(),
            )

    @property
    def _align_layers(self) -> int:
        return self.recipe.loss.align_block + 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.recipe.optimisation.precision == "bf16" else torch.float32

    @property
    def counted(self) -> int:
        """Latent frames that carry loss."""
        r = self.recipe.rollout
        return r.window or r.frames

    def _layers(
        self, name: str, call: Callable[[SaltTransformer3DModel], Callable[[], Tensor]], gradient: bool, layers: int = 0
    ) -> MemoryUse:
        """A forward at the model's depth, or at `layers` of it, extrapolated from the two measured depths."""
        shallow, deep = (measure(call(self.model(name, n)), gradient) for n in (SHALLOW_DEPTH, DEEP_DEPTH))
        return shallow.interpolate(deep, (layers or self.configs[name]["num_layers"]) - SHALLOW_DEPTH)

    def model(self, name: str, layers: int) -> SaltTransformer3DModel:
        """A model of `layers` transformer blocks, otherwise set up as a run sets it up."""
        settings = self.recipe.models
        with unset_fake_temporarily():  # peft adds adapters to meta weights, not to fake ones
            model = meta_model({**self.configs[name], "num_layers": layers})
            if adapter := adapter_of(self.recipe, name):
                with torch.device("meta"):
                    add_lora(model, adapter)
        if self.recipe.optimisation.sequence > 1:
            set_head_group(model, AloneGroup(0, self.recipe.optimisation.sequence))
        if settings.checkpointing:
            recompute(model, self.recipe.saved_activations)
        if name == "teacher":
            return without_weights(model.requires_grad_(False), self.dtype)
        without_weights(model, self.dtype if self.gathered else torch.float32)
        for p in model.parameters():
            # Gradients are counted with the weights, so they exist before the forward and are added to.
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        return model

    def conditioning(self, model: SaltTransformer3DModel) -> Conditioning:
        recipe, c = self.recipe, model.config
        r, batch = recipe.rollout, recipe.optimisation.micro_batch
        image = channels = None
        if c.in_channels > c.out_channels:
            image = torch.zeros(batch, IMAGE_TOKENS, c.image_dim)
            channels = torch.zeros(batch, c.in_channels - c.out_channels, r.frames, r.height, r.width)
        return Conditioning(torch.zeros(batch, text_length(recipe), c.text_dim), image, channels)

    def latents(self, model: SaltTransformer3DModel, frames: int) -> Tensor:
        r = self.recipe.rollout
        return torch.zeros(self.recipe.optimisation.micro_batch, model.config.out_channels, frames, r.height, r.width)

    def _score(self, model: SaltTransformer3DModel) -> Callable[[], Tensor]:
        x, conditioning = self.latents(model, self.counted), self.conditioning(model)
        sigma = torch.ones(x.shape[0])
        return lambda: score_flow(model, x, sigma, conditioning, self.recipe, x)

    def _whole(self, model: SaltTransformer3DModel) -> Callable[[], Tensor]:
        recipe, x = self.recipe, self.latents(model, self.recipe.rollout.frames)
        conditioning, blocks = self.conditioning(model), clip_blocks(recipe.rollout, recipe.rollout.frames)
        clean = x if recipe.stage in ("cd", "tf") or recipe.start.teacher == "causal" else None
        sigma_BF = torch.ones(x.shape[0], x.shape[2])
        return lambda: causal_flow(model, x, sigma_BF, conditioning, blocks, recipe.policy, clean)

    def _alignment(self, model: SaltTransformer3DModel) -> Callable[[], Tensor]:
        loss, conditioning = self.recipe.loss, self.conditioning(model)
        clip = self.latents(model, self.counted).requires_grad_()

        def features(x: Tensor) -> Tensor:
            x = add_channels(x, conditioning)
            t = torch.ones(x.shape[0])
            image = conditioning.image
            tokens = model.features(x, t, conditioning.text, len(model.blocks) - 1, encoder_hidden_states_image=image)
            return tokens.float()

        def distance() -> Tensor:
            with torch.no_grad():
                reference = features(clip)
            return alignment_distance(features(clip), reference, clip.shape[2], loss)

        return distance

    def _clip(self) -> tuple[MemoryUse, MemoryUse]:
        """A bidirectional student's rollout: one forward without gradient, and the exit step's with gradient."""

        def call(model: SaltTransformer3DModel) -> Callable[[], Tensor]:
            student = BidirectionalModel(model)
            x, conditioning = self.latents(model, self.recipe.rollout.frames), self.conditioning(model)
            return lambda: student(ModelInput(x, torch.ones(x.shape[0]), conditioning))

        return self._layers("student", call, False), self._layers("student", call, True).repeated(self._branches)

    @property
    def _branches(self) -> int:
        """Forwards with gradient per exit: a composed branch that is not detached is the second."""
        loss = self.recipe.loss
        return 2 if loss.semigroup and not loss.semigroup_stop_gradient else 1

    def _rollout(self) -> tuple[MemoryUse, MemoryUse]:
        """An autoregressive student's rollout: its largest forward without gradient, and all exit steps with gradient.

        What an exit keeps grows linearly with the frames in memory, so only the first and the last one are run.
        """
        recipe, r = self.recipe, self.recipe.rollout
        lengths = block_lengths(0, r.frames, rollout_settings(recipe, recipe.schedule(2)))
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        seen = [start if recipe.policy.window is None else min(start, recipe.policy.window - n)
                for start, n in zip(starts, lengths, strict=True)]  # fmt: skip

        def at(index: int, gradient: bool) -> MemoryUse:
            return self._layers("student", lambda model: self._block(model, lengths, index), gradient)

        kept, final = 0, MemoryUse()
        counted = [i for i, start in enumerate(starts) if start >= r.frames - self.counted]
        for n in sorted({lengths[i] for i in counted}):
            here = [i for i in counted if lengths[i] == n]
            low = high = at(here[0], True)
            if seen[here[-1]] > seen[here[0]]:
                high = at(here[-1], True)
            span = max(seen[here[-1]] - seen[here[0]], 1)
            kept += sum(low.interpolate(high, (seen[i] - seen[here[0]]) / span).kept for i in here)
            final = high if here[-1] == counted[-1] else final
        return at(counted[-1], False), MemoryUse(0, kept * self._branches, final.backward)

    def _block(self, model: SaltTransformer3DModel, lengths: list[int], index: int) -> Callable[[], Tensor]:
        """Block `index` of a rollout, with the blocks before it already in its memory."""
        r, conditioning, x = self.recipe.rollout, self.conditioning(model), self.latents(model, lengths[index])
        geometry = model.memory_geometry(x.shape[0], r.height, r.width)
        memory = KVMemory(self.recipe.policy, geometry, self.dtype, "cpu", r.frames)
        for n in lengths[:index]:
            memory.commit(memory.open(write=n))
        passing, call, t = memory.open(read=x.shape[2]), CausalModel(model), torch.ones(x.shape[0], x.shape[2])
        return lambda: call(ModelInput(x, t, conditioning, passing))
