"""A student, critic and teacher small enough to train in a test, and a recipe for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from salt.checkpoints import save_diffusers
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Data, Losses, Models, Optimisation, Recipe, Rollouts, RunSettings
from train.experiments.tiny.run_state import Run


def model(seed: int = 0, **config) -> SaltTransformer3DModel:
    torch.manual_seed(seed)
    small = dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=48, num_layers=2, text_dim=4096, freq_dim=32)
    transformer = SaltTransformer3DModel(**{**small, **config})
    with torch.no_grad():  # a fresh model's head is too small for its output to matter
        transformer.scale_shift_table.normal_(std=0.5)
        transformer.proj_out.weight.normal_(std=0.2)
    return transformer


def recipe(folder: Path, **sections) -> Recipe:
    """Six latent frames in blocks of three, all of distillation's losses on; sections override by name, as dicts."""
    for name, seed in (("student", 1), ("teacher", 2)):
        if not (folder / name / "config.json").exists():
            save_diffusers(model(seed), folder / name)
    distillation = Losses(semigroup=0.2, align="paper", align_start=0, align_block=1)
    base = Recipe(
        name="small",
        models=Models(student=str(folder / "student"), teacher=str(folder / "teacher")),
        data=Data(),
        rollout=Rollouts(frames=6, height=4, width=4, share={8: 0.4, 4: 0.4, 2: 0.2}),
        loss=distillation if sections.get("stage", "distill") == "distill" else Losses(),
        optimisation=Optimisation(
            batch=4, micro_batch=2, updates=2, critic_per_generator=2, lr=1e-3, critic_lr=1e-3, ema_start=1,
            precision="no",
        ),
        run=RunSettings(out=str(folder / "run"), save_every=1, tracker="none"),
    )  # fmt: skip
    return replace(
        base, **{k: replace(getattr(base, k), **v) if isinstance(v, dict) else v for k, v in sections.items()}
    )


@contextmanager
def dying(monkeypatch) -> Iterator[None]:
    """Within: a stage of salt-tiny saves after every step and is interrupted right after."""
    saved = Run.save

    def save_and_die(self, **state):
        saved(self, **state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "due", lambda self: True)
        patched.setattr(Run, "save", save_and_die)
        yield
