"""Training speed: one generator and five critic updates by our trainer and by the published loop.

`python -m benchmarks.training --size small|1.3B [--compile] [--out benchmarks/results/training.json]`

Weights are random; both loops run in turn on the same models, optimizers and random draws, in one process.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import PeakMemory, environment, median, release_memory, write_json
from benchmarks.plain import plain_update
from salt.checkpoints import save_diffusers
from salt.models.text_encoder import TOKENS
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.selftest.timing import timed
from train.config.model_configs import WAN_1_3B
from train.config.recipe import Data, Losses, Models, Optimisation, Recipe, Rollouts, RunSettings, SavedActivations
from train.distributed.activation_checkpointing import recompute
from train.distributed.launch import process_device
from train.distributed.parallel import DistributedModel
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout.random_draws import draw_update, generator_for

Level = Literal["everything", SavedActivations]  # what is kept of a forward; "everything": no checkpointing
LEVELS: tuple[Level, ...] = get_args(Level)
SEARCHED_UPDATES = 100


@dataclass(frozen=True)
class Size:
    """A model, its clips, and how often an update is timed. "small" has the same share of attention as the 1.3B."""

    config: dict[str, Any]
    rollout: Rollouts
    text_tokens: int
    precision: Literal["bf16", "no"]
    repeats: int


SIZES = {
    "1.3B": Size({"out_channels": 16, **WAN_1_3B}, Rollouts(), TOKENS, "bf16", 3),
    "small": Size(
        dict(num_attention_heads=2, attention_head_dim=64, ffn_dim=768, num_layers=3, freq_dim=256),
        Rollouts(height=20, width=24), 40, "no", 1,
    ),
}  # fmt: skip


class RandomText:
    """Replacement for the text encoder: random embeddings [B, max_length, 4096], seeded by the prompt."""

    dim = 4096

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.stack([torch.randn(self.max_length, self.dim, generator=generator_for(p)) for p in prompts])


def make_trainer(size: Size, folder: Path, device: torch.device) -> SCDMDTrainer:
    """A trainer as slow as that of the recipe `self_forcing`, on random weights. The teacher has the student's size."""
    torch.manual_seed(0)
    with device:
        model = SaltTransformer3DModel(**size.config)
        torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    save_diffusers(model, folder / "model", dtype=torch.bfloat16 if size.precision == "bf16" else None)
    del model
    path = str(folder / "model")
    trainer = SCDMDTrainer(
        Recipe(
            models=Models(student=path, teacher=path, critic=path), data=Data(prompts="shapes"),
            rollout=size.rollout, loss=Losses(),
            optimisation=Optimisation(batch=1, micro_batch=1, precision=size.precision, ema_start=0),
            run=RunSettings(out=str(folder / "run"), tracker="none"),
        )
    )  # fmt: skip
    trainer.prompts.encoder = RandomText(size.text_tokens)
    trainer.prompts.negative = trainer.prompts.encoder.encode([""])
    return trainer


def typical_update(recipe: Recipe) -> int:
    """The first update whose rollouts take the average number of steps (exits are drawn uniformly)."""
    per = recipe.optimisation.critic_per_generator
    middle = (1 + max(recipe.rollout.share)) / 2

    def steps(update: int) -> list[int]:
        critics = [draw_update(recipe, update * per + i, "critic") for i in range(per)]
        return [c.exit_index + 1 for c in (*critics, draw_update(recipe, update, "generator"))]

    return next(u for u in range(SEARCHED_UPDATES) if mean(steps(u)) == middle)


def set_level(trainer: SCDMDTrainer, level: Level) -> None:
    """Set the learners' activation checkpointing."""
    for learner in trainer.learners.values():
        if level == "everything":
            learner.model.model.disable_gradient_checkpointing()
        else:
            recompute(learner.model.model, level)


