"""Clip dataset of the stages `ode`, `cd` and `tf`: one safetensors file per clip, with its prompt.

`NNNNNN.safetensors` holds `latents` [C, F, H, W], the clean clip, and for `ode` also `trajectory` [S, C, F, H, W], the
states of a teacher's ODE at the student's S steps; `prompt` is in its metadata. The other stages need no trajectory.
Trajectories are generated from prompts alone (CausVid, arXiv 2412.07772, section 4.3).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from salt.conditioning import Conditioning
from salt.io.atomic import write_tensors
from salt.io.content import content_key, path_digest
from salt.model_input import FlowModel, ModelInput
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import Schedule
from train.config.recipe import Recipe, RecipeError
from train.data.clip_cache import set_aside_stale
from train.data.prompts import Prompts
from train.data.shards import own_shards, with_progress
from train.models import build_teacher
from train.rollout.random_draws import seed_for
from train.rollout.recipe_rollout import clip_noise, flow_model, rollout_settings, run_rollout


class ClipDataset:
    """The clips of a folder, in order of their file names. `prompts`: one for each."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.paths = sorted(Path(recipe.data.clips).glob("*.safetensors"))
        if not self.paths:
            raise RecipeError("data.clips", f"found nothing in {recipe.data.clips}, expected NNNNNN.safetensors")
        self.prompts = [self._prompt(path) for path in self.paths]

    def __call__(self, index: int, channels: int) -> tuple[Tensor, Tensor | None]:
        """Clean latents [C, F, H, W] and the trajectory [S, C, F, H, W] (stage `ode`) of a clip.

        Raises RecipeError naming the file where its shape is not the recipe's.
        """
        r, path = self.recipe.rollout, self.paths[index]
        shape = (channels, r.frames, r.height, r.width)
        with safe_open(path, "pt") as file:
            if self.recipe.stage != "ode":
                return _read_tensor(file, "latents", shape, path), None
            steps = max(r.share)
            return _read_tensor(file, "latents", shape, path), _read_tensor(file, "trajectory", (steps, *shape), path)

    def _prompt(self, path: Path) -> str:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {})["prompt"]
        except (SafetensorError, KeyError) as error:
            raise RecipeError("data.clips", f"found no prompt in the metadata of {path} ({error})") from error


def _read_tensor(file: safe_open, name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """A tensor of the file. Raises RecipeError where it is missing or of another shape."""
    found = tuple(file.get_slice(name).get_shape()) if name in file.keys() else None  # noqa: SIM118 (no mapping)
    if found != shape:
        problem = f"found {name} {found} in {path}, expected {shape} (the recipe's rollout)"
        raise RecipeError("data.clips", problem)
    return file.get_tensor(name).float()


class TrajectoryRecorder:
    """A model callable that records the conditional branch's inputs at the student's steps: states of the ODE."""

    def __init__(self, model: FlowModel[Conditioning], negative: Conditioning, steps: Schedule) -> None:
        self.model, self.negative, self.timesteps = model, negative, steps.timesteps
        self.states: list[list[Tensor]] = [[] for _ in self.timesteps]

    def __call__(self, inputs: ModelInput[Conditioning], /) -> Tensor:
        if inputs.conditioning is not self.negative:
            now = float(inputs.timestep.flatten()[0])
            for states, timestep in zip(self.states, self.timesteps, strict=True):
                if abs(now - timestep) < 1e-3:
                    states.append(inputs.x)
        return self.model(inputs)

    def trajectory(self) -> Tensor:
        """[B, S, C, F, H, W]; the blocks of an autoregressive teacher are concatenated."""
        return torch.stack([torch.cat(states, dim=2) for states in self.states], dim=1)


@torch.no_grad()
def trajectories(
    teacher: SaltTransformer3DModel, conditioning: Conditioning, negative: Conditioning, recipe: Recipe,
    seeds: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Clean clips [B, C, F, H, W] and their states [B, S, C, F, H, W] on the teacher's guided ODE, a clip per seed."""
    start = recipe.start
    kind = "autoregressive" if start.teacher == "causal" else "bidirectional"
    teachers = replace(recipe, rollout=replace(recipe.rollout, kind=kind))
    schedule = recipe.schedule(start.teacher_steps)
    settings = replace(rollout_settings(recipe, schedule, "ode"), guidance=1 + start.guidance)
    noise = clip_noise(teacher, recipe, seeds, conditioning.text.device)
    student_steps = recipe.schedule(max(recipe.rollout.share))
    recorder = TrajectoryRecorder(flow_model(teacher, teachers), negative, student_steps)
    unconditional = negative if start.guidance else None
    clip = run_rollout(recorder, teacher, conditioning, teachers, settings, noise, negative=unconditional)
    return clip, recorder.trajectory()


def clip_paths(recipe: Recipe, count: int) -> list[Path]:
    """The files of `count` clips."""
    return [Path(recipe.data.clips) / f"{i:06d}.safetensors" for i in range(count)]


def generate_clips(recipe: Recipe, device: torch.device) -> int:
    """Write this process's share of the trajectories that `data.clips` still lacks; returns how many it wrote.

    Resumable: every clip has its own seed and file, with the key of what it was made from (prompt, teacher, settings);
    a clip made from something else is moved to `unused/` and made anew. There are `start.clips` in all, in shards of a
    micro-batch.
    """
    paths, r = clip_paths(recipe, recipe.start.clips), recipe.rollout
    prompts = Prompts(recipe, device)
    texts = [prompts.prompt(0, i, "clips") for i in range(len(paths))]
    shared = _trajectory_settings(recipe)
    keys = {path: content_key(shared, path.stem, text) for path, text in zip(paths, texts, strict=True)}
    shape = (None, r.frames, r.height, r.width)
    set_aside_stale(keys, {"latents": shape, "trajectory": (max(r.share), *shape)})
    shards = own_shards(paths, recipe.optimisation.micro_batch)
    if not shards:
        return 0
    teacher = build_teacher(recipe)
    nn.Module.to(teacher, device)
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else torch.float32
    written = 0
    for numbers in with_progress(shards, recipe.data.clips):
        both = prompts.conditioning([texts[i] for i in numbers])
        seeds = [seed_for(recipe.run.seed, "clips", i) for i in numbers]
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            clean, states = trajectories(teacher, *both, recipe, seeds)
        for i, latents, trajectory in zip(numbers, clean, states, strict=True):
            if paths[i].exists():
                continue
            tensors = {"latents": latents, "trajectory": trajectory}
            tensors = {name: x.to(dtype) for name, x in tensors.items()}
            write_tensors(paths[i], tensors, {"prompt": texts[i], "key": keys[paths[i]]})
            written += 1
    return written


def _trajectory_settings(recipe: Recipe) -> str:
    """The key of all that trajectories have in common."""
    r, start = recipe.rollout, recipe.start
    return content_key(
        path_digest(recipe.models.teacher), recipe.models.text == "words", recipe.data.negative, recipe.run.seed,
        (r.frames, r.height, r.width, r.frames_per_block, r.independent_first_frame, r.memory, max(r.share), r.shift),
        (start.teacher, start.teacher_steps, start.guidance), recipe.optimisation.precision,
    )  # fmt: skip
