"""The adversarial stage: Salt's losses, and a discriminator that compares the student's clips with real ones.

A student inherits its teacher's faults: outlines that dissolve, a second object, none at all. A causal teacher of this
size shows them in one clip of ten. Real clips have none, and the world draws any number of them; DMD2 (arXiv
2405.14867) uses them in an adversarial loss, and so does this stage. The rollout of a step serves all three models that
learn: the discriminator, the critic, and, after a warm-up of these two, the student. Steps take turns at three kinds of
rollout (`rollout_modes.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from salt.checkpoints import load_student, save_wan
from salt.conditioning import Conditioning
from salt.models.transformer_salt import SaltTransformer3DModel
from train.adversarial.pairs import MAX_SIGMA, NoisyPairs, adversarial_term, clip_gradient, discriminator_terms
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.distributed.ema import update_average
from train.distributed.parallel import DistributedModel
from train.experiments.tiny.compiled_forward import CompiledForward
from train.experiments.tiny.discriminator import Discriminator
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.rollout_modes import ClipPairs, RolloutMode, rollout_modes, whole_clip_recipe
from train.experiments.tiny.run_state import Run, placed, seeded
from train.methods.sc_dmd_losses import alignment_term, critic_term, dmd_term, semigroup_term
from train.monitoring.logged_values import LoggedValues
from train.rollout.gradient_rollout import RolloutResult
from train.rollout.random_draws import UpdateDraws, draw_update

ADVERSARIAL_RATIO = 6.0  # norm of the adversarial gradient in a clip, over DMD's
GRADIENT_SCALE = 0.25  # of both gradients
DISCRIMINATOR_LR = 2e-4
CLIP_NORM, DISCRIMINATOR_CLIP_NORM = 10.0, 1.0
REPLAY_SIZE = 60  # pairs per mode that the discriminator sees again
RECENT_REPLAY = 20  # of them for the critic, which has to follow the student


@dataclass(frozen=True)
class AdversarialStage:
    """Length of the stage. warmup: steps in which the student does not learn. frames: latent, of a whole clip.

    train/experiments/ablation/LOG.md has the scores after 1318 `steps`.
    """

    warmup: int = 200
    steps: int = 1500
    frames: int = 12
    ema: float = 0.998
    compiled: bool = True


def add_pair_noise(pairs: ClipPairs, text: Tensor, generator: torch.Generator) -> NoisyPairs:
    """The pairs, noised at one sigma [B] per pair. text [B, L, D]: of their scenes."""
    device = pairs.real.device
    sigma = (MAX_SIGMA * torch.rand(len(pairs.real), generator=generator)).to(device)
    real, fake = (torch.randn(pairs.real.shape, generator=generator).to(device) for _ in range(2))
    return NoisyPairs.of(pairs.real, pairs.fake, sigma, text, (real, fake))


class AdversarialTrainer:
    """Student, discriminator and critic, and one training step of each."""

    def __init__(
        self, student: Path, teacher: Path, recipe: Recipe, text_SLD: Tensor, device: str, compiled: bool
    ) -> None:
        """recipe: of whole clips. text_SLD: embedding of every scene's caption, by scene number."""

        def load(path: Path) -> SaltTransformer3DModel:
            return placed(load_student(path, dtype=torch.float32), device)

        self.device = device
        self.text_SLD = text_SLD.to(device)
        opt = recipe.optimisation
        self.student = load(student).requires_grad_(True)
        self.wrapped = DistributedModel(self.student, "single", opt.precision == "bf16", compiled=compiled)
        self.critic, frozen = load(teacher).requires_grad_(True), load(teacher).requires_grad_(False)
        student_model, self.critic_model, self.teacher = (
            CompiledForward(m) if compiled else m for m in (self.student, self.critic, frozen)
        )
        self.modes = rollout_modes(recipe, student_model, device)
        self.discriminator = placed(Discriminator(load(teacher).requires_grad_(True), compiled), device)
        adam = partial(torch.optim.AdamW, betas=(0.0, 0.99), weight_decay=0.0)
        self.models: dict[str, nn.Module] = {
            "student": self.student,
            "discriminator": self.discriminator,
            "critic": self.critic,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adam(self.student.parameters(), lr=opt.lr),
            "discriminator": adam([p for p in self.discriminator.parameters() if p.requires_grad], lr=DISCRIMINATOR_LR),
            "critic": torch.optim.AdamW(self.critic.parameters(), lr=opt.critic_lr, betas=opt.betas),
        }

    def mode(self, step: int) -> RolloutMode:
        return self.modes[step % len(self.modes)]

    def state(self) -> dict:
        """Everything that the next step depends on."""
        return {
            "models": {name: model.state_dict() for name, model in self.models.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "replays": [[(p.fake.cpu(), p.real.cpu(), p.scenes.cpu()) for p in mode.replay] for mode in self.modes],
        }

    def load_state(self, state: dict) -> None:
        for name, model in self.models.items():
            model.load_state_dict(state["models"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        for mode, replay in zip(self.modes, state["replays"], strict=True):
            mode.replay = [ClipPairs(*(tensor.to(self.device) for tensor in pairs)) for pairs in replay]

    def step(
        self, step: int, real: Tensor, scenes: Tensor, warmup: bool, generator: torch.Generator
    ) -> dict[str, float]:
        """One step of all models in the mode whose turn it is, without the student during `warmup`; losses to log.

        real [B, 16, F, 8, 8]: real clips of the mode's length. scenes: their numbers [B].
        """
        mode = self.mode(step)
        recipe, text = mode.recipe, self.text_SLD[scenes]
        draws = draw_update(recipe, step, "generator")
        batch = Batch(range(len(real)), Conditioning(text), Conditioning(torch.zeros_like(text)))
        seeds = batch.seeds(recipe, step, "generator")
        result = self.wrapped(
            lambda student: mode.rollout(student, batch.conditioning, recipe, draws, seeds, gradient=not warmup)
        )
        fresh = ClipPairs(result.x0.detach().float(), real, scenes)
        pairs = fresh + (mode.draw_replay(REPLAY_SIZE, generator) or fresh)
        values = {"discriminator": self._step_discriminator(pairs, mode.weight_F, generator)}
        for i, critic_pairs in enumerate((fresh, mode.draw_replay(RECENT_REPLAY, generator) or fresh)):
            values["critic"] = self._step_critic(critic_pairs, batch, recipe, 2 * step + i)
        mode.replay = [*mode.replay, fresh][-REPLAY_SIZE:]
        if warmup:
            return values
        return values | self._step_student(result, fresh, batch, mode, draws, step, generator)

    def _logits(self, clips: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        with self._autocast():
            return self.discriminator(clips, sigma, text)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.wrapped.bf16)

    def _apply(self, name: str, loss: Tensor, max_norm: float) -> float:
        """Backward, clip and step of one model; returns the gradient's norm before clipping."""
        self.optimizers[name].zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.models[name].parameters(), max_norm)
        self.optimizers[name].step()
        return float(norm)

    def _step_discriminator(self, pairs: ClipPairs, weight_F: Tensor, generator: torch.Generator) -> float:
        """pairs: fresh ones, then as many replayed ones; the gradient penalty uses the fresh half."""
        noisy = add_pair_noise(pairs, self.text_SLD[pairs.scenes], generator)
        spread = torch.randn(noisy.real.shape, generator=generator).to(noisy.real.device)
        loss, penalty = discriminator_terms(self._logits, noisy, weight_F, spread)
        self._apply("discriminator", loss + penalty, DISCRIMINATOR_CLIP_NORM)
        return loss.item()

    def _step_critic(self, pairs: ClipPairs, batch: Batch, recipe: Recipe, update: int) -> float:
        own = Batch(batch.samples, Conditioning(self.text_SLD[pairs.scenes]), batch.negative)
        with self._autocast():
            loss = critic_term(self.critic_model, pairs.fake, own, recipe, update)
        self._apply("critic", loss, CLIP_NORM)
        return loss.item()

    def _step_student(
        self,
        result: RolloutResult,
        fresh: ClipPairs,
        batch: Batch,
        mode: RolloutMode,
        draws: UpdateDraws,
        step: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        fake = fresh.fake.detach().requires_grad_(True)
        noisy = add_pair_noise(replace(fresh, fake=fake), self.text_SLD[fresh.scenes], generator)
        adversarial = adversarial_term(self._logits, noisy, mode.weight_F)

        def losses(student: SaltTransformer3DModel) -> tuple[Tensor, Tensor, LoggedValues]:
            dmd = dmd_term(self.critic_model, self.teacher, fake, batch, mode.recipe, draws, step)
            semigroup, parts = semigroup_term(result, mode.recipe, draws)
            alignment, more = alignment_term(student, self.teacher, result, batch, mode.recipe, draws, step)
            return dmd, semigroup + alignment, parts | more

        dmd, consistency, parts = self.wrapped(losses)
        gradient = clip_gradient(fake, adversarial, dmd, ADVERSARIAL_RATIO, mode.scored_F)
        loss = (result.x0.float() * GRADIENT_SCALE * gradient).sum() + consistency
        norm = self._apply("student", loss, CLIP_NORM)
        logged = {name: float(value) for name, value in parts.items()}
        return logged | {"dmd": dmd.item(), "adversarial": adversarial.item(), "norm": norm}


def train_adversarial(
    folder: Path, student: Path, teacher: Path, latents: Path, stage: AdversarialStage = AdversarialStage(),
    shift: float = 3.0, seed: int = 0, device: str = "cpu",
) -> Path:  # fmt: skip
    """Train or resume; returns the averaged student's file, `folder`/final.safetensors, in Wan's names."""
    run, path = Run(folder), folder / "final.safetensors"
    if path.exists():
        return path
    data = Latents(latents)
    torch.manual_seed(seed)  # of the discriminator's head
    recipe = whole_clip_recipe(str(teacher), seed, stage.frames, shift)
    trainer = AdversarialTrainer(student, teacher, recipe, data.text_SLD, device, stage.compiled)
    average: dict[str, Tensor] = {}
    update_average(average, trainer.student.named_parameters(), 1.0)
    state, step = run.load(), 0
    if state is not None:
        trainer.load_state(state["learners"])
        average = {name: value.to(device) for name, value in state["ema"].items()}
        step = state["step"]
    total = stage.warmup + stage.steps
    while step < total:
        generator = seeded(seed + 17, step)
        mode = trainer.mode(step)
        real, scenes = data.draw(mode.recipe.optimisation.batch, len(mode.weight_F), generator, mode.late)
        warmup = step < stage.warmup
        values = trainer.step(step, real.to(device), scenes.to(device), warmup, generator)
        step += 1
        if not warmup:
            done = step - stage.warmup
            update_average(average, trainer.student.named_parameters(), min(stage.ema, done / (done + 10)))
        if step % 25 == 0 or step == total:
            run.log(step, **values)
        if run.due() or step == total:
            run.save(learners=trainer.state(), ema=average, step=step)
    trainer.student.load_state_dict(average)
    save_wan(trainer.student, path, dtype=torch.float32)
    return path
