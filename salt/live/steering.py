"""How the next block is made: prompts, steps, guidance, seed and policy as the controls have set them. Plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..conditioning import Switch
from ..errors import InputError
from ..memory import MemoryPolicy
from ..video_in.strength import DEFAULT_STRENGTH
from .adapters import LoraStrength, acting
from .controls import BlendMethod, Control, Guidance, Loras, Nfe, Policy, Prompt, Seed, Strength
from .prompt_blend import PromptMix


@dataclass(frozen=True)
class BlockChoice:
    """Everything that makes a block, besides the blocks before it. nfe: None for the student's own steps. loras: those
    that act. strength: for pictures of a camera or a file."""

    prompt: PromptMix
    switch: Switch
    keep_sink: bool
    seed: int
    nfe: int | None
    guidance: float
    policy: MemoryPolicy
    loras: tuple[LoraStrength, ...] = ()
    strength: float = DEFAULT_STRENGTH


@dataclass(frozen=True)
class PromptBlend:
    """From `origin` to the prompt that is steered to, over `blocks` blocks of which `done` were made."""

    origin: PromptMix
    blocks: int
    method: BlendMethod
    done: int = 0


@dataclass(frozen=True)
class Steering:
    """Settings of the blocks to come. shown: the prompt of the block before. switch, recache: of the next block alone;
    recache: its LoRAs ask for it."""

    prompt: PromptMix
    seed: int
    nfe: int | None
    guidance: float
    policy: MemoryPolicy
    shown: PromptMix
    switch: Switch = "keep"
    keep_sink: bool = False
    blend: PromptBlend | None = None
    loras: tuple[LoraStrength, ...] = ()
    recache: bool = False
    strength: float = DEFAULT_STRENGTH

    def after(self, control: Control) -> Steering:
        """With a control that is about the blocks to come; any other changes nothing."""
        if isinstance(control, Prompt):
            return self._with_prompt(control)
        if isinstance(control, Seed):
            return replace(self, seed=control.seed)
        if isinstance(control, Nfe):
            return replace(self, nfe=control.nfe)
        if isinstance(control, Guidance):
            return replace(self, guidance=control.guidance)
        if isinstance(control, Strength):
            return replace(self, strength=control.strength)
        if isinstance(control, Policy):
            policy = MemoryPolicy.parse(control.policy)
            switch = "keep" if self.switch == "shot" and policy.kind != "shots" else self.switch
            return replace(self, policy=policy, switch=switch)
        if isinstance(control, Loras):
            if control.recache and self.policy.kind == "far":
                raise InputError("recache", f"has no effect on a memory of {self.policy}, which is written once")
            return replace(self, loras=acting(control.adapters), recache=control.recache)
        return self

    def _with_prompt(self, control: Prompt) -> Steering:
        if control.switch == "shot" and self.policy.kind != "shots":
            raise InputError("switch", f"found shot with the memory {self.policy}, expected one as shots:8,window:32")
        if control.switch == "recache" and self.policy.kind == "far":
            raise InputError(
                "switch", f"found recache, expected keep or cut: a memory of {self.policy} is written once"
            )
        target = PromptMix.weighted(control.prompts)
        blend = PromptBlend(self.shown, control.blend.blocks, control.blend.method) if control.blend.blocks else None
        if blend is not None:
            blend.origin.toward(target, 0.5, blend.method)  # whether it can be mixed
        # A switch that has not been applied yet is not lost with its prompt.
        both = (self.switch, control.switch)
        stronger = "cut" if "cut" in both else "shot" if "shot" in both else control.switch
        keep_sink = control.keep_sink and stronger == "recache"
        return replace(self, prompt=target, switch=stronger, keep_sink=keep_sink, blend=blend)

    def choose(self) -> tuple[BlockChoice, Steering]:
        """The next block, and the steering after it."""
        prompt, blend = self.prompt, self.blend
        if blend is not None:
            done = blend.done + 1
            prompt = blend.origin.toward(self.prompt, done / (blend.blocks + 1), blend.method)
            blend = replace(blend, done=done) if done < blend.blocks else None
        switch = "recache" if self.recache and self.switch == "keep" else self.switch
        choice = BlockChoice(
            prompt,
            switch,
            self.keep_sink,
            self.seed,
            self.nfe,
            self.guidance,
            self.policy,
            self.loras,
            self.strength,
        )
        return choice, replace(self, shown=prompt, switch="keep", keep_sink=False, blend=blend, recache=False)
