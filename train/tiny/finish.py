"""The last stage: Salt's losses once more, and beside them a judge that knows the world's own clips.

A student learns its teacher's faults too: outlines that dissolve, a second object, none at all. A causal teacher of
this size has them in one clip of ten. Real clips have none, and the world draws as many as are wanted; DMD2 (arXiv
2405.14867) takes them in by an adversarial loss, and so does this. One rollout a step serves all who learn: the judge,
the critic, and the student, which waits until both know its clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from salt.checkpoints import load_student, save_wan
from salt.prompts import Conditioning
from salt.schedule import add_noise
from salt.student import SaltTransformer3DModel
from train.choices import Choices, draw_choices
from train.losses import fooling_loss, judge_loss, smoothness_loss
from train.objectives import Batch, Models, critic_loss, rolled_loss
from train.parallel import Wrapped
from train.recipe import Recipe, load_recipe
from train.rollouts import Rolled, roll
from train.tiny.common import Run, placed, seeded, update_ema
from train.tiny.judge import Judge
from train.tiny.latents import Latents
from train.tiny.quick import Quick

ADVERSARIAL = 0.02  # its gradient is then about as long as DMD's
SMOOTHNESS = 0.01
SPREAD = 0.05  # of the noise that the judge's slope is measured with
NOISE = 0.5  # the highest sigma of what the judge sees: outlines are still there
JUDGE_LR = 2e-4
CLIP, JUDGE_CLIP = 10.0, 1.0
FIRST_BLOCK = 2.0  # times as much as a frame of a later block: most clips that fail, fail there
REPLAYED = 60  # rollouts that the judge and the critic see again
RECENT = 20  # of them for the critic, which has to be up to date


@dataclass(frozen=True)
class Finish:
    """How long. `waits`: steps in which only the judge and the critic learn.

    After so few the judge goes on learning its trade beside the student: 500 steps gain nothing yet, 750 do
    (docs/study.md).
    """

    waits: int = 200
    steps: int = 1000
    frames: int = 12
    ema: float = 0.998
    compiled: bool = True


def finish_recipe(teacher: Path, seed: int, frames: int, shift: float) -> Recipe:
    """Salt's losses on the Shapes world, as the study's arm `all` has them, more of them at the two low step counts."""
    return load_recipe(
        "tiny_salt",
        [
            f"models.teacher={teacher}", f"rollout.frames={frames}", f"rollout.shift={shift}",
            "rollout.share={8: 0.2, 4: 0.4, 2: 0.4}", "loss.align_start=0", "optimisation.batch=8",
            "optimisation.micro_batch=8", "optimisation.lr=3e-5", "optimisation.precision=bf16", f"run.seed={seed}",
        ],
    )  # fmt: skip


@dataclass
class Pairs:
    """Clips the student made beside real ones of the same scenes: made, real [B, 16, F, 8, 8], scene numbers [B]."""

    made: Tensor
    real: Tensor
    scenes: Tensor

    def __add__(self, other: Pairs) -> Pairs:
        both = ((self.made, other.made), (self.real, other.real), (self.scenes, other.scenes))
        return Pairs(*(torch.cat(two) for two in both))


def noised(pairs: Pairs, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Real and made clips under noise of their own at one sigma [B] a pair, and that sigma."""
    device = pairs.real.device
    sigma = (NOISE * torch.rand(len(pairs.real), generator=generator)).to(device)
    real, made = (
        add_noise(clips, torch.randn(clips.shape, generator=generator).to(device), sigma)
        for clips in (pairs.real, pairs.made)
    )
    return real, made, sigma


