"""The library of clips that the stages `ode` and `tf` learn from: one safetensors file each, with its prompt.

`NNNNNN.safetensors` holds `latents` [C, F, H, W], the clean clip, and for `ode` also `trajectory` [S, C, F, H, W], the
states of a teacher's ODE at the student's S steps; `prompt` is in its metadata. Clips of one's own need no trajectory
to serve `tf`. Trajectories are made here, from prompts alone (CausVid, arXiv 2412.07772, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from salt.conditioning import Conditioning
from salt.io.atomic import write_tensors
from salt.model_input import FlowModel, ModelInput
from salt.models.transformer_salt import CausalModel, SaltTransformer3DModel
from salt.noise import SeededNoise
from salt.sampling import BidirectionalModel
from salt.schedule import Schedule
from train.config.recipe import Recipe, RecipeError
from train.data.batch import Prompts
from train.models import build_teacher
from train.rollout.gradient_rollout import play, settings_of
from train.rollout.random_draws import number


class Clips:
    """The clips of a folder, by number. `prompts` are theirs, in order of their names."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.paths = sorted(Path(recipe.data.clips).glob("*.safetensors"))
        if not self.paths:
            raise RecipeError(f"data.clips: {recipe.data.clips} is empty, expected NNNNNN.safetensors in it")
        self.prompts = [self._prompt(path) for path in self.paths]

    def __call__(self, index: int, channels: int) -> tuple[Tensor, Tensor | None]:
        """Clean latents [C, F, H, W] and the trajectory [S, C, F, H, W] (stage `ode`) of a clip.

        Raises RecipeError naming the file where its shape is not the recipe's.
        """
        r, path = self.recipe.rollout, self.paths[index]
        shape = (channels, r.frames, r.height, r.width)
        with safe_open(path, "pt") as file:
            if self.recipe.stage == "tf":
                return _fitting(file, "latents", shape, path), None
            steps = max(r.share)
            return _fitting(file, "latents", shape, path), _fitting(file, "trajectory", (steps, *shape), path)

    def _prompt(self, path: Path) -> str:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {})["prompt"]
        except (SafetensorError, KeyError) as error:
            raise RecipeError(f"data.clips: {path}: found no prompt in its metadata ({error}), expected one") from error


def _fitting(file: Any, name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    found = tuple(file.get_slice(name).get_shape()) if name in file.keys() else None  # noqa: SIM118 (no mapping)
    if found != shape:
        raise RecipeError(f"data.clips: {path}: found {name} {found}, expected {shape} (the recipe's rollout)")
    return file.get_tensor(name).float()


class _Witness:
    """A model callable that keeps what the conditional branch sees at the student's steps: states of the ODE."""

    def __init__(self, call: FlowModel[Conditioning], negative: Conditioning, steps: Schedule) -> None:
        self.call, self.negative, self.timesteps = call, negative, steps.timesteps
        self.states: list[list[Tensor]] = [[] for _ in self.timesteps]

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        if inputs.conditioning is not self.negative:
            now = float(inputs.timestep.flatten()[0])
            for states, timestep in zip(self.states, self.timesteps, strict=True):
                if abs(now - timestep) < 1e-3:
                    states.append(inputs.x)
        return self.call(inputs)

    def trajectory(self) -> Tensor:
        """[B, S, C, F, H, W]; blocks of an autoregressive teacher are laid end to end."""
        return torch.stack([torch.cat(states, dim=2) for states in self.states], dim=1)


@torch.no_grad()
def trajectories(
    teacher: SaltTransformer3DModel, conditioning: Conditioning, negative: Conditioning, recipe: Recipe,
    seeds: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Clean clips [B, C, F, H, W] and their states [B, S, C, F, H, W] on the teacher's guided ODE, a clip per seed."""
    start, student = recipe.start, recipe.schedule(max(recipe.rollout.share))
    causal = start.teacher == "causal"
    whole = replace(recipe, rollout=replace(recipe.rollout, kind="autoregressive" if causal else "bidirectional"))
    settings = replace(settings_of(recipe, recipe.schedule(start.teacher_steps), "ode"), guidance=1 + start.guidance)
    r, channels = recipe.rollout, teacher.config.out_channels
    noise = SeededNoise(seeds, len(seeds), channels, r.height, r.width, conditioning.text.device)
    call = CausalModel(teacher) if causal else BidirectionalModel(teacher)
    witness = _Witness(call, negative, student)
    clip = play(witness, teacher, conditioning, whole, settings, noise, negative if start.guidance else None)
    return clip, witness.trajectory()


def make_clips(recipe: Recipe, device: torch.device, on_clip: Callable[[int], None] | None = None) -> int:
    """Write the trajectories that `data.clips` still lacks, `start.clips` in all; returns how many it wrote.

    Resumable: a clip has its own seed and file. on_clip: called with the number of clips that are there.
    """
    folder = Path(recipe.data.clips)
    missing = [i for i in range(recipe.start.clips) if not (folder / f"{i:06d}.safetensors").exists()]
    if not missing:
        return 0
    teacher = build_teacher(recipe)
    nn.Module.to(teacher, device)
    prompts = Prompts(recipe, device)
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else torch.float32
    batch = recipe.optimisation.micro_batch
    for at in range(0, len(missing), batch):
        numbers = missing[at : at + batch]
        texts = [prompts.prompt(0, i, "clips") for i in numbers]
        both = prompts.conditioning(texts)
        seeds = [number(recipe.run.seed, "clips", i) for i in numbers]
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            clean, states = trajectories(teacher, *both, recipe, seeds)
        for i, text, latents, trajectory in zip(numbers, texts, clean, states, strict=True):
            tensors = {"latents": latents, "trajectory": trajectory}
            tensors = {name: x.to(dtype) for name, x in tensors.items()}
            write_tensors(folder / f"{i:06d}.safetensors", tensors, {"prompt": text})
        if on_clip is not None:
            on_clip(recipe.start.clips - len(missing) + at + len(numbers))
    return len(missing)
