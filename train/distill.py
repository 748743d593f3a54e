"""From a recipe to an exported student, in one process or several. A run resumes from its newest checkpoint."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list

from salt.acceleration.free_memory import free_bytes
from salt.checkpoints import load_student
from salt.io.atomic import write_text
from salt.io.folder_lock import folder_lock
from salt.io.launcher import is_main_process, process_count
from salt.parallel.processes import leave_group
from train.config.loader import read_values
from train.config.model_configs import check_backbones
from train.config.recipe import Recipe, RecipeError
from train.config.validation import check_recipe, check_settings, missing_files
from train.data.trajectories import generate_clips
from train.distributed.launch import Mode, check_mode, process_device, process_state, resolve_mode
from train.dry_run import dry_run_recipe
from train.export import export, last_values, push
from train.memory_estimate.report import check_memory
from train.methods.adversarial import AdversarialTrainer
from train.methods.base import Trainer
from train.methods.consistency import ConsistencyTrainer
from train.methods.late_windows import LateWindowTrainer
from train.methods.long_tuning import LongTuningTrainer
from train.methods.ode_regression import ODERegressionTrainer
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.teacher_forcing import TeacherForcingTrainer
from train.next_commands import after_distill, before_distill
from train.sample_grid import SampleGrid

# What a resumed run may not change, and what it may all the same: settings that trade memory for time.
FIXED_KEYS = ("stage", "models", "rollout", "loss.adversarial", "run.seed", "optimisation.optimizer")
FREE_KEYS = ("models.offload", "models.checkpointing", "models.keep")


def trainer_of(recipe: Recipe, mode: Mode) -> Trainer:
    """The method that trains the recipe's stage."""
    match recipe.stage:
        case "ode":
            return ODERegressionTrainer(recipe, mode)
        case "cd":
            return ConsistencyTrainer(recipe, mode)
        case "tf":
            return TeacherForcingTrainer(recipe, mode)
    if recipe.streams:
        return LongTuningTrainer(recipe, mode)
    if recipe.windows:
        return LateWindowTrainer(recipe, mode)
    return AdversarialTrainer(recipe, mode) if recipe.loss.adversarial else SCDMDTrainer(recipe, mode)


def save_recipe(recipe: Recipe, done: int = 0) -> None:
    """Write all settings to `recipe.yaml` in the run's folder, and what they change in a run of `done` updates.

    `history` in it has an entry per changed setting: the update after which it holds, its key, and both values. A
    setting that the file lacks, because it is newer, has its default value there.
    Raises RecipeError where the folder holds a run that this recipe cannot resume.
    """
    path = Path(recipe.run.out) / "recipe.yaml"
    settings = _plain(recipe.to_dict())
    history: list[dict[str, object]] = []
    if path.exists():
        before = read_values(path)
        history = before.pop("history", [])
        old, new = _by_key(_plain(Recipe().to_dict())) | _by_key(before), _by_key(settings)
        changed = [key for key in new if old[key] != new[key]]
        for key in changed:
            if _is_fixed(key):
                raise RecipeError(
                    key,
                    f"found {new[key]}, expected {old[key]}: {recipe.run.out} holds a run with it. Resume with the "
                    "same value, or choose another run.out",
                )
        history = [*history, *({"update": done, "key": key, "old": old[key], "new": new[key]} for key in changed)]
    written = settings | ({"history": history} if history else {})
    write_text(path, yaml.safe_dump(written, sort_keys=False, allow_unicode=True))


