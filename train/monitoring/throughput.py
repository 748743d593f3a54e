"""How fast a run goes: tokens per second, and its arithmetic as a share of what the device can do at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from train.config.recipe import Recipe
from train.monitoring.update_flops import TransformerConfig, UpdateFlops

# Dense bfloat16 operations per second, in 1e12, by what a device's name contains (NVIDIA's data sheets).
PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


@dataclass(frozen=True)
class Throughput:
    """configs: of the run's models by name, `student` and, in distillation, `critic` and `teacher`.

    processes: of the run. peak: operations per second of one device, None where it is not known.
    """

    recipe: Recipe
    configs: Mapping[str, TransformerConfig]
    processes: int
    peak: float | None

    def values(self, update: int, seconds: float) -> dict[str, float]:
        """What to log of an update, counted from 0, that took `seconds`."""
        found = {"tokens_per_second": self.tokens / seconds}
        if self.peak is not None:
            found["peak_share"] = self.flops(update) / self.processes / seconds / self.peak
        return found

    @property
    def tokens(self) -> int:
        """Tokens of the clips that one update trains student and critic on, in all processes."""
        opt = self.recipe.optimisation
        clips = 1 + opt.critic_per_generator if self.recipe.stage == "distill" else 1
        return opt.batch * clips * self.operations.tokens(self.recipe.rollout.window or self.recipe.rollout.frames)

    def flops(self, update: int) -> float:
        """Operations of one update in all processes; what is recomputed, and alignment, are not counted."""
        return sum(work.counted for work in self.operations.of(update).values())

    @property
    def operations(self) -> UpdateFlops:
        return UpdateFlops(self.recipe, self.configs)


def device_peak(device: torch.device, precision: str) -> float | None:
    """Dense operations per second of a known device in the precision of the run; None for any other."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * tera for part, tera in PEAK_TFLOPS.items() if part in name), None)
