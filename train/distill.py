"""`python -m train distill RECIPE`: from a recipe to an exported student, in one process or many.

Run it again and it goes on from its newest checkpoint. Several processes: `accelerate launch -m train distill ...`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from accelerate.utils import broadcast_object_list

from salt.checkpoints import load_student
from train.config.model_configs import check_backbones
from train.config.recipe import Recipe, RecipeError, load_recipe
from train.config.validation import check_mode, check_recipe, check_settings, missing_files
from train.data.clip_dataset import make_clips
from train.distributed.parallel import Mode, own_device, process_state
from train.dry_run import rehearsal
from train.export import export, last_values, push
from train.memory_estimate.report import available_memory, check_memory
from train.methods.base import Trainer
from train.methods.ode_regression import Starter
from train.methods.sc_dmd import SCDMDTrainer
from train.sample_grid import Samples

# What a run cannot change on its way, but for what only trades memory for time.
FIXED = ("stage", "models", "rollout", "run.seed", "optimisation.optimizer")
FREE = ("models.offload", "models.checkpointing", "models.keep")


def trainer_of(recipe: Recipe, mode: Mode) -> Trainer:
    return (SCDMDTrainer if recipe.stage == "distill" else Starter)(recipe, mode)


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def mode_of(asked: Literal["auto", "single", "ddp", "fsdp"]) -> Mode:
    """The way to use several processes: as asked, or as accelerate's configuration says.

    Raises RecipeError for a way that the launcher did not make: several processes as single, or one as several.
    """
    several = processes() > 1
    if asked != "auto" and several == (asked == "single"):
        expected = "ddp or fsdp" if several else "auto or single (accelerate launch or torchrun makes more)"
        raise RecipeError(f"--mode: found {asked} with {processes()} process(es), expected {expected}")
    if asked != "auto":
        return asked
    if not several:
        return "single"
    return "fsdp" if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else "ddp"


def keep_recipe(recipe: Recipe) -> None:
    """Write the whole recipe to `recipe.yaml` in the run's folder, so that a result tells how it was made.

    Raises RecipeError where the folder holds a run that this one cannot go on with.
    """
    path = Path(recipe.run.out) / "recipe.yaml"
    now = yaml.safe_load(yaml.safe_dump(_plain(recipe.to_dict()), sort_keys=False))
    if path.exists():
        before, wanted = _fixed(yaml.safe_load(path.read_text(encoding="utf-8"))), _fixed(now)
        changed = [key for key in wanted if before.get(key) != wanted[key]]
        if changed:
            key = changed[0]
            raise RecipeError(
                f"run.out: {recipe.run.out} holds a run with {key} {before.get(key)}, found {wanted[key]}, expected "
                "the same to go on with, or another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(now, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a recipe's settings those that a run keeps, by key."""
    found = {}
    for section, value in settings.items():
        keys = {f"{section}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {section: value}
        found |= {key: v for key, v in keys.items() if (section in FIXED or key in FIXED) and key not in FREE}
    return found


def _plain(value: object) -> object:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def distill(recipe: Recipe, mode: Mode, repository: str = "") -> Path:
    """Train to the recipe's last update and export; returns the student's file."""
    trainer = trainer_of(recipe, mode)
    if trainer.accelerator.is_main_process:
        keep_recipe(recipe)
    samples = Samples(trainer) if recipe.run.sample_every else None

    def watch(done: int) -> dict[str, float]:
        if samples and (done % recipe.run.sample_every == 0 or done == recipe.optimisation.updates):
            samples.write(trainer, done)
            return samples.defects(trainer)
        return {}

    done = trainer.run(watch)
    path = export(trainer, done)
    if repository and trainer.accelerator.is_main_process:
        print(f"uploaded to {push(path.parent, repository, f'{recipe.name}, {done} updates')}")
    return path


def dry_run(recipe: Recipe, mode: Mode) -> list[str]:
    """Play the recipe through with stand-ins; returns a line on what was seen, and one for every real file not there.

    Two updates with all their losses, samples, checkpoint, resume, export and card, in a folder that is then removed.
    """
    check_settings(recipe, processes())
    check_backbones(recipe)
    shared = None
    if processes() > 1:  # maybe of several nodes, which see the run's folder and not each other's /tmp
        shared = Path(recipe.run.out).absolute().parent
        shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="salt-dry-run-", dir=shared) as mine:
        state = process_state()
        names = [mine]
        if processes() > 1:
            broadcast_object_list(names)
        folder = Path(names[0])
        # Every process writes the same stand-ins, each file in one step, so that none waits for another.
        small = rehearsal(recipe, folder, processes())
        if small.stage != "distill":
            make_clips(small, own_device())
        distill(replace(small, optimisation=replace(small.optimisation, updates=1)), mode)
        path = distill(small, mode)
        seen = last_values(Path(small.run.out) / "losses.csv")
        made = sorted(p.relative_to(small.run.out).as_posix() for p in Path(small.run.out).rglob("*") if p.is_file())
        load_student(path)
        state.wait_for_everyone()
    losses = ", ".join(f"{name} {value:.3g}" for name, value in seen.items())
    expected = ["losses.csv", "losses.png", "recipe.yaml", f"export/{recipe.name}.safetensors", "export/README.md"]
    absent = sorted(set(expected) - set(made))
    if absent:
        raise RuntimeError(f"dry run of {recipe.name}: found no {', '.join(absent)} after it")
    lines = [f"dry run of {recipe.name} ({recipe.stage}, {mode}): 2 updates, resumed between them; {losses}"]
    return lines + [f"  not there yet: {line}" for line in missing_files(recipe)]


def run(arguments: argparse.Namespace) -> None:
    """Distil a student as a recipe says (or make its starting point: stages ode and tf)."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.keep is not None:
        recipe = replace(recipe, run=replace(recipe.run, keep=arguments.keep))
    mode = mode_of(arguments.mode)
    check_mode(recipe, mode)
    if arguments.dry_run:
        lines = dry_run(recipe, mode)
    else:
        check_recipe(recipe, processes())
        check_backbones(recipe)
        check_memory(recipe, processes(), mode, available_memory(own_device()))
        lines = [f"student: {distill(recipe, mode, arguments.push)}"]
    if is_main():
        print("\n".join(lines))
    process_state().destroy_process_group()


def add_distill(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("distill", help=run.__doc__, description=__doc__)
    command.add_argument("recipe", type=Path, help="a YAML file, or the name of one in train/recipes")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="as optimisation.lr=1e-5")
    command.add_argument("--dry-run", action="store_true", help="two updates with tiny stand-ins, on any machine")
    command.add_argument(
        "--mode", choices=("auto", "single", "ddp", "fsdp"), default="auto", help="of several processes"
    )
    command.add_argument("--keep", type=int, metavar="N", help="complete checkpoints that stay (run.keep)")
    command.add_argument("--push", default="", metavar="OWNER/NAME", help="upload the export to the hub")
    command.set_defaults(run=run)
