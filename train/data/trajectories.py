"""Trajectories of a teacher's ODE for the stage `ode`, generated from prompts, or behind clean clips.

Sources: CausVid (arXiv 2412.07772, section 4.3) for a bidirectional teacher. Causal Forcing's release
(get_causal_ode_data_chunkwise.py) for a causal one: all blocks of a clip go along their ODE at once, each behind the
clean blocks of a real clip.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from salt.conditioning import Conditioning
from salt.io.atomic import write_tensors
from salt.io.content import content_key, path_digest
from salt.model_input import FlowModel, ModelInput
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.schedule import Schedule, euler
from train.config.recipe import Recipe, RecipeError
from train.data.clip_cache import metadata_of, set_aside_stale
from train.data.clip_dataset import ClipDataset
from train.data.cost import announce, trajectory_cost
from train.data.prompts import Prompts
from train.data.shards import own_shards, with_progress
from train.models import build_teacher
from train.rollout.block_causal import ClipModel, causal_flow, clip_blocks
from train.rollout.random_draws import seed_for
from train.rollout.recipe_rollout import clip_noise, flow_model, rollout_settings, run_rollout


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


@torch.no_grad()
def trajectories_behind(
    teacher: ClipModel, clean: Tensor, noise: Tensor, conditioning: Conditioning, negative: Conditioning,
    recipe: Recipe,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Ends [B, C, F, H, W] and states [B, S, C, F, H, W] of the guided ODE of every block behind the `clean` blocks.

    clean, noise: [B, C, F, H, W], the past that blocks see, and the states that all of them begin with.
    """
    schedule, blocks = recipe.schedule(recipe.start.teacher_steps), clip_blocks(recipe.rollout, clean.shape[2])
    every = schedule.nfe // max(recipe.rollout.share)
    guidance, x, states = recipe.start.guidance, noise, []
    for i, (sigma, following) in enumerate(zip(schedule.sigmas, (*schedule.sigmas[1:], 0.0), strict=True)):
        if i % every == 0:
            states.append(x)
        sigma_BF = x.new_full((x.shape[0], x.shape[2]), sigma)
        flow = causal_flow(teacher, x, sigma_BF, conditioning, blocks, recipe.policy, clean).float()
        if guidance:
            without = causal_flow(teacher, x, sigma_BF, negative, blocks, recipe.policy, clean).float()
            flow = flow + guidance * (flow - without)
        x = euler(x, flow, sigma, following)
    return x, torch.stack(states, dim=1)


def _history(recipe: Recipe) -> ClipDataset:
    """The clean clips of `data.history`. Raises RecipeError where there are none."""
    if not recipe.data.history:
        problem = "found none, expected the folder of clean clips that `precompute` of a recipe of the stage tf fills"
        raise RecipeError("data.history", f"{problem} (or start.history=rollout)")
    return ClipDataset(recipe, "history")


def generate_clips(recipe: Recipe, device: torch.device) -> int:
    """Write this process's share of the trajectories that `data.clips` still lacks; returns how many it wrote.

    Resumable: every clip has its own seed and file, with the key of what it was made from (prompt, teacher, settings);
    a clip made from something else is moved to `unused/` and made anew. There are `start.clips` in all, at most as many
    as clean clips, in shards of a micro-batch.
    """
    history = _history(recipe) if recipe.has_history else None
    count, r = recipe.start.clips, recipe.rollout
    if history is not None:
        count = min(count, len(history.paths))
    paths = [Path(recipe.data.clips) / f"{i:06d}.safetensors" for i in range(count)]
    if history is None:
        prompts = Prompts(recipe, device)
        texts = [prompts.prompt(0, i, "clips") for i in range(len(paths))]
    else:
        prompts, texts = Prompts(recipe, device, lines=history.prompts), history.prompts[: len(paths)]
    shared = _trajectory_settings(recipe)
    past = [()] * len(paths) if history is None else [(_clip_key(path),) for path in history.paths[: len(paths)]]
    keys = {p: content_key(shared, p.stem, text, *key) for p, text, key in zip(paths, texts, past, strict=True)}
    shape = (None, r.frames, r.height, r.width)
    shapes = {"latents": shape, "trajectory": (max(r.share), *shape)}
    set_aside_stale(keys, shapes | ({"history": shape} if history else {}))
    announce("data.clips", recipe.data.clips, paths, *trajectory_cost(recipe))
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
        tensors: dict[str, Tensor] = {}
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            if history is None:
                tensors["latents"], tensors["trajectory"] = trajectories(teacher, *both, recipe, seeds)
            else:
                channels = teacher.config.out_channels
                clean = torch.stack([history(i, channels).latents for i in numbers]).to(device)
                noise = clip_noise(teacher, recipe, seeds, device)(0, r.frames, 0)
                ends, states = trajectories_behind(teacher, clean, noise, *both, recipe)
                tensors = {"latents": ends, "trajectory": states, "history": clean}
        for row, i in enumerate(numbers):
            if paths[i].exists():
                continue
            rows = {name: x[row].to(dtype) for name, x in tensors.items()}
            write_tensors(paths[i], rows, {"prompt": texts[i], "key": keys[paths[i]]})
            written += 1
    return written


def _clip_key(path: Path) -> str:
    """What a clean clip was made from, as `precompute` wrote it, else its content."""
    return (metadata_of(path) or {}).get("key") or path_digest(path)


def _trajectory_settings(recipe: Recipe) -> str:
    """The key of all that trajectories have in common."""
    r, start = recipe.rollout, recipe.start
    return content_key(
        path_digest(recipe.models.teacher), recipe.models.text == "words", recipe.data.negative, recipe.run.seed,
        (r.frames, r.height, r.width, r.frames_per_block, r.independent_first_frame, r.memory, max(r.share), r.shift),
        (start.teacher, start.teacher_steps, start.guidance), recipe.optimisation.precision,
    )  # fmt: skip
