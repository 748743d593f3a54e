"""The training loop: critic, critic, critic, critic, critic, generator, and again.

Everything random is drawn in `choices.py`, everything to minimise lies in `objectives.py`; here is only the order of
things: gradients accumulated to the recipe's global batch, clipped, applied, averaged, logged, checkpointed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from salt.student import SaltTransformer3DModel
from train.building import build_critic, build_student, build_teacher, export_student, make_optimizer
from train.checkpoints import CheckpointFolder
from train.choices import Choices, draw_choices
from train.data import Prompts
from train.objectives import Batch, Models, critic_clip, critic_loss, generator_loss
from train.parallel import Ema, Mode, Wrapped, mean_over_processes
from train.recipe import Recipe
from train.watch import Diverged, Guard, Watch


@dataclass
class Learner:
    """A model that learns, with what makes it learn."""

    model: Wrapped
    optimizer: torch.optim.Optimizer
    lr: float

    def step(self, limit: float, warmup: float) -> float:
        """Clip, apply, clear; returns the gradient's norm before clipping."""
        norm = self.model.clip(limit)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * warmup
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


class Called:
    """A wrapped model as the objectives call one, brought to the device for the call if it waits on the CPU."""

    def __init__(self, wrapped: Wrapped, device: torch.device, offload: bool = False) -> None:
        self.wrapped, self.device, self.offload = wrapped, device, offload

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._run(lambda model: model(*arguments, **options))

    def features(self, *arguments: Any, **options: Any) -> Any:
        return self._run(lambda model: model.features(*arguments, **options))

    def block_causal(self, *arguments: Any, **options: Any) -> Any:
        return self.wrapped.model.block_causal(*arguments, **options)

    def _run(self, function: Callable[[Any], Any]) -> Any:
        if self.offload:
            self.wrapped.model.to(self.device)
        try:
            return self.wrapped(function)
        finally:
            # Where gradient flows through it (alignment) its weights are needed until backward.
            if self.offload and not torch.is_grad_enabled():
                self.wrapped.model.to("cpu")


