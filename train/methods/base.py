"""The training loop that all methods share: micro-batches, gradient step, weight average, logs, checkpoints, export.

What an update computes is the method's own: `sc_dmd` (distillation), `ode_regression`, `consistency` and
`teacher_forcing` (the stages that train the initial student). Counterpart in Self Forcing: `Trainer.__init__`, `train`
and `save` of `trainer/*.py`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch import Tensor

from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.data.prompts import Prompts
from train.distributed.checkpointing import CheckpointFolder, load_checkpoint
from train.distributed.ema import Ema
from train.distributed.launch import Mode, clip_share, mean_over_processes, process_state, sequence_group
from train.distributed.low_bit_states import set_rate, step_eagerly
from train.distributed.parallel import DistributedModel
from train.distributed.stop_request import StopRequest
from train.lora_adapters import adapter_of, export_adapter
from train.methods.learning_rate import rate_factor
from train.models import build_student, export_student, make_optimizer, student_facts
from train.monitoring.divergence_guard import Diverged, DivergenceGuard
from train.monitoring.logged_values import LoggedValues
from train.monitoring.metrics_logger import MetricsLogger
from train.monitoring.throughput import Throughput, device_peak
from train.monitoring.update_flops import TransformerConfig


@dataclass
class Learner:
    """A model in training with its optimizer. lr: the rate that its schedule scales."""

    model: DistributedModel
    optimizer: torch.optim.Optimizer
    lr: float

    def step(self, max_norm: float, factor: float) -> float:
        """Clip, step and clear the gradient; returns its norm before clipping. factor: on the rate."""
        norm = self.model.clip(max_norm)
        set_rate(self.optimizer, self.lr * factor)
        step_eagerly(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def largest(values: list[float]) -> float:
    """The largest of the values; NaN where one of them is."""
    return float(torch.tensor(values, dtype=torch.float64).max())


class Trainer(ABC):
    """One run. `run()` resumes from the newest complete checkpoint and trains to the recipe's last update.

    A method adds its own models to `learners` and implements `update`. prompts: a list in place of the recipe's.
    """

    def __init__(self, recipe: Recipe, mode: Mode = "single", prompts: list[str] | None = None) -> None:
        self.recipe = recipe
        out, opt = Path(recipe.run.out), recipe.optimisation
        tracker = None if recipe.run.tracker == "none" else recipe.run.tracker
        folders = ProjectConfiguration(str(out), str(out / "logs"))
        process_state()
        self.accelerator = Accelerator(log_with=tracker, project_config=folders)
        self.device = self.accelerator.device
        self.share, self.shares = clip_share(recipe)
        self.sequence = sequence_group(recipe)
        student = build_student(recipe, self.device)
        self.facts = student_facts(recipe, student.config.out_channels)
        self.student = self.learner(student, mode, opt.lr)
        self.learners = {"student": self.student}
        self.ema = Ema(student, opt.ema)
        channels = student.config.in_channels - student.config.out_channels
        self.prompts = Prompts(recipe, self.device, channels, prompts)
        self.guard = DivergenceGuard(recipe.run.diverged)
        self.folder = CheckpointFolder(out / "checkpoints", recipe.run.keep)

    @abstractmethod
    def update(self, update: int) -> dict[str, float]:
        """One update of the student, `update` counted from 0; returns mean losses over the global batch."""

    @property
    def bf16(self) -> bool:
        return self.recipe.optimisation.precision == "bf16"

    def learner(self, model: SaltTransformer3DModel, mode: Mode, lr: float) -> Learner:
        opt = self.recipe.optimisation
        wrapped = DistributedModel(model, mode, self.bf16, opt.compile, opt.shard, self.sequence)
        return Learner(wrapped, make_optimizer(wrapped.parameters(), self.recipe, lr), lr)

    def run(self, on_update: Callable[[int], dict[str, float]] | None = None) -> int:
        """Train; returns the number of finished updates. on_update: called after each, returns what else to log.

        Ctrl-C or SIGTERM in any process ends the run after the update, with a checkpoint, by a KeyboardInterrupt.
        Raises Diverged when a loss is not finite or the gradient norm jumps; the last complete checkpoint is kept.
        """
        done = saved = self.resume()
        run, opt = self.recipe.run, self.recipe.optimisation
        peak = device_peak(self.device, opt.precision)
        throughput = Throughput(self.recipe, self.configurations(), self.accelerator.num_processes, peak)
        with MetricsLogger(self.recipe, self.accelerator, done, throughput) as logger, StopRequest() as stop:
            while done < opt.updates:
                began = time.perf_counter()
                values = self.update(done)
                seconds = time.perf_counter() - began
                values["lr"] = float(self.student.optimizer.param_groups[0]["lr"])
                try:
                    self.guard.check(done + 1, values)
                except Diverged as error:
                    newest = [p.name for p in self.folder.complete()[-1:]] or ["none yet"]
                    raise Diverged(f"{error}; stopped, last good checkpoint: {newest[0]}") from None
                done += 1
                logger.update(done, values, seconds)
                if (run.save_every and done % run.save_every == 0) or done == opt.updates:
                    self.save(done)
                    saved = done
                if stop.requested_anywhere(self.device):
                    if saved != done:
                        self.save(done)
                    stop.interrupt()
                if on_update is not None and (more := on_update(done)):
                    logger.add(done, more)
        return done

    def configurations(self) -> dict[str, TransformerConfig]:
        """The configurations of the run's models by name."""
        return {name: learner.model.model.config for name, learner in self.learners.items()}

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per update in one process."""
        opt = self.recipe.optimisation
        return opt.batch // self.shares // opt.micro_batch

    def micro_batches(self, learner: Learner, update: int, role: str) -> Iterator[Batch]:
        """This process's share of the global batch. The loop's body computes a loss of `learner` and calls backward.

        Gradients are reduced over the processes as `DistributedModel.accumulating` says, so run the loop to its end.
        """
        micro_batch, count = self.recipe.optimisation.micro_batch, self.accumulation_steps
        first = self.share * count * micro_batch
        for i in range(count):
            start = first + i * micro_batch
            batch = self.batch(update, range(start, start + micro_batch), role)
            with learner.model.accumulating(last=i + 1 == count):
                yield batch

    def batch(self, update: int, samples: range, role: str) -> Batch:
        """The micro-batch of these samples of the global batch."""
        return self.prompts.batch(update, samples, role)

    def mean_values(self, values: list[LoggedValues]) -> dict[str, float]:
        """Means of logged values over micro-batches and processes; every process has to call it.

        Losses are read here, after all work of the update has been launched: the host waits for the device once.
        """
        sums: dict[str, float] = {}
        for parts in values:
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(values)
        return {name: mean_over_processes(value, self.device) for name, value in sums.items()}

    def step_student(self, update: int) -> float:
        """Step the student's optimizer and average its weights; returns the gradient's norm."""
        opt = self.recipe.optimisation
        norm = self.student.step(opt.clip, rate_factor(opt, update))
        if opt.ema and update + 1 >= opt.ema_start:
            self.ema.update()
        return norm

    def resume(self) -> int:
        """Load the newest whole checkpoint; returns the number of finished updates (0 without one)."""
        newest = [self.folder.newest() if self.accelerator.is_main_process else None]
        if self.accelerator.num_processes > 1:  # all of them read the same one
            broadcast_object_list(newest)
        if newest[0] is None:
            return 0
        parts = load_checkpoint(newest[0])
        if parts["ema"]:
            self.student.model.load_state(parts["ema"])
            self.ema.update()
        for name, learner in self.learners.items():
            learner.model.load_state(parts[name])
            learner.model.load_optimizer_state(learner.optimizer, parts[f"{name}_optimizer"])
        states = parts["run"]["rng"]
        torch.set_rng_state(states[self.accelerator.process_index % len(states)])
        norms = parts["run"]["norms"]  # a list in checkpoints of version 0.1, the student's
        self.guard.load({"norm": norms} if isinstance(norms, list) else norms)
        return int(parts["run"]["updates"])

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` updates. Every process takes part, the main one writes."""
        states: Any = self.accelerator.gather(torch.get_rng_state()[None].to(self.device))
        parts: dict[str, Any] = {"ema": self.averaged_state() if self.ema.average else {}}
        for name, learner in self.learners.items():
            parts[name] = learner.model.state()
            parts[f"{name}_optimizer"] = learner.model.optimizer_state(learner.optimizer)
        parts["run"] = {"updates": done, "rng": [row.clone() for row in states.cpu()], "norms": self.guard.state()}
        if self.accelerator.is_main_process:
            self.folder.save(done, parts)
        self.accelerator.wait_for_everyone()

    def averaged_state(self) -> dict[str, Tensor]:
        """The student's unsharded weights on the CPU, averaged where the average has begun."""
        with self.ema.applied():
            return {name: value.clone() for name, value in self.student.model.state().items()}

    def export(self, path: Path) -> Path:
        """Write the averaged student as one file that the loaders and ComfyUI read, and adapters beside it."""
        states = {"student": self.averaged_state()}
        for name, learner in self.learners.items():
            if name != "student" and adapter_of(self.recipe, name):
                states[name] = learner.model.state()
        if self.accelerator.is_main_process:
            for name, state in states.items():
                export_adapter(state, self.recipe, name, path)
            export_student(self.student.model.model, states["student"], self.recipe, self.facts, path)
        self.accelerator.wait_for_everyone()
        return path
