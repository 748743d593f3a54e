"""One generator and five critic updates: our trainer beside the published loop, and what checkpointing costs and saves.

`python -m benchmarks.training --size small|1.3B [--compile] [--out benchmarks/results/training.json]`

Weights are random, and both loops take turns on the very same models, optimizers and random choices, in one process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import environment, median, resident_mib, write_json
from benchmarks.plain import plain_update
from salt.checkpoints import save_diffusers
from salt.models.text_encoder import TOKENS
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.model_configs import WAN_1_3B
from train.config.recipe import Data, Losses, Models, Optimisation, Recipe, Rollouts, RunSettings, SavedActivations
from train.distributed.activation_checkpointing import recompute
from train.distributed.launch import process_device
from train.distributed.parallel import DistributedModel
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout.random_draws import draw_update, generator_for

ALL = "everything"
GRAINS = (ALL, *get_args(SavedActivations))
UPDATES = 100


@dataclass(frozen=True)
class Size:
    """A model, its clips, and how often an update is timed. The small one has the 1.3B's share of attention."""

    config: dict[str, Any]
    rollout: Rollouts
    text_tokens: int
    precision: str
    repeats: int


SIZES = {
    "1.3B": Size({"out_channels": 16, **WAN_1_3B}, Rollouts(), TOKENS, "bf16", 3),
    "small": Size(
        dict(num_attention_heads=2, attention_head_dim=64, ffn_dim=768, num_layers=3, freq_dim=256),
        Rollouts(height=20, width=24), 40, "no", 1,
    ),
}  # fmt: skip


class RandomText:
    """In a text encoder's place: embeddings of Wan's size that are the prompt's own."""

    dim = 4096

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.stack([torch.randn(self.max_length, self.dim, generator=generator_for(p)) for p in prompts])


def make_trainer(size: Size, folder: Path, device: torch.device) -> SCDMDTrainer:
    """The recipe `self_forcing` in all that takes time, on random weights. The teacher has the student's size."""
    torch.manual_seed(0)
    with device:
        model = SaltTransformer3DModel(**size.config)
        torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    save_diffusers(model, folder / "model", dtype=torch.bfloat16 if size.precision == "bf16" else None)
    del model
    path = str(folder / "model")
    precision: Any = size.precision
    trainer = SCDMDTrainer(
        Recipe(
            models=Models(student=path, teacher=path, critic=path), data=Data(prompts="shapes"),
            rollout=size.rollout, loss=Losses(),
            optimisation=Optimisation(batch=1, micro_batch=1, precision=precision, ema_start=0),
            run=RunSettings(out=str(folder / "run"), tracker="none"),
        )
    )  # fmt: skip
    trainer.prompts.encoder = RandomText(size.text_tokens)
    trainer.prompts.negative = trainer.prompts.encoder.encode([""])
    return trainer


def typical_update(recipe: Recipe) -> int:
    """The first update whose rollouts take the steps that they take on average (exits are drawn evenly)."""
    per = recipe.optimisation.critic_per_generator
    middle = (1 + max(recipe.rollout.share)) / 2

    def steps(update: int) -> list[int]:
        critics = [draw_update(recipe, update * per + i, "critic") for i in range(per)]
        return [c.exit_index + 1 for c in (*critics, draw_update(recipe, update, "generator"))]

    return next(u for u in range(UPDATES) if mean(steps(u)) == middle)


def set_grain(trainer: SCDMDTrainer, grain: Any) -> None:
    """What backward finds kept of the learners' forwards, as `building` sets it from a recipe."""
    for learner in trainer.learners.values():
        if grain == ALL:
            learner.model.model.disable_gradient_checkpointing()
        else:
            recompute(learner.model.model, grain)