class Trainer:
    """One distillation run. `run()` goes on from the newest complete checkpoint to the recipe's last update."""

    def __init__(self, recipe: Recipe, mode: Mode = "single") -> None:
        self.recipe = recipe
        out, opt = Path(recipe.run.out), recipe.optimisation
        tracker = None if recipe.run.tracker == "none" else recipe.run.tracker
        places = ProjectConfiguration(str(out), str(out / "logs"))
        self.accelerator = Accelerator(log_with=tracker, project_config=places)
        self.device = self.accelerator.device
        bf16, offload = opt.precision == "bf16", recipe.models.offload
        student, critic, teacher = (
            build_student(recipe, self.device),
            build_critic(recipe, self.device),
            build_teacher(recipe),
        )
        self.student = self._learner(student, mode, opt.lr, bf16)
        self.critic = self._learner(critic, mode, opt.critic_lr, bf16)
        if not offload:
            torch.nn.Module.to(teacher, self.device)
        self.teacher = Called(Wrapped(teacher, "single" if offload else mode, bf16), self.device, offload)
        self.ema = Ema(student, opt.ema)
        self.prompts = Prompts(recipe, self.device, student.config.in_channels - student.config.out_channels)
        self.guard = Guard(recipe.run.diverged)
        self.folder = CheckpointFolder(out / "checkpoints", recipe.run.keep)

    def _learner(self, model: SaltTransformer3DModel, mode: Mode, lr: float, bf16: bool) -> Learner:
        wrapped = Wrapped(model, mode, bf16)
        return Learner(wrapped, make_optimizer(wrapped.parameters(), self.recipe, lr), lr)

    def run(self, on_update: Callable[[Trainer, int], None] | None = None) -> int:
        """Train; returns the number of finished generator updates. on_update is called at the start and after each.

        Raises Diverged when the numbers go bad; the last good checkpoint stays.
        """
        done = self.resume()
        run, opt = self.recipe.run, self.recipe.optimisation
        with Watch(self.recipe, self.accelerator, done) as watch:
            if on_update is not None:
                on_update(self, done)
            while done < opt.updates:
                values = self.update(done)
                try:
                    self.guard.check(done + 1, values)
                except Diverged as error:
                    kept = [p.name for p in self.folder.complete()[-1:]] or ["none yet"]
                    raise Diverged(f"{error}; stopped, last good checkpoint: {kept[0]}") from None
                done += 1
                watch.update(done, values)
                if (run.save_every and done % run.save_every == 0) or done == opt.updates:
                    self.save(done)
                if on_update is not None:
                    on_update(self, done)
        return done

    def update(self, update: int) -> dict[str, float]:
        """One generator update after its critic updates; mean losses over the global batch."""
        opt = self.recipe.optimisation
        values: dict[str, float] = {}
        warmup = min((update + 1) / opt.warmup, 1.0) if opt.warmup else 1.0
        for i in range(opt.critic_per_generator):
            step = update * opt.critic_per_generator + i
            choices = draw_choices(self.recipe, step, "critic")
            values |= self.accumulate(self.critic, self._critic, step, "critic", choices)
            self.critic.step(opt.clip, warmup)
        choices = draw_choices(self.recipe, update, "generator")
        values |= self.accumulate(self.student, self._generator, update, "generator", choices)
        values["norm"] = self.student.step(opt.clip, warmup)
        if update + 1 >= opt.ema_start:
            self.ema.update()
        return values

    def accumulate(
        self, learner: Learner, loss_of: Callable[..., tuple[Tensor, dict[str, float]]], update: int, role: str,
        choices: Choices,
    ) -> dict[str, float]:  # fmt: skip
        """Backward over this process's share of the global batch, in micro-batches."""
        opt = self.recipe.optimisation
        share = opt.batch // self.accelerator.num_processes
        first = self.accelerator.process_index * share
        starts = range(first, first + share, opt.micro_batch)
        sums: dict[str, float] = {}
        for start in starts:
            batch = self.prompts.batch(update, range(start, start + opt.micro_batch), role)
            with learner.model.accumulating(last=start == starts[-1]):
                loss, parts = loss_of(batch, choices, update)
                (loss / len(starts)).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value / len(starts)
        return {name: mean_over_processes(value, self.device) for name, value in sums.items()}

    def _critic(self, batch: Batch, choices: Choices, update: int) -> tuple[Tensor, dict[str, float]]:
        x0 = self.student.model(critic_clip, batch, self.recipe, choices, update)
        loss = self.critic.model(critic_loss, x0, batch, self.recipe, update)
        return loss, {"critic": loss.item()}

    def _generator(self, batch: Batch, choices: Choices, update: int) -> tuple[Tensor, dict[str, float]]:
        critic = Called(self.critic.model, self.device)

        def term(student: Any) -> tuple[Tensor, dict[str, float]]:
            return generator_loss(Models(student, critic, self.teacher), batch, self.recipe, choices, update)

        return self.student.model(term)

    def resume(self) -> int:
        """Load the newest complete checkpoint; returns the finished generator updates (0 without one)."""
        parts = self.folder.latest()
        if parts is None:
            return 0
        if parts["ema"]:
            self.student.model.load_state(parts["ema"])
            self.ema.update()
        for name, learner in (("student", self.student), ("critic", self.critic)):
            learner.model.load_state(parts[name])
            learner.model.load_optimizer_state(learner.optimizer, parts[f"{name}_optimizer"])
        states = parts["run"]["rng"]
        torch.set_rng_state(states[self.accelerator.process_index % len(states)])
        self.guard.norms.extend(parts["run"]["norms"])
        return int(parts["run"]["updates"])

    def save(self, done: int) -> None:
        """A complete checkpoint after `done` generator updates. Every process takes part, one writes."""
        states: Any = self.accelerator.gather(torch.get_rng_state()[None].to(self.device))
        parts: dict[str, Any] = {"ema": self.averaged_state() if self.ema.shadow else {}}
        for name, learner in (("student", self.student), ("critic", self.critic)):
            parts[name] = learner.model.state()
            parts[f"{name}_optimizer"] = learner.model.optimizer_state(learner.optimizer)
        parts["run"] = {"updates": done, "rng": list(states.cpu()), "norms": list(self.guard.norms)}
        if self.accelerator.is_main_process:
            self.folder.save(done, parts)
        self.accelerator.wait_for_everyone()

    def averaged_state(self) -> dict[str, Tensor]:
        """The student's whole weights on the CPU, averaged where an average has begun."""
        with self.ema.swapped():
            return {name: value.clone() for name, value in self.student.model.state().items()}

    def export(self, path: Path) -> Path:
        """Write the averaged student as one file that the loaders and ComfyUI read."""
        state = self.averaged_state()
        if self.accelerator.is_main_process:
            export_student(self.student.model.model, state, self.recipe, path)
        self.accelerator.wait_for_everyone()
        return path