class Finisher:
    """The learners of the stage and one step of each."""

    def __init__(
        self, student: Path, teacher: Path, recipe: Recipe, text_SLD: Tensor, device: str, compiled: bool
    ) -> None:
        """text_SLD: what each scene's caption is to the models, by scene number."""

        def loaded(path: Path) -> SaltTransformer3DModel:
            return placed(load_student(path, dtype=torch.float32), device)

        self.recipe, self.device = recipe, device
        self.text_SLD = text_SLD.to(device)
        opt = recipe.optimisation
        self.student = loaded(student).requires_grad_(True)
        self.wrapped = Wrapped(self.student, "single", opt.precision == "bf16", compiled=compiled)
        self.critic, frozen = loaded(teacher).requires_grad_(True), loaded(teacher).requires_grad_(False)
        self.critic_flow, self.teacher = (Quick(m) if compiled else m for m in (self.critic, frozen))
        self.judge = placed(Judge(loaded(teacher).requires_grad_(True), compiled), device)
        adam = partial(torch.optim.AdamW, betas=(0.0, 0.99), weight_decay=0.0)
        self.optimizers = {
            "student": adam(self.student.parameters(), lr=opt.lr),
            "judge": adam([p for p in self.judge.parameters() if p.requires_grad], lr=JUDGE_LR),
            "critic": torch.optim.AdamW(self.critic.parameters(), lr=opt.critic_lr, betas=opt.betas),
        }
        weight_F = torch.ones(recipe.rollout.frames, device=device)
        weight_F[: recipe.rollout.frames_per_block] = FIRST_BLOCK
        self.weight_F = weight_F / weight_F.sum()
        self.replay: list[Pairs] = []

    def models(self) -> dict[str, nn.Module]:
        return {"student": self.student, "judge": self.judge, "critic": self.critic}

    def state(self) -> dict:
        """Everything that the next step depends on."""
        return {
            "models": {name: model.state_dict() for name, model in self.models().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "replay": [(p.made.cpu(), p.real.cpu(), p.scenes.cpu()) for p in self.replay],
        }

    def load_state(self, state: dict) -> None:
        for name, model in self.models().items():
            model.load_state_dict(state["models"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        self.replay = [Pairs(*(tensor.to(self.device) for tensor in kept)) for kept in state["replay"]]

    def step(self, step: int, real: Tensor, scenes: Tensor, waiting: bool, generator: torch.Generator) -> dict:
        """One step of all; while `waiting` the student stands still. What to log.

        real [B, 16, F, 8, 8], scenes: their numbers [B].
        """
        recipe, text = self.recipe, self.text_SLD[scenes]
        choices = draw_choices(recipe, step, "generator")
        nothing = Conditioning(torch.zeros_like(text))
        batch = Batch(range(len(real)), Conditioning(text), nothing)
        seeds = batch.seeds(recipe, step, "generator")
        rolled = self.wrapped(
            lambda student: roll(student, batch.conditioning, recipe, choices, seeds, gradient=not waiting)
        )
        fresh = Pairs(rolled.x0.detach().float(), real, scenes)
        values = {"judge": self._learn_judge(fresh + (self._again(len(self.replay), generator) or fresh), generator)}
        for i, pairs in enumerate((fresh, self._again(RECENT, generator) or fresh)):
            values["critic"] = self._learn_critic(pairs, batch, 2 * step + i)
        if not waiting:
            values |= self._learn_student(rolled, fresh, batch, choices, step, generator)
        self.replay = [*self.replay, fresh][-REPLAYED:]
        return values

    def _again(self, recent: int, generator: torch.Generator) -> Pairs | None:
        """One of the `recent` newest rollouts before this one, if there are any."""
        newest = self.replay[-recent:] if recent else []
        return newest[int(torch.randint(len(newest), (), generator=generator))] if newest else None

    def _judged(self, clips: Tensor, sigma: Tensor, scenes: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.wrapped.bf16):
            return self.judge(clips, sigma, self.text_SLD[scenes])

    def _update(self, name: str, loss: Tensor, clip: float) -> float:
        model = self.models()[name]
        self.optimizers[name].zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        self.optimizers[name].step()
        return float(norm)

    def _learn_judge(self, pairs: Pairs, generator: torch.Generator) -> float:
        """Twice a batch of pairs; the slope is measured on the first half, which is fresh."""
        real, made, sigma = noised(pairs, generator)
        half = slice(len(real) // 2)
        nudged = torch.cat([real[half], made[half]])
        nudged = nudged + SPREAD * torch.randn(nudged.shape, generator=generator).to(nudged.device)
        clips = torch.cat([real, made, nudged])
        sigmas, scenes = (torch.cat([all_, all_, all_[half], all_[half]]) for all_ in (sigma, pairs.scenes))
        real_BF, made_BF, nudged_BF = self._judged(clips, sigmas, scenes).split(len(real))
        told = judge_loss(real_BF, made_BF, self.weight_F)
        slope = smoothness_loss(torch.cat([real_BF[half], made_BF[half]]), nudged_BF, SPREAD, self.weight_F)
        self._update("judge", told + 2 * SMOOTHNESS * slope, JUDGE_CLIP)  # two: of the real and of the made
        return told.item()

    def _learn_critic(self, pairs: Pairs, batch: Batch, update: int) -> float:
        shown = Batch(batch.samples, Conditioning(self.text_SLD[pairs.scenes]), batch.negative)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.wrapped.bf16):
            loss = critic_loss(self.critic_flow, pairs.made, shown, self.recipe, update)
        self._update("critic", loss, CLIP)
        return loss.item()

    def _learn_student(
        self, rolled: Rolled, fresh: Pairs, batch: Batch, choices: Choices, step: int, generator: torch.Generator
    ) -> dict:
        # Gradient goes through the judge to the clips, not into its weights.
        learning = [p for p in self.judge.parameters() if p.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(False)
        real, made, sigma = noised(Pairs(rolled.x0.float(), fresh.real, fresh.scenes), generator)
        with torch.no_grad():
            real_BF = self._judged(real, sigma, fresh.scenes)
        fooling = fooling_loss(real_BF, self._judged(made, sigma, fresh.scenes), self.weight_F)
        loss, parts = self.wrapped(
            lambda student: rolled_loss(
                Models(student, self.critic_flow, self.teacher), rolled, batch, self.recipe, choices, step
            )
        )
        parts["norm"] = self._update("student", loss + ADVERSARIAL * fooling, CLIP)
        for parameter in learning:
            parameter.requires_grad_(True)
        return parts | {"fooling": fooling.item()}


def train_finish(
    folder: Path, student: Path, teacher: Path, latents: Path, finish: Finish = Finish(), shift: float = 3.0,
    seed: int = 0, device: str = "cpu",
) -> Path:  # fmt: skip
    """Train or go on training; returns the file of the averaged student, `final.safetensors`, in Wan's names."""
    run, path = Run(folder), folder / "final.safetensors"
    if path.exists():
        return path
    data = Latents(latents)
    torch.manual_seed(seed)  # the judge's head is new
    recipe = finish_recipe(teacher, seed, finish.frames, shift)
    learners = Finisher(student, teacher, recipe, data.text_SLD, device, finish.compiled)
    ema = {name: value.detach().clone().float() for name, value in learners.student.state_dict().items()}
    state, step = run.load(), 0
    if state is not None:
        learners.load_state(state["learners"])
        ema, step = state["ema"], state["step"]
    total = finish.waits + finish.steps
    while step < total:
        generator = seeded(seed + 17, step)
        real, scenes = data.draw(learners.recipe.optimisation.batch, finish.frames, generator)
        waiting = step < finish.waits
        values = learners.step(step, real.to(device), scenes.to(device), waiting, generator)
        step += 1
        if not waiting:
            done = step - finish.waits
            update_ema(ema, learners.student, min(finish.ema, done / (done + 10)))
        if step % 25 == 0 or step == total:
            run.log(step, **values)
        if run.due() or step == total:
            run.save(learners=learners.state(), ema=ema, step=step)
    learners.student.load_state_dict(ema)
    save_wan(learners.student, path, dtype=torch.float32)
    return path
