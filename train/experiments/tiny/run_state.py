"""What the three stages share: a run folder that can be killed and taken up again, a curve and seeds."""

import csv
import time
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from salt.io.atomic import atomic_write

Model = TypeVar("Model", bound=nn.Module)


class Run:
    """A stage's folder: `state.pt` (written whole or not at all), `curve.csv`, and the time since the last save."""

    def __init__(self, folder: Path, save_every_s: float = 60.0):
        self.folder = folder
        self.save_every_s = save_every_s
        folder.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()
        self._began = time.monotonic()
        self.seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Wall seconds spent in this stage, over all its runs."""
        return self.seconds_before + time.monotonic() - self._began

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None where the stage has not begun."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.seconds_before = state["seconds"]
        return state

    def due(self) -> bool:
        return time.monotonic() - self._saved_at > self.save_every_s

    def save(self, **state: Any) -> None:
        """Save atomically, so that a kill in the middle leaves the older state."""
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
    """`model` on `device`; torch's own `to`, whose type diffusers hides."""
    nn.Module.to(model, device)
    return model


def seeded(seed: int, step: int) -> torch.Generator:
    """The random stream of one step: a resumed run draws what the unbroken run would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def warmup_cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.05) -> float:
    """Learning-rate factor: linear rise over `warmup` steps, then half a cosine down to `floor`."""
    progress = min(step / max(steps, 1), 1.0)
    cosine = floor + (1 - floor) * 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
    return min((step + 1) / warmup, 1.0) * cosine


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * weights, in place; names as in the model's state dict."""
    for name, value in model.state_dict().items():
        ema[name].lerp_(value.float(), 1 - decay)
