"""`python -m train`: train and evaluate few-step causal video students."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # `python FOLDER/train`, for a Python that finds no modules in the folder where it is started
    for folder in (Path(__file__).parents[1] / name for name in ("salt", "train")):  # as ComfyUI imports custom nodes
        spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py")
        assert spec is not None and spec.loader is not None
        sys.modules[folder.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[folder.name])

from train.command_line import EXIT_ERROR, run_command
from train.config.command import add_recipes
from train.data.command import add_precompute
from train.distill_command import add_distill
from train.evaluation.command import add_evaluate
from train.experiments.ablation.command import add_reproduce
from train.experiments.tiny.command import add_tiny
from train.gradients.command import add_gradients
from train.memory_estimate.command import add_estimate

PACKAGES = {"yaml": "pyyaml", "matplotlib": "matplotlib", "tensorboard": "tensorboard"}  # of requirements-train.txt


def parser() -> argparse.ArgumentParser:
    """The commands' modules import torch and the rest when a command runs: an argument mistake is answered at once."""
    root = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    root.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_recipes,
        add_distill,
        add_precompute,
        add_estimate,
        add_evaluate,
        add_gradients,
        add_tiny,
        add_reproduce,
    ):
        add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (see `run_command`)."""
    if missing := [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        command = "python -m pip install -r requirements-train.txt"
        print(f"error: found no {', '.join(missing)}, which training needs: {command}", file=sys.stderr)
        return EXIT_ERROR
    return run_command(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
