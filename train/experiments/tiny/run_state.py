"""A stage's run folder (resumable state, loss curve), its random streams and learning rate."""

import csv
import time
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from salt.io.atomic import atomic_write

Model = TypeVar("Model", bound=nn.Module)


class Run:
    """A stage's folder: `state.pt`, written atomically, and `curve.csv`; saving is due every `save_every_s` seconds."""

    def __init__(self, folder: Path, save_every_s: float = 60.0) -> None:
        self.folder = folder
        self.save_every_s = save_every_s
        folder.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()
        self._began = time.monotonic()
        self.seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent in this stage, summed over resumed runs."""
        return self.seconds_before + time.monotonic() - self._began

    def load(self) -> dict | None:
        """The last saved state, or None before the first save."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.seconds_before = state["seconds"]
        return state

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved_at > self.save_every_s

    def save(self, **state: object) -> None:
        """Write `state` (tensors and plain values by name) atomically: an interruption leaves the previous state."""
        with atomic_write(self.folder / "state.pt") as partial:
            torch.save({**state, "seconds": self.seconds}, partial)
        self._saved_at = time.monotonic()

    def log(self, step: int, **values: float) -> None:
        """Append one row per value to curve.csv and print them on one line."""
        path = self.folder / "curve.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", "seconds", "name", "value"])
            for name, value in values.items():
                writer.writerow([step, round(self.seconds, 1), name, f"{value:.6g}"])
        values_text = " ".join(f"{k}={v:.4g}" for k, v in values.items())
        print(f"{self.folder.name} step {step} {self.seconds:.0f}s {values_text}", flush=True)


def placed(model: Model, device: str) -> Model:
    """`model`, moved to `device` (by `nn.Module.to`: diffusers' own `to` hides its type)."""
    nn.Module.to(model, device)
    return model


def seeded(seed: int, step: int) -> torch.Generator:
    """The generator of one step, so that a resumed run draws what an uninterrupted one would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def warmup_cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.05) -> float:
    """Learning-rate factor: linear rise over `warmup` steps, then half a cosine down to `floor`."""
    progress = min(step / max(steps, 1), 1.0)
    cosine = floor + (1 - floor) * 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
    return min((step + 1) / warmup, 1.0) * cosine
