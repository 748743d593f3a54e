"""What forward and backward hold in memory, found by running them on tensors that have shapes and no storage.

The very code that trains runs here, on models of two and of three transformer blocks; every further block costs what
the third did. So there is no formula to fall behind the model, and a 14B model is measured in a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from salt import rope
from salt.conditioning import Conditioning
from salt.memory import KVMemory, attention
from salt.model_input import ModelInput
from salt.models.text_encoder import TOKENS
from salt.models.transformer_salt import CausalModel, SaltTransformer3DModel
from salt.models.word_embedder import WordEmbedder
from salt.rollout import block_lengths
from salt.sampling import BidirectionalModel
from train.config.model_configs import meta_model
from train.config.recipe import Recipe
from train.distributed.activation_checkpointing import recompute
from train.losses import linear_mmd, rbf_mmd, token_relation_distance
from train.methods.sc_dmd_losses import score
from train.models import adapt
from train.rollout.block_causal import blocks_of, causal_flow
from train.rollout.gradient_rollout import settings_of

IMAGE_TOKENS = 257  # what Wan 2.1's CLIP makes of a start image
FEW, MORE = 2, 3


@dataclass(frozen=True)
class Use:
    """Bytes of a forward: `peak` while it runs, `kept` until backward, `backward` on top of kept while that runs.

    Weights and their gradients are not in it, weights that autocast has cast are.
    """

    peak: int = 0
    kept: int = 0
    backward: int = 0

    def times(self, count: int) -> Use:
        """Several of it, kept together, running one after the other."""
        return replace(self, kept=count * self.kept)

    def towards(self, other: Use, share: float) -> Use:
        """The point on the line through self (share 0) and other (share 1)."""
        pairs = ((self.peak, other.peak), (self.kept, other.kept), (self.backward, other.backward))
        return Use(*(max(round(a + share * (b - a)), 0) for a, b in pairs))


@dataclass(frozen=True)
class Activations:
    """Bytes of a recipe's activations on one GPU, by what happens.

    rollout: one student forward without gradient. exits: all forwards with gradient of one rollout together.
    scores: one forward without gradient of the larger of critic and teacher. critic: its update. alignment: teacher
    features, with gradient, and their distance. whole: the block-causal forward of the stages `ode` and `tf`.
    """

    rollout: Use = Use()
    exits: Use = Use()
    scores: Use = Use()
    critic: Use = Use()
    alignment: Use = Use()
    whole: Use = Use()


class Live(TorchDispatchMode):
    """Counts the bytes of storages that were born inside it and still live. Those from outside are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: dict[int, StorageWeakRef] = {}
        self.born: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, Tensor):
                ref = StorageWeakRef(t.untyped_storage())
                if ref.cdata not in self.born:
                    self.outside.setdefault(ref.cdata, ref)
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                ref = StorageWeakRef(storage)  # as long as it is held, its address is nobody else's
                if ref.cdata not in self.outside and ref.cdata not in self.born:
                    self.born[ref.cdata] = (ref, storage.nbytes())
        self.sweep()
        return out

    def sweep(self) -> None:
        """Forget what has died since."""
        for key in [k for k, (ref, _) in self.born.items() if ref.expired()]:
            del self.born[key]
        self.now = sum(size for _, size in self.born.values())
        self.peak = max(self.peak, self.now)


def measure(forward: Callable[[], Tensor], gradient: bool) -> Use:
    """Run it, and its backward if gradient is asked for, and note what was alive when."""
    with Live() as live, torch.set_grad_enabled(gradient):
        out = forward()
        live.sweep()
        peak, kept = live.peak, live.now
        live.peak = kept
        if gradient:
            out.sum().backward()
    return Use(peak, kept, live.peak - kept)


def text_length(recipe: Recipe) -> int:
    """Tokens of a prompt's embedding."""
    return WordEmbedder().max_length if recipe.models.text == "words" else TOKENS


@contextmanager
def without_storage(bf16: bool) -> Iterator[None]:
    """Within: tensors are shapes, and autocast is as `parallel.DistributedModel` has it."""
    try:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False)
        with FakeTensorMode(allow_non_fake_inputs=True), autocast:
            yield
    finally:
        for kept in (attention._table, rope._turns):  # a table without storage must not serve a real rollout
            kept.cache_clear()


def place(model: SaltTransformer3DModel, dtype: torch.dtype) -> SaltTransformer3DModel:
    """A meta model's weights as tensors that only have shapes, on what passes for a device."""
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            here = torch.empty(p.shape, dtype=dtype)
            setattr(module, name, nn.Parameter(here, p.requires_grad))
    return model