def _by_key(settings: Mapping[str, object]) -> dict[str, object]:
    """Nested settings as `section.key: value`."""
    flat: dict[str, object] = {}
    for section, value in settings.items():
        flat |= {f"{section}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {section: value}
    return flat


def _is_fixed(key: str) -> bool:
    return (key in FIXED_KEYS or key.partition(".")[0] in FIXED_KEYS) and key not in FREE_KEYS


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def distill(
    recipe: Recipe, mode: Mode, repository: str = "", make: Callable[[Recipe, Mode], Trainer] = trainer_of
) -> Path:
    """Train to the recipe's last update and export; returns the student's file. make: builds the method.

    Raises FolderInUseError where another run trains in the recipe's folder.
    """
    with folder_lock(Path(recipe.run.out)) if is_main_process() else nullcontext():
        if is_main_process():
            print(f"{recipe.name}: loads its models", flush=True)
        return _distill(make(recipe, mode), repository)


def _distill(trainer: Trainer, repository: str) -> Path:
    recipe = trainer.recipe
    if trainer.accelerator.is_main_process:
        save_recipe(recipe, trainer.folder.updates())
    samples = SampleGrid(trainer) if recipe.run.sample_every else None
    done = trainer.run(partial(_sample, trainer, samples) if samples else None)
    path = export(trainer, done)
    if repository and trainer.accelerator.is_main_process:
        print(f"uploaded to {push(path.parent, repository, f'{recipe.name}, {done} updates')}")
    return path


def _sample(trainer: Trainer, samples: SampleGrid, done: int) -> dict[str, float]:
    """Write samples after an update where they are due; returns the semigroup defects, for the log."""
    run, opt = trainer.recipe.run, trainer.recipe.optimisation
    if done % run.sample_every and done != opt.updates:
        return {}
    samples.write(trainer, done)
    return samples.defects(trainer)


def dry_run(recipe: Recipe, mode: Mode) -> list[str]:
    """Run the recipe with tiny random models; returns a line on its losses, and one for every missing real file.

    Two updates with all losses, samples, checkpoint, resume, export and card, in a temporary folder.
    """
    check_settings(recipe, process_count())
    check_backbones(recipe)
    shared = None
    if process_count() > 1:  # perhaps on several nodes, which share the run's folder and not /tmp
        shared = Path(recipe.run.out).absolute().parent
        shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="salt-dry-run-", dir=shared) as own_folder:
        state = process_state()
        folders = [own_folder]
        if process_count() > 1:
            broadcast_object_list(folders)
        folder = Path(folders[0])
        # Every process writes the same files, and none reads them while another still writes.
        small = dry_run_recipe(recipe, folder, process_count())
        state.wait_for_everyone()
        if small.reads_clips:
            generate_clips(small, process_device())
            state.wait_for_everyone()  # each has generated its share
        distill(replace(small, optimisation=replace(small.optimisation, updates=1)), mode)
        path = distill(small, mode)
        values = last_values(Path(small.run.out) / "losses.csv")
        files = {p.relative_to(small.run.out).as_posix() for p in Path(small.run.out).rglob("*") if p.is_file()}
        load_student(path)
        state.wait_for_everyone()
    losses = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    expected = {"losses.csv", "losses.png", "recipe.yaml", f"export/{recipe.name}.safetensors", "export/README.md"}
    if missing := sorted(expected - files):
        raise RuntimeError(f"the dry run of {recipe.name} has not written {', '.join(missing)}")
    lines = [f"dry run of {recipe.name} ({recipe.stage}, {mode}): 2 updates, resumed between them; {losses}"]
    return lines + [f"  missing: {error}" for error in missing_files(recipe)]


def run(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """The command `python -m train distill`, with its recipe read."""
    if arguments.keep is not None:
        recipe = replace(recipe, run=replace(recipe.run, keep=arguments.keep))
    mode = resolve_mode(arguments.mode)
    check_mode(recipe, mode)
    if arguments.dry_run:
        lines = dry_run(recipe, mode)
        if not missing_files(recipe):
            lines.append(before_distill(arguments.recipe, *arguments.overrides))
    else:
        check_recipe(recipe, process_count())
        check_backbones(recipe)
        check_memory(recipe, process_count(), mode, free_bytes(process_device()))
        student = distill(recipe, mode, arguments.push)
        lines = [f"student: {student}", *after_distill(recipe, student)]
    if is_main_process():
        print("\n".join(lines))
    leave_group()
