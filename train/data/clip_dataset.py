"""Clip dataset of the stages `ode`, `cd` and `tf`: one safetensors file per clip, with its prompt.

`NNNNNN.safetensors` holds `latents` [C, F, H, W], a clean clip, and `prompt` in its metadata. For `ode`, which
`train.data.trajectories` generates, the clip is the end of a teacher's ODE, `trajectory` [S, C, F, H, W] has its states
at the student's S steps, and `history` [C, F, H, W] is the clean clip whose blocks a causal teacher saw as their past.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.config.recipe import Recipe, RecipeError


@dataclass(frozen=True)
class Clip:
    """A clip of the dataset, float32, or clips stacked along a first axis."""

    latents: Tensor
    trajectory: Tensor | None = None
    history: Tensor | None = None


class ClipDataset:
    """The clips of a folder, in order of their file names. `prompts`: one for each.

    key: the folder of `data` that holds them; those of `history` are clean clips alone.
    """

    def __init__(self, recipe: Recipe, key: Literal["clips", "history"] = "clips") -> None:
        self.recipe, self.field = recipe, f"data.{key}"
        self.has_trajectories = recipe.stage == "ode" and key == "clips"
        folder = getattr(recipe.data, key)
        self.paths = sorted(Path(folder).glob("*.safetensors"))
        if not self.paths:
            raise RecipeError(self.field, f"found nothing in {folder}, expected NNNNNN.safetensors")
        self.prompts = [self._prompt(path) for path in self.paths]

    def __call__(self, index: int, channels: int) -> Clip:
        """Raises RecipeError naming the file where a tensor is missing or its shape is not the recipe's."""
        r, path = self.recipe.rollout, self.paths[index]
        shape = (channels, r.frames, r.height, r.width)
        with safe_open(path, "pt") as file:
            latents = self._read_tensor(file, "latents", shape, path)
            if not self.has_trajectories:
                return Clip(latents)
            trajectory = self._read_tensor(file, "trajectory", (max(r.share), *shape), path)
            history = self._read_tensor(file, "history", shape, path) if self.recipe.has_history else None
            return Clip(latents, trajectory, history)

    def _prompt(self, path: Path) -> str:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {})["prompt"]
        except (SafetensorError, KeyError) as error:
            raise RecipeError(self.field, f"found no prompt in the metadata of {path} ({error})") from error

    def _read_tensor(self, file: safe_open, name: str, shape: tuple[int, ...], path: Path) -> Tensor:
        """A tensor of the file. Raises RecipeError where it is missing or of another shape."""
        found = tuple(file.get_slice(name).get_shape()) if name in file.keys() else None  # noqa: SIM118 (no mapping)
        if found != shape:
            problem = f"found {name} {found} in {path}, expected {shape} (the recipe's rollout)"
            raise RecipeError(self.field, problem)
        return file.get_tensor(name).float()