@dataclass(frozen=True)
class Tracer:
    """Measures the forwards of one recipe.

    configs: of its models by name, as `backbones` gives them. gathered: weights come in bfloat16 (FSDP's mixed
    precision).
    """

    recipe: Recipe
    configs: dict[str, dict[str, Any]]
    gathered: bool

    def activations(self) -> Activations:
        recipe = self.recipe
        with without_storage(recipe.optimisation.precision == "bf16"):
            if recipe.stage != "distill":
                return Activations(whole=self._layers("student", self._whole, gradient=True))
            rollout, exits = self._clip() if recipe.rollout.kind == "bidirectional" else self._rollout()
            scores = [self._layers(name, self._score, gradient=False) for name in ("critic", "teacher")]
            aligns = recipe.loss.align != "none"
            return Activations(
                rollout,
                exits,
                scores=max(scores, key=lambda use: use.peak),
                critic=self._layers("critic", self._score, gradient=True),
                alignment=self._layers("teacher", self._alignment, True, self._align_layers) if aligns else Use(),
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
    ) -> Use:
        """A forward at the model's depth, or at `layers` of it, from those at FEW and at MORE transformer blocks."""
        few, more = (measure(call(self.model(name, n)), gradient) for n in (FEW, MORE))
        return few.towards(more, (layers or self.configs[name]["num_layers"]) - FEW)

    def model(self, name: str, layers: int) -> SaltTransformer3DModel:
        """A model as `building` and `parallel` make it, but for its depth."""
        settings = self.recipe.models
        with unset_fake_temporarily():  # peft's adapters can be laid over meta weights, not over fake ones
            model = meta_model({**self.configs[name], "num_layers": layers})
            if name == "student" and settings.lora_rank:
                with torch.device("meta"):
                    adapt(model, settings.lora_rank)
        if settings.checkpointing:
            recompute(model, self.recipe.keep)
        if name == "teacher":
            return place(model.requires_grad_(False), self.dtype)
        place(model, self.dtype if self.gathered else torch.float32)
        for p in model.parameters():
            # Gradients are counted with the weights: here they are there already, and are added to.
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
        return lambda: score(model, x, sigma, conditioning, self.recipe, x)

    def _whole(self, model: SaltTransformer3DModel) -> Callable[[], Tensor]:
        recipe, x = self.recipe, self.latents(model, self.recipe.rollout.frames)
        conditioning, blocks = self.conditioning(model), blocks_of(recipe.rollout, recipe.rollout.frames)
        clean = x if recipe.stage == "tf" or recipe.start.teacher == "causal" else None
        sigma_BF = torch.ones(x.shape[0], x.shape[2])
        return lambda: causal_flow(model, x, sigma_BF, conditioning, blocks, recipe.policy, clean)

    def _alignment(self, model: SaltTransformer3DModel) -> Callable[[], Tensor]:
        loss, conditioning = self.recipe.loss, self.conditioning(model)
        clip = self.latents(model, self.counted).requires_grad_()

        def features(x: Tensor) -> Tensor:
            if conditioning.channels is not None:
                x = torch.cat([x, conditioning.channels[:, :, : x.shape[2]]], dim=1)
            t = torch.ones(x.shape[0])
            image: Any = conditioning.image
            made = model.features(x, t, conditioning.text, len(model.blocks) - 1, encoder_hidden_states_image=image)
            return made.float()

        def distance() -> Tensor:
            with torch.no_grad():
                wanted = features(clip)
            if loss.align_distance == "trd":
                return token_relation_distance(features(clip), wanted, clip.shape[2], loss.align_margin)
            return (linear_mmd if loss.align_distance == "mmd" else rbf_mmd)(features(clip), wanted)

        return distance

    def _clip(self) -> tuple[Use, Use]:
        """A bidirectional student's rollout: a forward without gradient, and the exit."""

        def call(model: SaltTransformer3DModel) -> Callable[[], Tensor]:
            noted = BidirectionalModel(model)
            x, conditioning = self.latents(model, self.recipe.rollout.frames), self.conditioning(model)
            return lambda: noted(ModelInput(x, torch.ones(x.shape[0]), conditioning))

        return self._layers("student", call, False), self._layers("student", call, True).times(self._branches)

    @property
    def _branches(self) -> int:
        """Forwards with gradient per exit: a composed branch that is not detached is the second."""
        loss = self.recipe.loss
        return 2 if loss.semigroup and not loss.semigroup_stop_gradient else 1

    def _rollout(self) -> tuple[Use, Use]:
        """An autoregressive student's rollout: its largest forward without gradient, and all exits with it.

        What an exit keeps grows evenly with the frames that memory holds for it, so the first and the last are run.
        """
        recipe, r = self.recipe, self.recipe.rollout
        lengths = block_lengths(0, r.frames, settings_of(recipe, recipe.schedule(2)))
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        seen = [start if recipe.policy.window is None else min(start, recipe.policy.window - n)
                for start, n in zip(starts, lengths, strict=True)]  # fmt: skip

        def at(index: int, gradient: bool) -> Use:
            return self._layers("student", lambda model: self._block(model, lengths, index), gradient)

        kept, final = 0, Use()
        counted = [i for i, start in enumerate(starts) if start >= r.frames - self.counted]
        for n in sorted({lengths[i] for i in counted}):
            here = [i for i in counted if lengths[i] == n]
            low = high = at(here[0], True)
            if seen[here[-1]] > seen[here[0]]:
                high = at(here[-1], True)
            span = max(seen[here[-1]] - seen[here[0]], 1)
            kept += sum(low.towards(high, (seen[i] - seen[here[0]]) / span).kept for i in here)
            final = high if here[-1] == counted[-1] else final
        return at(counted[-1], False), Use(0, kept * self._branches, final.backward)

    def _block(self, model: SaltTransformer3DModel, lengths: list[int], index: int) -> Callable[[], Tensor]:
        """Block `index` of a rollout, with the blocks before it in a memory as `rollouts.play` makes one."""
        r, conditioning, x = self.recipe.rollout, self.conditioning(model), self.latents(model, lengths[index])
        geometry = model.memory_geometry(x.shape[0], r.height, r.width)
        memory = KVMemory(self.recipe.policy, geometry, self.dtype, "cpu", r.frames)
        for n in lengths[:index]:
            memory.open(write=n).commit()
        passing, call, t = memory.open(read=x.shape[2]), CausalModel(model), torch.ones(x.shape[0], x.shape[2])
        return lambda: call(ModelInput(x, t, conditioning, passing))
