"""The last stage: Salt's losses once more, and beside them a judge that knows the world's own clips.

A student learns its teacher's faults too: outlines that dissolve, a second object, none at all. A causal teacher of
this size has them in one clip of ten. Real clips have none, and the world draws as many as are wanted; DMD2 (arXiv
2405.14867) takes them in by an adversarial loss, and so does this. One rollout a step serves all who learn: the judge,
the critic, and the student, which waits until both know its clips. The steps take turns at three kinds of rollout
(`kinds.py`).
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
from salt.schedule import add_noise
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.distributed.parallel import DistributedModel
from train.experiments.tiny.compiled_forward import CompiledForward
from train.experiments.tiny.discriminator import Discriminator
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.rollout_modes import Kind, Pairs, kinds, whole_recipe
from train.experiments.tiny.run_state import Run, placed, seeded, update_ema
from train.losses import discriminator_loss, generator_adversarial_loss, gradient_penalty
from train.methods.sc_dmd_losses import alignment_term, critic_term, dmd_term, semigroup_term
from train.rollout.gradient_rollout import RolloutResult
from train.rollout.random_draws import UpdateDraws, draw_update

EMPHASIS = 6.0  # the judge's gradient is as many times as long as DMD's
LENGTH = 0.25  # of both together
WORST = 4.0  # of logits: the temperature at which a clip counts more the more it is found out
SMOOTHNESS = 0.01
SPREAD = 0.05  # of the noise that the judge's slope is measured with
NOISE = 0.6  # the highest sigma of what the judge sees: outlines are still there
JUDGE_LR = 2e-4
CLIP, JUDGE_CLIP = 10.0, 1.0
REPLAYED = 60  # rollouts of a kind that the judge and the critic see again
RECENT = 20  # of them for the critic, which has to be up to date


@dataclass(frozen=True)
class Finish:
    """How long. waits: steps in which only the judge and the critic learn. docs/study.md has what 1318 `steps` give."""

    waits: int = 200
    steps: int = 1500
    frames: int = 12
    ema: float = 0.998
    compiled: bool = True


def noised(pairs: Pairs, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Real and made clips under noise of their own at one sigma [B] a pair, and that sigma."""
    device = pairs.real.device
    sigma = (NOISE * torch.rand(len(pairs.real), generator=generator)).to(device)
    real, made = (
        add_noise(clips, torch.randn(clips.shape, generator=generator).to(device), sigma)
        for clips in (pairs.real, pairs.made)
    )
    return real, made, sigma


def pulled(made: Tensor, fooling: Tensor, dmd: Tensor, scored_F: Tensor) -> Tensor:
    """Gradient in clips `made` [B, C, F, H, W] of both losses, the judge's EMPHASIS times as long as DMD's, and both
    times LENGTH. Of DMD's only that in the frames scored [F] counts.
    """
    (by_judge,) = torch.autograd.grad(fooling, made)
    (by_scores,) = torch.autograd.grad(dmd, made)
    loudness = EMPHASIS * by_scores.norm() / by_judge.norm().clamp_min(1e-12)
    return LENGTH * (loudness * by_judge + by_scores * scored_F[:, None, None])


