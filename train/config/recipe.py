"""Recipe: all settings of a training run, as frozen dataclasses.

The defaults are the numbers that every recipe shares (Salt, arXiv 2604.03118, section 4, and its release); a YAML file
in `train/recipes` states only what differs. Reading files and overrides: `train.config.loader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from salt.errors import InputError
from salt.io.fields import Between
from salt.memory import MemoryPolicy
from salt.schedule import Schedule, StepRule, step_list

SavedActivations = Literal["input", "attention", "products"]
# Ranges, which `train.config.loader` checks.
Count = Annotated[int, Between(1, 10**9)]
CountOrNone = Annotated[int, Between(0, 10**9)]  # 0: none
Share = Annotated[float, Between(0, 1)]
Weight = Annotated[float, Between(0, 1000)]  # of a loss
Guidance = Annotated[float, Between(0, 100)]
LearningRate = Annotated[float, Between(0, 1)]
Decay = Annotated[float, Between(0, 0.999999)]
StepCount = Annotated[int, Between(1, 1000)]


class RecipeError(InputError):
    """A recipe that cannot be run, said in one line.

    field: the key that is wrong (`optimisation.lr`). file: the recipe's file, named in front of the sentence where the
    error was found while reading it.
    """

    def __init__(self, field: str, problem: str, value: object = None, *, file: Path | None = None) -> None:
        self.file = file
        super().__init__(field, problem, value)

    def phrased(self, name: str) -> str:
        sentence = super().phrased(name)
        return sentence if self.file is None else f"{self.file}: {sentence}"


@dataclass(frozen=True)
class Models:
    """Checkpoints, in any layout that `salt.checkpoints` reads, and how the models are trained.

    critic: by default the teacher where it has the student's size, else the student's own checkpoint.
    text: folder with text_encoder/ and tokenizer/, or `words` for the Shapes world.
    weights: which weights of the student's file. vae: diffusers folder of Wan's autoencoder, which decodes samples.
    lora_rank: above 0, the student's only trainable part is a LoRA adapter. lora_alpha: its alpha, 0 for the rank.
    lora_critic: the critic's is one too.
    offload: the teacher is kept on the CPU between uses (the text encoder always is).
    checkpointing: backward recomputes transformer blocks. keep: what is saved of a block for backward all the same: its
    `input` alone; the output of self-`attention` too; or that and the `products` of its linear layers. Compiled blocks
    always save their input alone.
    """

    student: str = ""
    teacher: str = ""
    critic: str = ""
    weights: Literal["auto", "ema", "regular"] = "auto"
    text: str = "words"
    vae: str = ""
    lora_rank: CountOrNone = 0
    lora_alpha: CountOrNone = 0
    lora_critic: bool = False
    offload: bool = False
    checkpointing: bool = True
    keep: SavedActivations = "attention"


@dataclass(frozen=True)
class Data:
    """Prompts and precomputed data.

    prompts: a text file, one prompt per line, or `shapes`. embeddings: folder of prompt embeddings.
    images: folder with one start image per prompt line, for I2V (file names are line numbers, from 0). A text-to-video
    student's clips begin with its latent, clean, which is a block of its own in the memory; the scores see it noised
    like the rest of the clip (Self Forcing, `i2v: true`). `rollout.gives_first_frame` is the other way.
    clips: folder of clips for the stages `ode`, `cd` and `tf` and for `loss.adversarial`, each with its prompt
    (`train.data.clip_dataset`).
    history: folder of clean clips, such as a recipe of the stage `tf` trains on: the past of the blocks of a causal
    teacher's trajectories.
    negative: the teacher's negative prompt.
    `python -m train precompute` fills the folders.
    """

    prompts: str = "shapes"
    embeddings: str = ""
    images: str = ""
    clips: str = ""
    history: str = ""
    negative: str = ""


@dataclass(frozen=True)
class Rollouts:
    """How the student generates the clips that it is trained on.

    kind: `autoregressive` in blocks against its own KV memory, or `bidirectional`, the whole clip at once.
    frames, height, width: of the clip, in latent units. window: latent frames that carry loss and gradient (0: all).
    long_tuning: how a clip longer than the window is trained on. `chunks`, the release's: updates of critic and student
    continue the clip, each by a chunk of `window` frames with an exit of its own; up to `overlap` of them are the chunk
    before's, without loss. `end`: every update rolls the whole clip out, with loss on its last `window` frames.
    `window`: so, on `window` frames at a random place, without the first block of them where they begin within the
    clip, behind a past that took all its steps.
    memory: the memory policy, as `salt.memory.MemoryPolicy.parse` reads it.
    gives_first_frame: the picture of `data.images` is the first frame of the first block, and stays clean, at timestep
    0, in rollouts and scores (Wan 2.2 TI2V), in place of a block of its own.
    share: probability of each step count. shift: of the student's and the score's schedules. stepping: between steps,
    fresh noise (`sde`), or LongLive 2.0's noise levels and solver (`unipc`). first_steps: step count of a clip's first
    block, which has an exit of its own (Causal Forcing++; 0: as the others).
    """

    kind: Literal["autoregressive", "bidirectional"] = "autoregressive"
    frames: Count = 21
    height: Count = 60
    width: Count = 104
    window: CountOrNone = 0
    long_tuning: Literal["chunks", "end", "window"] = "chunks"
    overlap: CountOrNone = 3  # LongLive, configs/longlive_train_long.yaml: chunks of 21 with at least 18 new frames
    frames_per_block: Count = 3
    independent_first_frame: bool = False
    gives_first_frame: bool = False
    memory: str = "full"
    share: Mapping[int, Share] = field(default_factory=lambda: {4: 1.0})
    shift: Annotated[float, Between(0.01, 100)] = 5.0
    stepping: Literal["sde", "unipc"] = "sde"
    first_steps: CountOrNone = 0

    @property
    def rule(self) -> StepRule:
        """Which noise levels the steps have."""
        return "longlive2" if self.stepping == "unipc" else "wan"


@dataclass(frozen=True)
class Losses:
    """Terms of the generator's loss. A weight of 0 switches a term off.

    guidance: the teacher's, cond + g (cond - uncond); with guidance_max above it, g is drawn uniformly between the two.
    score: `bidirectional` real and fake scores, or `causal` ones under the student's block-causal mask: each block sees
    clean blocks before it (Salt++), or in `causal_noisy` those that are as noisy as itself (LongLive 2.0).
    score_step_for: whether their noise level is drawn for every `block`, or for the `clip`. scale_for: DMD's gradient
    is divided by its distance from the teacher's estimate, the mean over a `clip`, or each `block` by its own.
    semigroup: weight of L_SC, computed for 8-step rollouts only. semigroup_operator: the paper's Euler step, or the
    re-noising step of the `sampler`.
    align: feature alignment, `paper` 2 -> 4 and 4 -> 8 steps, `release` 2 -> 4 where the exit is not the first step;
    from generator update `align_start` on, on the teacher's transformer block `align_block` (0-based).
    adversarial: a discriminator compares the student's clips with those of `data.clips`, for whose captions the student
    generates; its gradient in a clip has this many times the norm of DMD's, from update `adversarial_start` on.
    reward: weighs the clips of the DMD loss by exp(reward_beta reward) (Re-DMD), `module:function` of `train/rewards`.
    noise_aligned: the reference re-noises with the student's noise at shared steps and takes Euler steps between them.
    """

    guidance: Guidance = 3.0
    guidance_max: Guidance = 0.0
    score: Literal["bidirectional", "causal", "causal_noisy"] = "bidirectional"
    score_step_for: Literal["clip", "block"] = "clip"
    scale_for: Literal["clip", "block"] = "clip"
    adversarial: Weight = 0.0
    adversarial_start: CountOrNone = 100
    reward: str = ""
    reward_beta: Weight = 2.0  # Reward Forcing, configs/reward_forcing.yaml
    semigroup: Weight = 0.0
    semigroup_time_weight: bool = True
    semigroup_stop_gradient: bool = True
    semigroup_operator: Literal["euler", "sampler"] = "euler"
    align: Literal["none", "paper", "release"] = "none"
    align_weight: Weight = 0.1
    align_start: CountOrNone = 200  # released for Self Forcing: 1000 trainer steps
    align_block: CountOrNone = 20
    align_distance: Literal["trd", "mmd", "rbf"] = "trd"
    align_margin: Weight = 0.1
    noise_aligned: bool = True


@dataclass(frozen=True)
class InitialStages:
    """The stages `ode`, `cd` and `tf`, which train the initial student of distillation.

    teacher: `bidirectional`, where every block sees past blocks as noisy as itself (CausVid, Self Forcing), or
    `causal`, a teacher-forced model that generates block by block behind clean blocks (Causal Forcing).
    history: the past of a causal teacher's blocks, `real` clean clips (the release's), or its own `rollout`.
    step_for: whether the step of a trajectory that is learned is drawn for every `block` (Self Forcing's release), or
    one for the whole `clip` (Causal Forcing's, in `cd` too).
    teacher_steps: Euler steps of a trajectory; `cd` takes one of them at a time. guidance: on it, cond + g (cond -
    uncond). clips: how many trajectories `precompute` generates. history_noise: largest noise level mixed into the
    clean past of a teacher-forced clip. prompt_dropout: share of clips trained under the negative prompt, for guidance.
    timestep_weight: of a teacher-forced block's loss, the release's `bell` over its noise level, or `none`.
    first_frame: of a teacher-forced clip, `learned` like the others, or `given`, clean and without loss.
    """

    teacher: Literal["bidirectional", "causal"] = "bidirectional"
    history: Literal["real", "rollout"] = "real"
    step_for: Literal["block", "clip"] = "block"
    teacher_steps: Count = 48
    guidance: Guidance = 5.0
    clips: Count = 1000
    history_noise: Share = 0.0
    prompt_dropout: Share = 0.0
    timestep_weight: Literal["bell", "none"] = "bell"
    first_frame: Literal["learned", "given"] = "learned"


@dataclass(frozen=True)
class Optimisation:
    """Batch, optimizers, weight average and precision.

    batch: clips per update over all processes. micro_batch: clips per forward in one process. updates: of the student;
    in distillation each follows `critic_per_generator` critic updates. ema_start: the update that the average begins
    with. Both count student updates; the release counts trainer steps, `critic_per_generator` to one of them.
    schedule: of both learning rates after `warmup` updates, `constant`, or a `cosine` that ends at `final_lr` of them.
    shard: with `--mode fsdp`, how many processes share one copy of the weights (0: all of them); the copies, of which
    each is usually a node's, add up their gradients (HSDP).
    sequence: how many processes compute a clip together (0: one). In all models each has a part of the tokens, and in
    self-attention a part of the heads, whose number it divides; of N processes, N / sequence have clips of their own.
    compile: transformer blocks go through `torch.compile`, which takes minutes at the start of a run.
    """

    batch: Count = 64
    micro_batch: Count = 1
    updates: Count = 1000
    critic_per_generator: Count = 5
    lr: LearningRate = 2e-6
    critic_lr: LearningRate = 4e-7
    discriminator_lr: LearningRate = 2e-6
    warmup: CountOrNone = 0
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: Share = 0.0
    betas: tuple[Decay, Decay] = (0.0, 0.999)
    weight_decay: Annotated[float, Between(0, 10)] = 0.01
    clip: Annotated[float, Between(0, 1e9)] = 10.0
    ema: Share = 0.99
    ema_start: CountOrNone = 40  # released: 200 of a counter that counts critic updates too
    optimizer: Literal["adamw", "fused", "8bit"] = "adamw"
    precision: Literal["no", "bf16"] = "bf16"
    shard: CountOrNone = 0
    sequence: CountOrNone = 0
    compile: bool = False


@dataclass(frozen=True)
class RunSettings:
    """Output folder, seed, checkpoints, samples and logging.

    out: the run's folder, runs/NAME by default. keep: number of complete checkpoints kept.
    save_every, sample_every: in student updates, 0 is never. sample_prompts: rows of the sample grid, the first prompts
    of the list with fixed noise; its columns are the step counts of sample_steps.
    tracker: through accelerate; `none` writes losses.csv and the plot only. diverged: the run stops where the
    generator's gradient norm exceeds this many times its running median.
    """

    out: str = ""
    seed: Annotated[int, Between(0, 2**63 - 1)] = 0
    save_every: CountOrNone = 50
    keep: Count = 2
    sample_every: CountOrNone = 0
    sample_prompts: Count = 4
    sample_steps: tuple[StepCount, StepCount] = (4, 2)
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    diverged: Annotated[float, Between(1, 1e9)] = 100.0


@dataclass(frozen=True)
class Recipe:
    """All settings of a run. `name` becomes the exported student's.

    stage: `distill` (DMD, SC-DMD and alignment), or a stage before it: `ode`, regression on a teacher's trajectories,
    `cd`, consistency distillation from a causal teacher, or `tf`, teacher-forced flow matching.
    """

    name: str = "student"
    stage: Literal["distill", "ode", "cd", "tf"] = "distill"
    models: Models = field(default_factory=Models)
    data: Data = field(default_factory=Data)
    rollout: Rollouts = field(default_factory=Rollouts)
    loss: Losses = field(default_factory=Losses)
    start: InitialStages = field(default_factory=InitialStages)
    optimisation: Optimisation = field(default_factory=Optimisation)
    run: RunSettings = field(default_factory=RunSettings)

    @property
    def policy(self) -> MemoryPolicy:
        return MemoryPolicy.parse(self.rollout.memory)

    @property
    def saved_activations(self) -> SavedActivations:
        """What checkpointing saves of a block; `input` for compiled blocks, as selective checkpointing runs eagerly."""
        return "input" if self.optimisation.compile else self.models.keep

    @property
    def streams(self) -> bool:
        """Whether clips are streams that updates continue, chunk by chunk."""
        r = self.rollout
        return self.stage == "distill" and 0 < r.window < r.frames and r.long_tuning == "chunks"

    @property
    def has_history(self) -> bool:
        """Whether the trajectories of the stage `ode` lie behind clean clips, which are stored beside them."""
        return self.stage == "ode" and self.start.teacher == "causal" and self.start.history == "real"

    @property
    def reads_clips(self) -> bool:
        """Whether the run reads clips, whose captions are its prompts."""
        return self.stage != "distill" or self.loss.adversarial > 0

    @property
    def windows(self) -> bool:
        """Whether clips are random windows of longer ones."""
        r = self.rollout
        return self.stage == "distill" and 0 < r.window < r.frames and r.long_tuning == "window"

    def schedule(self, nfe: int) -> Schedule:
        r = self.rollout
        return Schedule(step_list(nfe, r.rule), r.shift, r.rule, step_list(r.first_steps) if r.first_steps else ())

    def to_dict(self) -> dict[str, object]:
        return asdict(self)