class Peak:
    """Highest memory while open, in MiB: on a CPU the process's resident memory, on a GPU what torch has taken of it.
    (Of that, what recordings work in counts as free between plays, so `allocated` would leave it out.)"""

    def __init__(self, device: torch.device) -> None:
        self.device, self.mib = device, 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        tidy(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.thread.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(0.02):
            self.mib = max(self.mib, resident_mib())

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = torch.cuda.max_memory_reserved(self.device) / 2**20
        else:
            self.over.set()
            self.thread.join()


def tidy(device: torch.device) -> None:
    """Give back what is no longer used, so that one measurement does not wear the memory of another."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def timed(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure_case(trainer: SCDMDTrainer, name: str, grain: str, update: int, repeats: int, warm: bool) -> dict:
    """Seconds and peak MiB of one generator and five critic updates; `error` in their place where memory ends."""
    set_grain(trainer, grain)
    one = (lambda: plain_update(trainer, update)) if name == "plain" else (lambda: trainer.update(update))
    try:
        if warm:
            one()
        with Peak(trainer.device) as peak:
            seconds = [timed(one, trainer.device) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        for learner in trainer.learners.values():
            learner.optimizer.zero_grad(set_to_none=True)
        tidy(trainer.device)
        return {"error": "out of memory"}
    return {"seconds": median(seconds), "peak_mib": peak.mib}


def measure_training(
    size: str = "small", device: str | None = None, compiled: bool = False, every_grain: bool = True
) -> dict:
    """Both loops by what backward finds kept: {"cases": {"ours / attention": {seconds, peak_mib}, ...}, ratios}.

    device: where the trainer computes anyway (the GPU if there is one); ValueError where it is another.
    compiled: ours once more with its blocks compiled, which takes minutes. every_grain: or only what is published and
    what recipes have.
    `speedup`: the plain loop, checkpointed block by block as it is published, over ours as recipes have it;
    `speedup_best`: over our quickest. Both are missing where one of their cases had no room.
    """
    where = process_device()
    if device is not None and torch.device(device).type != where.type:
        raise ValueError(f"device: found {device}, expected {where.type}, where the trainer computes on this machine")
    chosen = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(chosen, Path(folder), where)
    update, cases = typical_update(trainer.recipe), {}
    warm = where.type == "cuda"  # on a CPU the first case, the most memory's, warms the allocator for all
    published = (ALL, "input")  # the finer grains are our own
    default = trainer.recipe.saved_activations
    chosen_cases = [("plain", "input"), ("ours", default)]
    if every_grain:
        chosen_cases = [("plain", g) for g in published] + [("ours", g) for g in GRAINS]
    for name, grain in chosen_cases:
        cases[f"{name} / {grain}"] = measure_case(trainer, name, grain, update, chosen.repeats, warm)
    if compiled:
        for wrapped in (trainer.student.model, trainer.critic.model, trainer.teacher.wrapped):
            DistributedModel(wrapped.model, "single", compiled=True)  # compiles the model's blocks in place
        for grain in published:  # torch runs nothing compiled while it picks what to keep
            cases[f"ours, compiled / {grain}"] = measure_case(trainer, "ours", grain, update, chosen.repeats, True)
    plain, ours = cases["plain / input"], cases[f"ours / {default}"]
    quickest = min((c["seconds"] for n, c in cases.items() if "seconds" in c and n.startswith("ours")), default=None)
    results: dict[str, Any] = {"size": size, "frames": chosen.rollout.frames, "default": default, "cases": cases}
    if "seconds" in plain and "seconds" in ours:
        results["speedup"] = plain["seconds"] / ours["seconds"]
        results["peak_over_plain"] = ours["peak_mib"] / plain["peak_mib"]
        results["speedup_best"] = plain["seconds"] / (quickest or ours["seconds"])
    return results


def show(results: dict) -> None:
    where = environment()
    title = f"1 generator + 5 critic updates, {results['size']}, {results['frames']} latent frames, {where['device']}"
    table = Table("loop / what backward finds kept", "seconds", "peak MiB", title=title)
    for name, case in results["cases"].items():
        table.add_row(name, *([case["error"], ""] if "error" in case else [f"{case[k]:.2f}" for k in case]))
    console = Console()
    console.print(table)
    if "speedup" in results:
        console.print(f"plain over ours: {results['speedup']:.2f}, our quickest: {results['speedup_best']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--compile", action="store_true", help="ours with compiled blocks as well")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    args = parser.parse_args()
    results = measure_training(args.size, compiled=args.compile)
    show(results)
    write_json(args.out, results)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