class Finisher:
    """The learners of the stage and one step of each."""

    def __init__(
        self, student: Path, teacher: Path, recipe: Recipe, text_SLD: Tensor, device: str, compiled: bool
    ) -> None:
        """recipe: of whole clips. text_SLD: what each scene's caption is to the models, by scene number."""

        def loaded(path: Path) -> SaltTransformer3DModel:
            return placed(load_student(path, dtype=torch.float32), device)

        self.device = device
        self.text_SLD = text_SLD.to(device)
        opt = recipe.optimisation
        self.student = loaded(student).requires_grad_(True)
        self.wrapped = DistributedModel(self.student, "single", opt.precision == "bf16", compiled=compiled)
        self.critic, frozen = loaded(teacher).requires_grad_(True), loaded(teacher).requires_grad_(False)
        student_flow, self.critic_flow, self.teacher = (
            CompiledForward(m) if compiled else m for m in (self.student, self.critic, frozen)
        )
        self.kinds = kinds(recipe, student_flow, device)
        self.judge = placed(Discriminator(loaded(teacher).requires_grad_(True), compiled), device)
        adam = partial(torch.optim.AdamW, betas=(0.0, 0.99), weight_decay=0.0)
        self.optimizers = {
            "student": adam(self.student.parameters(), lr=opt.lr),
            "judge": adam([p for p in self.judge.parameters() if p.requires_grad], lr=JUDGE_LR),
            "critic": torch.optim.AdamW(self.critic.parameters(), lr=opt.critic_lr, betas=opt.betas),
        }

    def kind(self, step: int) -> Kind:
        return self.kinds[step % len(self.kinds)]

    def models(self) -> dict[str, nn.Module]:
        return {"student": self.student, "judge": self.judge, "critic": self.critic}

    def state(self) -> dict:
        """Everything that the next step depends on."""
        return {
            "models": {name: model.state_dict() for name, model in self.models().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "replays": [[(p.made.cpu(), p.real.cpu(), p.scenes.cpu()) for p in kind.replay] for kind in self.kinds],
        }

    def load_state(self, state: dict) -> None:
        for name, model in self.models().items():
            model.load_state_dict(state["models"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        for kind, replay in zip(self.kinds, state["replays"], strict=True):
            kind.replay = [Pairs(*(tensor.to(self.device) for tensor in kept)) for kept in replay]

    def step(self, step: int, real: Tensor, scenes: Tensor, waiting: bool, generator: torch.Generator) -> dict:
        """One step of all, at the kind whose turn it is; while `waiting` the student stands still. What to log.

        real [B, 16, F, 8, 8] of the kind's frames, scenes: their numbers [B].
        """
        kind = self.kind(step)
        recipe, text = kind.recipe, self.text_SLD[scenes]
        choices = draw_update(recipe, step, "generator")
        batch = Batch(range(len(real)), Conditioning(text), Conditioning(torch.zeros_like(text)))
        seeds = batch.seeds(recipe, step, "generator")
        rolled = self.wrapped(
            lambda student: kind.roll(student, batch.conditioning, recipe, choices, seeds, gradient=not waiting)
        )
        fresh = Pairs(rolled.x0.detach().float(), real, scenes)
        seen = fresh + (kind.again(REPLAYED, generator) or fresh)
        values = {"judge": self._learn_judge(seen, kind.weight_F, generator)}
        for i, pairs in enumerate((fresh, kind.again(RECENT, generator) or fresh)):
            values["critic"] = self._learn_critic(pairs, batch, recipe, 2 * step + i)
        kind.replay = [*kind.replay, fresh][-REPLAYED:]
        if waiting:
            return values
        return values | self._learn_student(rolled, fresh, batch, kind, choices, step, generator)

    def _judged(self, clips: Tensor, sigma: Tensor, scenes: Tensor) -> Tensor:
        with self._autocast():
            return self.judge(clips, sigma, self.text_SLD[scenes])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.wrapped.bf16)

    def _update(self, name: str, loss: Tensor, clip: float) -> float:
        model = self.models()[name]
        self.optimizers[name].zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        self.optimizers[name].step()
        return float(norm)

    def _learn_judge(self, pairs: Pairs, weight_F: Tensor, generator: torch.Generator) -> float:
        """Twice a batch of pairs; the slope is measured on the first half, which is fresh."""
        real, made, sigma = noised(pairs, generator)
        half = slice(len(real) // 2)
        nudged = torch.cat([real[half], made[half]])
        nudged = nudged + SPREAD * torch.randn(nudged.shape, generator=generator).to(nudged.device)
        clips = torch.cat([real, made, nudged])
        sigmas, scenes = (torch.cat([all_, all_, all_[half], all_[half]]) for all_ in (sigma, pairs.scenes))
        real_BF, made_BF, nudged_BF = self._judged(clips, sigmas, scenes).split(len(real))
        told = discriminator_loss(real_BF, made_BF, weight_F)
        slope = gradient_penalty(torch.cat([real_BF[half], made_BF[half]]), nudged_BF, SPREAD, weight_F)
        self._update("judge", told + 2 * SMOOTHNESS * slope, JUDGE_CLIP)  # two: of the real and of the made
        return told.item()

    def _learn_critic(self, pairs: Pairs, batch: Batch, recipe: Recipe, update: int) -> float:
        shown = Batch(batch.samples, Conditioning(self.text_SLD[pairs.scenes]), batch.negative)
        with self._autocast():
            loss = critic_term(self.critic_flow, pairs.made, shown, recipe, update)
        self._update("critic", loss, CLIP)
        return loss.item()

    def _learn_student(
        self, rolled: RolloutResult, fresh: Pairs, batch: Batch, kind: Kind, choices: UpdateDraws, step: int,
        generator: torch.Generator,
    ) -> dict:  # fmt: skip
        made = fresh.made.detach().requires_grad_(True)
        fooling = self._fooling(replace(fresh, made=made), kind.weight_F, generator)

        def losses(student: SaltTransformer3DModel) -> tuple[Tensor, Tensor, dict]:
            dmd = dmd_term(self.critic_flow, self.teacher, made, batch, kind.recipe, choices, step)
            semigroup, parts = semigroup_term(rolled, kind.recipe, choices)
            alignment, more = alignment_term(student, self.teacher, rolled, batch, kind.recipe, choices, step)
            return dmd, semigroup + alignment, parts | more

        dmd, consistency, parts = self.wrapped(losses)
        loss = (rolled.x0.float() * pulled(made, fooling, dmd, kind.scored_F)).sum() + consistency
        return parts | {"dmd": dmd.item(), "fooling": fooling.item(), "norm": self._update("student", loss, CLIP)}

    def _fooling(self, pairs: Pairs, weight_F: Tensor, generator: torch.Generator) -> Tensor:
        """The student's adversarial loss, of which `pulled` takes the gradient in the clips and not in the judge."""
        real, made, sigma = noised(pairs, generator)
        with torch.no_grad():
            real_BF = self._judged(real, sigma, pairs.scenes)
        return generator_adversarial_loss(real_BF, self._judged(made, sigma, pairs.scenes), weight_F, WORST)


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
    recipe = whole_recipe(str(teacher), seed, finish.frames, shift)
    learners = Finisher(student, teacher, recipe, data.text_SLD, device, finish.compiled)
    ema = {name: value.detach().clone().float() for name, value in learners.student.state_dict().items()}
    state, step = run.load(), 0
    if state is not None:
        learners.load_state(state["learners"])
        ema, step = state["ema"], state["step"]
    total = finish.waits + finish.steps
    while step < total:
        generator = seeded(seed + 17, step)
        kind = learners.kind(step)
        real, scenes = data.draw(kind.recipe.optimisation.batch, len(kind.weight_F), generator, kind.late)
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
