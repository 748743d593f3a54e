"""Rewards of generated clips, which a recipe names as `module:function` (`loss.reward`).

Only modules of this folder are imported: a recipe may come from somebody else, and must not run code from anywhere. A
reward of your own is a module in this folder.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence

from torch import Tensor

from train.config.recipe import RecipeError

# Rewards [B] of clips [B, 3, T, H, W] in [-1, 1] and their prompts; higher is better.
Reward = Callable[[Tensor, Sequence[str]], Tensor]


def reward_names() -> list[str]:
    """All rewards, as `module:function`."""
    return sorted(f"{module}:{name}" for module in _modules() for name in _functions(module))


def find_reward(name: str) -> Reward:
    """The reward of this name. Raises RecipeError where there is none."""
    module, _, function = name.partition(":")
    found = _functions(module) if module in _modules() else {}
    if function not in found:
        raise RecipeError("loss.reward", f"found {name!r:.60}, expected one of {', '.join(reward_names())}")
    return found[function]


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _functions(module: str) -> dict[str, Reward]:
    """The public functions that a module of this folder defines."""
    loaded = importlib.import_module(f"{__name__}.{module}")
    return {
        name: function
        for name, function in inspect.getmembers(loaded, inspect.isfunction)
        if function.__module__ == loaded.__name__ and not name.startswith("_")
    }
