"""Schedules of the learning rates, as a factor on them."""

from __future__ import annotations

import math

from train.config.recipe import Optimisation


def rate_factor(opt: Optimisation, update: int) -> float:
    """The factor on both learning rates at an update of the student, counted from 0.

    It rises over the first `warmup` updates; after them it is 1, or half a cosine that ends with the last update.
    """
    if update < opt.warmup:
        return (update + 1) / opt.warmup
    if opt.schedule == "constant":
        return 1.0
    last = max(opt.updates - 1 - opt.warmup, 1)
    falling = (1 + math.cos(math.pi * min((update - opt.warmup) / last, 1.0))) / 2
    return opt.final_lr + (1 - opt.final_lr) * falling
