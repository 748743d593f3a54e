"""The student stages: the teacher's weights learn to go block by block, then to need few steps.

Stage one, teacher forcing: [clean clip | noisy clip] in one forward under the block-causal mask, which computes what a
rollout with perfect memory would compute. The clean half carries a little noise at times, so that the student's own
imperfect past does not surprise it later.

Stage two, self-rollout: the student makes clips against its own memory through `salt.rollout`, with 8, 4 or 2 steps
and an exit drawn evenly from them. First it imitates the teacher's guided flow there, then distribution matching (DMD)
pulls its clips to what stage one had learned. Teacher and critic are block-causal themselves and read the student's
own clip as their past (as in Salt++, arXiv 2609.36995, where causal scores beat bidirectional ones; here the
bidirectional teacher had not learned to keep a trajectory). The rollout runs without gradient; one block-causal forward
over its recorded clip and exit inputs then recomputes all exits at once with gradient. That equals the block-by-block
computation in a fraction of the launches.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from salt.memory import MemoryPass, MemoryPolicy
from salt.noise import SeededNoise
from salt.prompts import Conditioning
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule, add_noise, flow_to_x0, warp
from salt.student import SaltTransformer3DModel, StudentModel
from salt.words import WordEmbedder
from train.causal import causal_flow
from train.losses import critic_flow_loss, dmd_gradient, dmd_loss, guided_x0
from train.shapes.world import random_scenes
from train.tiny.common import Run, placed, seeded, update_ema, warmup_cosine
from train.tiny.latents import Latents
from train.tiny.parallel import average_gradients, rank, world
from train.tiny.quick import Quick
from train.tiny.teacher import PROMPT_DROPOUT, ClipPhase, draw_sigmas, matrix_optimizer, phase_at

BLOCK = 3
MEMORY = MemoryPolicy()  # everything is kept
FIRST_BLOCK = 3.0
HISTORY_NOISE = 0.2  # largest share of noise in a clean clip that is to be forgiven


# Short clips first: three blocks of which one has no past, which is the hard one, at less than half the cost.
FORCING = (
    ClipPhase(frames=9, batch=20, steps=800, lr=2e-3, lr_end=0.8),
    ClipPhase(frames=21, batch=8, steps=700, lr=1.5e-3, lr_end=0.02),
)


@dataclass(frozen=True)
class RolloutTraining:
    """Self-rollout: `imitation` steps, then `steps` of distribution matching; `critic_steps` of the critic with each.

    guidance, imitation_guidance: the teacher's, in Salt's convention cond + g (cond - uncond). steps_share: how often
    8, 4 and 2 steps.
    frames: latent frames of a rollout.
    """

    steps: int = 110
    imitation: int = 150
    batch: int = 16
    frames: int = 12
    imitation_lr: float = 3e-4
    lr: float = 5e-5
    critic_lr: float = 4e-4
    critic_steps: int = 3
    imitation_guidance: float = 1.5
    guidance: float = 1.0
    steps_share: tuple[tuple[int, float], ...] = ((8, 0.4), (4, 0.4), (2, 0.2))
    ema: float = 0.98


def forcing_forward(
    model: SaltTransformer3DModel | Quick, past: Tensor, noisy: Tensor, sigma_BF: Tensor, text: Tensor
) -> Tensor:
    """Flow of every noisy block given the clean blocks before it; past and noisy [B, 16, F, H, W]."""
    blocks = [BLOCK] * (noisy.shape[2] // BLOCK)
    return causal_flow(model, noisy, sigma_BF, Conditioning(text), blocks, MEMORY, past)


def forcing_loss(model: SaltTransformer3DModel | Quick, x0: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching with one sigma per block, against a past that for half the clips is slightly noisy.

    The first block counts FIRST_BLOCK times: it has no past to copy from, and what it misses stays missing.
    """
    batch, _, frames = x0.shape[:3]
    sigma_BF = draw_sigmas(batch * (frames // BLOCK), generator).view(batch, -1).repeat_interleave(BLOCK, dim=1)
    strength = HISTORY_NOISE * torch.rand(batch, generator=generator) * (torch.rand(batch, generator=generator) < 0.5)
    noise, past_noise = (torch.randn(x0.shape, generator=generator).to(x0.device) for _ in range(2))
    sigma_BF, strength = sigma_BF.to(x0.device), strength.to(x0.device)
    past = add_noise(x0, past_noise, strength)
    flow = forcing_forward(model, past, add_noise(x0, noise, sigma_BF), sigma_BF, text)
    error_F = (flow - (noise - x0)).square().mean(dim=(0, 1, 3, 4))
    weight_F = torch.ones_like(error_F)
    weight_F[:BLOCK] = FIRST_BLOCK
    return (weight_F * error_F).sum() / weight_F.sum()


def train_forcing(
    folder: Path,
    teacher_folder: Path,
    latents_folder: Path,
    phases: tuple[ClipPhase, ...] = FORCING,
    seed: int = 3,
    device: str = "cpu",
    compiled: bool = False,
) -> None:
    """Stage one; begins from the teacher's weights and leaves averaged ones in `final/`. compiled: see `quick`."""
    run = Run(folder)
    data = Latents(latents_folder)
    model = placed(SaltTransformer3DModel.from_pretrained(teacher_folder), device)
    net = Quick(model) if compiled else model
    optimizer = matrix_optimizer(model)
    ema = {name: value.detach().clone().float() for name, value in model.state_dict().items()}
    state, step = run.load(), 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    losses: list[float] = []
    total = sum(phase.steps for phase in phases)
    while step < total:
        phase, phase_step = phase_at(phases, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * warmup_cosine(phase_step, phase.steps, 50, phase.lr_end)
        generator = seeded(seed, step * world() + rank())
        x0, text = data.batch(max(phase.batch // world(), 1), phase.frames, generator, PROMPT_DROPOUT)
        with torch.autocast(device, torch.bfloat16):
            loss = forcing_loss(net, x0.to(device), text.to(device), generator)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_ema(ema, model, min(0.995, step / (step + 10)))
        losses.append(loss.item())
        if rank() == 0 and (step % 25 == 0 or step == total):
            run.log(step, loss=sum(losses) / len(losses), frames=phase.frames)
            losses = []
        if rank() == 0 and (run.due() or step == total):
            run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), ema=ema, step=step)
    if rank() == 0:
        model.load_state_dict(ema)
        model.save_pretrained(folder / "final")


class _Recorder:
    """A student as the rollout's model callable that notes what went in at the exit step of every block."""

    def __init__(self, student: SaltTransformer3DModel, exit_timestep: float):
        self.model = StudentModel(student)
        self.exit_timestep = exit_timestep
        self.inputs: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, memory: MemoryPass, conditioning: Conditioning) -> Tensor:
        if abs(float(t[0, 0]) - self.exit_timestep) < 1e-2:
            self.inputs.append(x)
        return self.model(x, t, memory, conditioning)


@torch.no_grad()
def rollout_to_exit(
    student: SaltTransformer3DModel,
    text: Tensor,
    schedule: Schedule,
    exit_index: int,
    seed: int,
    frames: int,
    stop: bool = True,
) -> tuple[Tensor, Tensor]:
    """A clip made by exiting every block at step `exit_index`: (x0, the exit step's inputs), [B, 16, F, 8, 8] each.

    With `stop` False every block runs through its last step all the same; the inputs are still the exit step's.
    """
    batch = text.shape[0]
    recorder = _Recorder(student, schedule.timesteps[exit_index])
    if stop:
        schedule = Schedule(schedule.steps[: exit_index + 1], schedule.shift)
    memory = student.new_memory(MEMORY, batch, 8, 8, frames)
    noise = SeededNoise(seed, batch, 16, 8, 8, device=text.device)
    settings = RolloutSettings(schedule=schedule, frames_per_block=BLOCK)
    blocks = rollout(recorder, Conditioning(text), memory, noise, frames, settings)
    x0 = torch.cat([block.latents for block in blocks], dim=2)
    return x0, torch.cat(recorder.inputs, dim=2)


def score_sigmas(batch: int, generator: torch.Generator) -> Tensor:
    """DMD's score noise levels: timesteps uniform in [0, 1000), shifted by 5, clamped to [20, 980]; one per clip."""
    return warp(1000 * torch.rand(batch, generator=generator)).clamp(0.02, 0.98)


def generator_loss(
    student: SaltTransformer3DModel,
    teacher: SaltTransformer3DModel,
    critic: SaltTransformer3DModel,
    rolled: tuple[Tensor, Tensor, float],
    text: Tensor,
    guidance: float,
    generator: torch.Generator,
) -> Tensor:
    """DMD on the clip recomputed with gradient; rolled = (clip, exit inputs, exit sigma)."""
    clip, inputs, exit_sigma = rolled
    exit_BF = torch.full((clip.shape[0], clip.shape[2]), exit_sigma, device=clip.device)
    x0 = flow_to_x0(inputs, forcing_forward(student, clip, inputs, exit_BF, text).float(), exit_BF)
    sigma_BF = score_sigmas(clip.shape[0], generator).to(clip.device)[:, None].expand_as(exit_BF)
    noised = add_noise(x0.detach(), torch.randn(x0.shape, generator=generator).to(x0.device), sigma_BF)

    @torch.no_grad()
    def estimate(model: SaltTransformer3DModel, prompt: Tensor) -> Tensor:
        return flow_to_x0(noised, forcing_forward(model, clip, noised, sigma_BF, prompt).float(), sigma_BF)

    real = guided_x0(estimate(teacher, text), estimate(teacher, torch.zeros_like(text)), guidance)
    return dmd_loss(x0, dmd_gradient(x0.detach(), real, estimate(critic, text)))


def imitation_loss(
    student: SaltTransformer3DModel,
    teacher: SaltTransformer3DModel,
    rolled: tuple[Tensor, Tensor, float],
    text: Tensor,
    guidance: float,
) -> Tensor:
    """Guidance learned by heart: the student's flow against the guided teacher's, at inputs the student came to."""
    clip, inputs, exit_sigma = rolled
    exit_BF = torch.full((clip.shape[0], clip.shape[2]), exit_sigma, device=clip.device)
    with torch.no_grad():
        conditional, unconditional = (
            forcing_forward(teacher, clip, inputs, exit_BF, t).float() for t in (text, torch.zeros_like(text))
        )
    target = guided_x0(conditional, unconditional, guidance)  # flows mix as clips do
    return (forcing_forward(student, clip, inputs, exit_BF, text).float() - target).square().mean()


def critic_loss(critic: SaltTransformer3DModel, clip: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching on the student's own clips, each block behind its own past."""
    sigma_BF = score_sigmas(clip.shape[0], generator).to(clip.device)[:, None].expand(-1, clip.shape[2])
    noise = torch.randn(clip.shape, generator=generator).to(clip.device)
    flow = forcing_forward(critic, clip, add_noise(clip, noise, sigma_BF), sigma_BF, text)
    return critic_flow_loss(flow, clip, noise)


def _step(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    average_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def train_rollout(
    folder: Path,
    forced_folder: Path,
    settings: RolloutTraining = RolloutTraining(),
    seed: int = 4,
    device: str = "cpu",
) -> None:
    """Stage two, from stage one's result; needs prompts only, no clips.

    Leaves in `final/` the mean of two running averages of the weights: when imitation ended, and at the very end. The
    first holds shapes better, the second colour, direction and speed; their mean scored at least as well as either
    (48 prompts, seed 1000).
    """
    run = Run(folder)
    student, critic, teacher = (placed(SaltTransformer3DModel.from_pretrained(forced_folder), device) for _ in range(3))
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.lr, betas=(0.0, 0.999), weight_decay=0.01)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=settings.critic_lr, betas=(0.0, 0.999))
    ema = {name: value.detach().clone().float() for name, value in student.state_dict().items()}
    imitated = ema
    state, step = run.load(), 0
    if state is not None:
        student.load_state_dict(state["student"])
        critic.load_state_dict(state["critic"])
        optimizer.load_state_dict(state["optimizer"])
        critic_optimizer.load_state_dict(state["critic_optimizer"])
        ema, imitated, step = state["ema"], state["imitated"], state["step"]
    words = WordEmbedder()
    batch = max(settings.batch // world(), 1)
    losses: defaultdict[str, list[float]] = defaultdict(list)
    while step < settings.imitation + settings.steps:
        shared = seeded(seed, step)  # the same on all workers: step list and exit
        choice = int(torch.multinomial(torch.tensor([p for _, p in settings.steps_share]), 1, generator=shared))
        schedule = Schedule.of(settings.steps_share[choice][0])
        exit_index = int(torch.randint(schedule.nfe, (), generator=shared))
        own = seeded(seed + 1, step * world() + rank())
        text = words.encode([scene.caption for scene in random_scenes(batch, own)]).to(device)
        with torch.autocast(device, torch.bfloat16):
            imitates = step < settings.imitation
            noise_seed = (step * world() + rank()) * batch
            clip, inputs = rollout_to_exit(
                student, text, schedule, exit_index, noise_seed, settings.frames, not imitates
            )
        set_lr(critic_optimizer, settings.critic_lr)
        for _ in range(settings.critic_steps):
            with torch.autocast(device, torch.bfloat16):
                loss_critic = critic_loss(critic, clip, text, own)
            _step(critic_optimizer, critic, loss_critic)
            losses["critic"].append(loss_critic.item())
        rolled = (clip, inputs, schedule.sigmas[exit_index])
        set_lr(optimizer, settings.imitation_lr if imitates else settings.lr)
        with torch.autocast(device, torch.bfloat16):
            if imitates:
                loss = imitation_loss(student, teacher, rolled, text, settings.imitation_guidance)
            else:
                loss = generator_loss(student, teacher, critic, rolled, text, settings.guidance, own)
        _step(optimizer, student, loss)
        update_ema(ema, student, settings.ema)
        losses["imitation" if imitates else "generator"].append(loss.item())
        step += 1
        if step == settings.imitation:
            imitated = {name: value.clone() for name, value in ema.items()}
        last = step == settings.imitation + settings.steps
        if rank() == 0 and (step % 20 == 0 or last):
            run.log(step, **{name: sum(values) / len(values) for name, values in losses.items()})
            losses.clear()
        if rank() == 0 and (run.due() or last):
            run.save(
                student=student.state_dict(), critic=critic.state_dict(), optimizer=optimizer.state_dict(),
                critic_optimizer=critic_optimizer.state_dict(), ema=ema, imitated=imitated, step=step,
            )  # fmt: skip
    if rank() == 0:
        student.load_state_dict({name: (imitated[name] + ema[name]) / 2 for name in ema})
        student.save_pretrained(folder / "final")
