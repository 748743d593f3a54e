"""Guidance by ComfyUI's own guider, for a MODEL with functions or wrappers around it (APG, RescaleCFG, CFGOverride).

A denoising step of a block is to the guider what a step of a clip is in any other sampler: it calls the wrappers of
`predict_noise`, the guidance functions with x0 predictions of both branches, and they may call the MODEL again (skip
layer guidance). Each call of the MODEL finds the memory of the branch whose conditioning it is called with. These
passes only read, so calls that leave out layers, or steps, do no harm; context passes write, and are not guided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...salt.errors import InputError
from ...salt.model_input import FlowModel, Guide, ModelInput
from ...salt.schedule import NUM_TRAIN_TIMESTEPS
from .comfy_model import LEAST_SIGMA, ComfyModel, Conds, flow_to
from .model_patches import names_of, sampler_functions, wrappers_of

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

POSITIVE, NEGATIVE = "positive", "negative"
WRAPPER_KEY = "salt_memory"
CalcCondBatch = Callable[["BaseModel", list["Conds | None"], Tensor, Tensor, dict[str, Any]], list[Tensor]]


def evaluates_negative(model: ModelPatcher) -> bool:
    """Whether the unconditional branch may be evaluated at a guidance of 1: a node asks for it, or sets another."""
    kind, options = "predict_noise", model.model_options
    asked = options.get("disable_cfg1_optimization")
    return bool(asked or model.get_all_wrappers(kind) or wrappers_of(options, kind))


def needs_guider(options: dict[str, Any], guider: CFGGuider) -> bool:
    """Whether a step is more than a MODEL call per branch and their linear combination."""
    import comfy.samplers

    core = comfy.samplers.CFGGuider
    own = any(getattr(type(guider), name, None) is not getattr(core, name) for name in ("__call__", "predict_noise"))
    wrapped = wrappers_of(options, "predict_noise", "calc_cond_batch")
    return bool(own or wrapped or sampler_functions(options))


def guided_flow(model: FlowModel[Conds], guide: Guide[Conds]) -> FlowModel[Conds]:
    """A model whose passes that only read are guided, on one branch."""

    def flow(inputs: ModelInput[Conds], /) -> Tensor:
        memory = inputs.memory
        writes = memory is not None and any(segment.writes for segment in memory.segments)
        return model(inputs) if writes else guide([inputs])

    return flow


class GuiderGuide:
    """A `salt.model_input.Guide` that asks a guider, which ComfyUI has prepared for sampling.

    seed: the sampler's. model: calls of the MODEL go through its `attending`.
    """

    def __init__(self, guider: CFGGuider, model: ComfyModel, seed: int | None) -> None:
        self.guider, self.model, self.seed = guider, model, seed

    def __call__(self, branches: Sequence[ModelInput[Conds]], /) -> Tensor:
        x = branches[0].x
        sigma = (branches[0].timestep.amax(dim=1).to(torch.float32) / NUM_TRAIN_TIMESTEPS).clamp_min(LEAST_SIGMA)
        names = (POSITIVE, NEGATIVE)[: len(branches)]
        conds = {name: self.model.conds_of(inputs) for name, inputs in zip(names, branches, strict=True)}
        of_entry = {
            entry["uuid"]: inputs
            for name, inputs in zip(names, branches, strict=True)
            for entry in conds[name]
        }  # fmt: skip
        before, self.guider.conds = self.guider.conds, conds
        try:
            with self.calls_with_memory():
                options = self.options_with(self.branch_calls(of_entry))
                denoised = self.guider(x, sigma, model_options=options, seed=self.seed)
        finally:
            self.guider.conds = before
        return flow_to(denoised, x, sigma)

    def options_with(self, wrapper: Callable[..., list[Tensor]]) -> dict[str, Any]:
        """The sampler's `model_options` with one wrapper more, the innermost, around calls of the MODEL."""
        import comfy.model_patcher
        import comfy.patcher_extension

        options = comfy.model_patcher.create_model_options_clone(self.model.model_options)
        kind = comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
        comfy.patcher_extension.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper, options, is_model_options=True)
        return options

    def branch_calls(self, of_entry: dict[object, ModelInput[Conds]]) -> Callable[..., list[Tensor]]:
        """A wrapper of `calc_cond_batch` that makes a call of its own per conditioning, with its branch's memory."""

        def calls(
            executor: CalcCondBatch,
            base: BaseModel,
            conds: list[Conds | None],
            x: Tensor,
            sigma: Tensor,
            options: dict[str, Any],
        ) -> list[Tensor]:
            self.check_negative()
            results = []
            for cond in conds:
                if not cond:
                    results += executor(base, [cond], x, sigma, options)
                    continue
                inputs = of_entry.get(cond[0].get("uuid"))
                if inputs is None:
                    raise InputError(
                        "model", f"has a patch by {self.nodes()} that guides by a conditioning without a memory"
                    )
                sigma_BF = sigma.to(torch.float32).view(-1, 1) * (inputs.timestep > 0)  # a given frame's is 0
                with self.model.attending(inputs, x, sigma_BF):
                    results += executor(base, [cond], x, sigma, options)
            return results

        return calls

    def check_negative(self) -> None:
        """Raise InputError where a node (CFGOverride) has set a guidance that needs a negative conditioning."""
        if NEGATIVE not in self.guider.conds and not math.isclose(self.guider.cfg, 1.0):
            names = names_of(wrappers_of(self.model.model_options, "predict_noise")) or "the guider"
            raise InputError(NEGATIVE, f"must be connected: {names} sets cfg to {self.guider.cfg:g}")

    def nodes(self) -> str:
        """Names of the nodes that take part in guidance."""
        options = self.model.model_options
        return names_of(sampler_functions(options) + wrappers_of(options, "predict_noise", "calc_cond_batch"))

    @contextmanager
    def calls_with_memory(self) -> Iterator[None]:
        """While open, a call of the MODEL outside `branch_calls` is refused: it would not see the clip so far."""
        base = self.model.base
        before, apply_model = base.__dict__.get("apply_model"), base.apply_model

        def checked(*args: object, **kwargs: object) -> Tensor:
            if "process_timestep" not in base.__dict__:
                raise InputError("model", f"has a patch by {self.nodes()} that calls it past ComfyUI's functions")
            return apply_model(*args, **kwargs)

        base.apply_model = checked
        try:
            yield
        finally:
            del base.apply_model
            if before is not None:
                base.apply_model = before
