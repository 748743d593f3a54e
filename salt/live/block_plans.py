"""How the blocks of a live session are made: from a `BlockChoice` to the `BlockPlan` that the rollout takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Generic

from torch import Tensor

from ..acceleration.transfers import to_main_memory
from ..block_plan import BlockPlan, RolloutSettings
from ..conditioning import PromptChange
from ..errors import InputError
from ..model_input import Condition
from ..noise import GivenNoise, NoiseSource
from ..schedule import step_list
from .history import Denoising, KeptBlock, latents_before, needs_history
from .live_model import LiveModel, LiveModelInfo
from .prompt_blend import Conditionings, Latest
from .settings import LiveSettings
from .start import LiveStart
from .steering import BlockChoice
from .video_feed import VideoFeed

NOT_KEPT = "needs the latents before it, which are not kept or were not given, to be encoded again"


class BlockPlanner(Generic[Condition]):
    """Plans of blocks; conditionings, noise and settings of the latest ones are kept.

    info, start, feed: the session's, what it begins with, and pictures that its blocks start from.
    """

    def __init__(
        self,
        live_model: LiveModel[Condition],
        info: LiveModelInfo,
        settings: LiveSettings,
        start: LiveStart | None,
        feed: VideoFeed | None,
    ) -> None:
        self.live_model, self.info, self.settings, self.start, self.feed = live_model, info, settings, start, feed
        self.conditionings = Conditionings(live_model)
        self._noise: Latest[NoiseSource] = Latest(4)
        self._rollout_settings: Latest[RolloutSettings] = Latest(8)

    def plan_new(self, choice: BlockChoice, tip: KeptBlock | None) -> BlockPlan[Condition]:
        """How the block after `tip` is made: as the session begins, or from the pictures that come, where there are
        some."""
        at, begins = 0 if tip is None else tip.stop, self.start
        if begins is not None and at == 0 and (first := begins.first_frame(self.info)) is not None:
            return replace(self.plan(choice, tip), first_frame=first.to(self.info.device))
        known = None if begins is None else begins.known(at, self.rollout_settings(None, 1.0))
        if known is not None:
            return replace(self.plan(choice, tip, known), given=True)
        plan = self.plan(choice, tip)
        return plan if self.feed is None else self.feed.begin(plan, at, choice.strength)

    def plan_again(self, block: KeptBlock) -> BlockPlan[Condition]:
        """How a block that was made is written into the memory again, as it was then."""
        if block.denoising is None:
            return replace(self.plan(block.choice, block.previous, block.latents), given=block.is_start)
        plan = self.plan(block.choice, block.previous)
        begins, noise = block.denoising.begins, plan.noise
        if begins is not None:
            noise = GivenNoise(begins.to(self.info.device, non_blocking=True), block.start, noise)
        return replace(plan, settings=block.denoising.settings, noise=noise)

    def denoising(self, plan: BlockPlan[Condition], start: int) -> Denoising | None:
        """What makes the block of a plan, at latent frame `start`, again; None where its clean latents are enough."""
        if plan.policy is None or not plan.policy.keeps_last_step or plan.latents is not None:
            return None
        begins = None
        if self.feed is not None and self.feed.used:
            begins = to_main_memory(plan.noise(start, plan.length(start), 0))
        return Denoising(plan.settings, begins)

    def plan(
        self, choice: BlockChoice, before: KeptBlock | None, latents: Tensor | None = None
    ) -> BlockPlan[Condition]:
        """How a block after `before` is made. latents: of a block that is there, and is only encoded."""
        start, device = 0 if before is None else before.stop, self.info.device
        self.live_model.use_loras(choice.loras)
        switch = choice.switch if start else "keep"
        prefix = self.info.shot_prefix if switch == "shot" else ""
        conditioning = self.conditionings.of(choice.prompt.prefixed(prefix))
        prompts = [PromptChange(start, conditioning, switch, choice.keep_sink)]
        if choice.guidance != 1.0:
            prompts.append(PromptChange(start, self.conditionings.of(self.settings.negative)))
        history = None
        if needs_history(choice, None if before is None else before.choice):
            known = latents_before(before, choice, start)
            if known is None:
                raise InputError("switch", NOT_KEPT)
            history = [x.to(device, non_blocking=True) for x in known]
        return BlockPlan(
            prompts,
            self.rollout_settings(choice.nfe, choice.guidance, self.begins_clip(before)),
            self._noise.get(choice.seed, lambda: self.live_model.noise(choice.seed)),
            choice.policy,
            history,
            None if latents is None else latents.to(device, non_blocking=True),
        )

    def begins_clip(self, before: KeptBlock | None) -> bool:
        """Whether the block after `before` is the first that the clip samples, as `salt.rollout` has it."""
        if self.feed is not None or (self.start is not None and self.start.memory is not None):
            return False
        return before is None or before.is_start

    def rollout_settings(self, nfe: int | None, guidance: float, begins: bool = False) -> RolloutSettings:
        """nfe: None for the student's own steps. begins: of the first block that the clip samples."""
        own = self.info.schedule

        def make() -> RolloutSettings:
            settings = RolloutSettings(
                schedule=own if nfe is None else own.with_steps(step_list(nfe, own.rule)),
                stepping=self.settings.stepping or self.info.stepping,
                frames_per_block=self.info.frames_per_block,
                independent_first_frame=self.info.independent_first_frame,
                guidance=guidance,
            )
            return settings.first if begins else settings

        return self._rollout_settings.get((nfe, guidance, begins), make)