def measure_case(trainer: SCDMDTrainer, name: str, level: Level, update: int, repeats: int, warm: bool) -> dict:
    """Seconds and peak MiB of one generator and five critic updates; `error` instead if memory runs out."""
    set_level(trainer, level)
    one = (lambda: plain_update(trainer, update)) if name == "plain" else (lambda: trainer.update(update))
    try:
        if warm:
            one()
        with PeakMemory(trainer.device) as peak:
            seconds = [timed(one, trainer.device) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        for learner in trainer.learners.values():
            learner.optimizer.zero_grad(set_to_none=True)
        release_memory(trainer.device)
        return {"error": "out of memory"}
    return {"seconds": median(seconds), "peak_mib": peak.mib}


def measure_training(
    size: str = "small", device: str | None = None, compiled: bool = False, every_level: bool = True
) -> dict:
    """Both loops per checkpointing level: {"cases": {"ours / attention": {seconds, peak_mib}, ...}, ratios}.

    device: must be the one that the trainer uses (the GPU if there is one). compiled: measure ours also with compiled
    blocks, which takes minutes. every_level: measure all levels, not only the published one and the recipes' default.
    Ratios: `speedup`: the plain loop, checkpointed per block as it is published, over ours at the recipes' default;
    `speedup_best`: over our fastest. Both are missing if one of their cases ran out of memory.

    Raises ValueError for another device.
    """
    where = process_device()
    if device is not None and torch.device(device).type != where.type:
        raise ValueError(f"device: found {device}, expected {where.type}, which the trainer uses on this machine")
    chosen = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(chosen, Path(folder), where)
    update, cases = typical_update(trainer.recipe), {}
    warm = where.type == "cuda"  # on a CPU the first case, which uses most memory, warms up the allocator for all
    published: tuple[Level, ...] = ("everything", "input")  # the finer levels are ours
    default = trainer.recipe.saved_activations
    chosen_cases: list[tuple[str, Level]] = [("plain", "input"), ("ours", default)]
    if every_level:
        chosen_cases = [*(("plain", level) for level in published), *(("ours", level) for level in LEVELS)]
    for name, level in chosen_cases:
        cases[f"{name} / {level}"] = measure_case(trainer, name, level, update, chosen.repeats, warm)
    if compiled:
        for wrapped in (trainer.student.model, trainer.critic.model, trainer.teacher.wrapped):
            DistributedModel(wrapped.model, "single", compiled=True)  # compiles the model's blocks in place
        for level in published:  # selective checkpointing does not run compiled code
            cases[f"ours, compiled / {level}"] = measure_case(trainer, "ours", level, update, chosen.repeats, True)
    plain, ours = cases["plain / input"], cases[f"ours / {default}"]
    fastest = min((c["seconds"] for n, c in cases.items() if "seconds" in c and n.startswith("ours")), default=None)
    results: dict[str, Any] = {"size": size, "frames": chosen.rollout.frames, "default": default, "cases": cases}
    if "seconds" in plain and "seconds" in ours:
        results["speedup"] = plain["seconds"] / ours["seconds"]
        results["peak_over_plain"] = ours["peak_mib"] / plain["peak_mib"]
        results["speedup_best"] = plain["seconds"] / (fastest or ours["seconds"])
    return results


def show(results: dict) -> None:
    where = environment()
    title = f"1 generator + 5 critic updates, {results['size']}, {results['frames']} latent frames, {where['device']}"
    table = Table("loop / kept for the backward pass", "seconds", "peak MiB", title=title)
    for name, case in results["cases"].items():
        table.add_row(name, *([case["error"], ""] if "error" in case else [f"{case[k]:.2f}" for k in case]))
    console = Console()
    console.print(table)
    if "speedup" in results:
        console.print(f"plain over ours: {results['speedup']:.2f}, our fastest: {results['speedup_best']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--compile", action="store_true", help="also measure ours with compiled blocks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    args = parser.parse_args()
    results = measure_training(args.size, compiled=args.compile)
    show(results)
    write_json(args.out, results)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
