"""A recipe: everything a distillation run is, as plain settings that are read from YAML and checked before any weight.

Numbers that every recipe shares are the defaults here (Salt, arXiv 2604.03118, section 4 and its release); a YAML file
states only what makes it different.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from salt.memory import MemoryPolicy
from salt.schedule import Schedule

RECIPES = Path(__file__).parents[1] / "recipes"
Keep = Literal["input", "attention", "products"]


class RecipeError(ValueError):
    """A recipe that cannot run; the message is one line that names the key, what was found and what was expected."""


@dataclass(frozen=True)
class Models:
    """Checkpoints, in any layout `salt.checkpoints` reads. critic: by default the teacher where it has the student's
    size, else the student's own start. text: folder with text_encoder/ and tokenizer/, or `words` for the Shapes world.
    weights: which of the student's file. vae: diffusers folder of Wan's autoencoder, which samples are decoded with.
    lora_rank: 0 trains the whole student.
    offload: the teacher waits on the CPU between uses (the text encoder always does).
    checkpointing: backward recomputes transformer blocks. keep: what it finds of them nevertheless: their `input`, what
    self-`attention` made as well, or that and what linear layers made, their `products`; compiled blocks always the
    first."""

    student: str = ""
    teacher: str = ""
    critic: str = ""
    weights: Literal["auto", "ema", "regular"] = "auto"
    text: str = "words"
    vae: str = ""
    lora_rank: int = 0
    offload: bool = False
    checkpointing: bool = True
    keep: Keep = "attention"


@dataclass(frozen=True)
class Data:
    """prompts: a text file, one per line, or `shapes`. embeddings: folder made by `python -m train precompute`.

    images: folder with one start image per prompt line, for I2V (its name is the line's number, from 0).
    clips: folder of clips for the stages `ode` and `tf`, each with its prompt (`train.data.clip_dataset`).
    negative: the teacher's negative prompt.
    """

    prompts: str = "shapes"
    embeddings: str = ""
    images: str = ""
    clips: str = ""
    negative: str = ""


@dataclass(frozen=True)
class Rollouts:
    """How the student makes the clips it is trained on.

    kind: `autoregressive` in blocks against its own memory, or `bidirectional`, the whole clip at once.
    frames, height, width: of the clip, in latent units. window: latent frames at the end that carry loss and gradient
    (0: all of them); a clip longer than the window is what LongLive calls streaming long tuning.
    share: how often each step count is drawn. shift: of the student's and the score's schedules.
    """

    kind: Literal["autoregressive", "bidirectional"] = "autoregressive"
    frames: int = 21
    height: int = 60
    width: int = 104
    window: int = 0
    frames_per_block: int = 3
    independent_first_frame: bool = False
    memory: str = "full"
    share: Mapping[int, float] = field(default_factory=lambda: {4: 1.0})
    shift: float = 5.0


@dataclass(frozen=True)
class Losses:
    """Weights and choices of the generator's loss. 0 switches a term off.

    guidance: the teacher's, cond + g (cond - uncond); guidance_max above it draws g evenly between the two.
    score: `bidirectional` real and fake scores, or `causal` ones under the student's block-causal mask (Salt++).
    semigroup*: L_SC, only on 8-step rollouts. semigroup_operator: the Euler step of the paper, or the re-noising
    operator that the sampler really uses. align*: feature alignment, `paper` 2 -> 4 and 4 -> 8, `release` 2 -> 4 where
    the exit is not the first step; after `align_start` generator updates, on teacher block `align_block`.
    noise_aligned: the reference re-noises with the student's noise at shared steps, and takes Euler steps between.
    """

    guidance: float = 3.0
    guidance_max: float = 0.0
    score: Literal["bidirectional", "causal"] = "bidirectional"
    semigroup: float = 0.0
    semigroup_time_weight: bool = True
    semigroup_stop_gradient: bool = True
    semigroup_operator: Literal["euler", "sampler"] = "euler"
    align: Literal["none", "paper", "release"] = "none"
    align_weight: float = 0.1
    align_start: int = 200
    align_block: int = 20
    align_distance: Literal["trd", "mmd", "rbf"] = "trd"
    align_margin: float = 0.1
    noise_aligned: bool = True


@dataclass(frozen=True)
class Starting:
    """The stages that make a student for distillation to begin with.

    teacher: `bidirectional`, whose trajectories the student follows past blocks as noisy as its own (CausVid, Self
    Forcing), or `causal`, a teacher-forced one that goes block by block, past clean blocks (Causal Forcing).
    teacher_steps: Euler steps of a trajectory. guidance: on it, cond + g (cond - uncond). clips: how many of them
    `precompute` makes. history_noise: largest noise level mixed into the clean past of a teacher-forced clip.
    prompt_dropout: share of clips under the negative prompt, which is what guidance needs.
    """

    teacher: Literal["bidirectional", "causal"] = "bidirectional"
    teacher_steps: int = 48
    guidance: float = 5.0
    clips: int = 1000
    history_noise: float = 0.0
    prompt_dropout: float = 0.0


@dataclass(frozen=True)
class Optimisation:
    """batch: clips per update over all processes. micro_batch: clips per forward in one process. updates: of the
    student, in distillation each after `critic_per_generator` critic updates. ema_start counts student updates.
    compile: transformer blocks go through `torch.compile`, which takes minutes at the start of a run."""

    batch: int = 64
    micro_batch: int = 1
    updates: int = 1000
    critic_per_generator: int = 5
    lr: float = 2e-6
    critic_lr: float = 4e-7
    warmup: int = 0
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    clip: float = 10.0
    ema: float = 0.99
    ema_start: int = 200
    optimizer: Literal["adamw", "fused", "8bit"] = "adamw"
    precision: Literal["no", "bf16"] = "bf16"
    compile: bool = False


@dataclass(frozen=True)
class RunSettings:
    """out: the run folder, runs/NAME where a recipe file states none. keep: complete checkpoints kept.

    *_every: in student updates, 0 is never. sample_prompts: rows of the grid, the first prompts of the list, with
    fixed noise; its columns are the step counts of sample_steps.
    tracker: through accelerate; `none` writes only losses.csv and the plot. diverged: stop when the generator's
    gradient norm passes this many times its running median."""

    out: str = ""
    seed: int = 0
    save_every: int = 50
    keep: int = 2
    sample_every: int = 0
    sample_prompts: int = 4
    sample_steps: tuple[int, int] = (4, 2)
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    diverged: float = 100.0


@dataclass(frozen=True)
class Recipe:
    """The whole of it. `name` becomes the exported student's.

    stage: `distill` (DMD, SC-DMD and the rest), or what comes before it: `ode`, regression on a teacher's
    trajectories, and `tf`, teacher-forced flow matching."""

    name: str = "student"
    stage: Literal["distill", "ode", "tf"] = "distill"
    models: Models = field(default_factory=Models)
    data: Data = field(default_factory=Data)
    rollout: Rollouts = field(default_factory=Rollouts)
    loss: Losses = field(default_factory=Losses)
    start: Starting = field(default_factory=Starting)
    optimisation: Optimisation = field(default_factory=Optimisation)
    run: RunSettings = field(default_factory=RunSettings)

    @property
    def policy(self) -> MemoryPolicy:
        return MemoryPolicy.parse(self.rollout.memory)

    @property
    def keep(self) -> Keep:
        """What checkpointing keeps: while torch picks among operations it runs nothing compiled, so then the input."""
        return "input" if self.optimisation.compile else self.models.keep

    def schedule(self, nfe: int) -> Schedule:
        return Schedule.of(nfe, self.rollout.shift)

    def to_dict(self) -> dict:
        return asdict(self)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file (or the name of one of ours) and apply `key=value` overrides (`optimisation.lr=1e-5`).

    A file may name a `base`, a recipe beside it or one of ours, whose keys hold where it states none of its own.
    `name` is the file's by default, `run.out` then runs/NAME.
    Raises RecipeError for an unknown key (with the nearest known one), a value of the wrong type, YAML that is none.
    """
    path = find_recipe(Path(path))
    values = _read(path)
    values.setdefault("name", path.stem)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise RecipeError(f"{override!r}: expected key=value, for example optimisation.lr=1e-5")
        section, dot, last = key.partition(".")
        if not dot:
            values[key] = _value_of(text, override)
        elif isinstance(values.setdefault(section, {}), dict):
            values[section][last] = _value_of(text, override)
    recipe = _build(Recipe, values, str(path))
    return recipe if recipe.run.out else replace(recipe, run=replace(recipe.run, out=f"runs/{recipe.name}"))


def find_recipe(path: Path) -> Path:
    """A recipe's file, by path or by the name of one of ours. Raises RecipeError where there is none."""
    if not path.exists() and (RECIPES / f"{path.name.removesuffix('.yaml')}.yaml").exists():
        path = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise RecipeError(f"{path}: found no such recipe, expected a YAML file or one of: {known}")
    return path


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Keys and values of a file, those of its base below them. A value, a mapping too, is replaced as a whole."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: found {type(values).__name__}, expected keys and values")
    named = values.pop("base", None)
    if named is None:
        return values
    read = {p.resolve() for p in (path, *above)}
    candidates = (folder / f"{named}.yaml" for folder in (path.parent, RECIPES))
    base = next((p for p in candidates if p.is_file() and p.resolve() not in read), None)
    if base is None:
        raise RecipeError(
            f"{path}: base: found {named!r}, expected the name of another recipe, beside it or one of ours"
        )
    merged = _read(base, (path, *above))
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _value_of(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: is no YAML ({' '.join(str(error).split())})") from error


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A settings dataclass from a mapping, every key and type checked."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
            raise RecipeError(f"{where}: unknown key {key!r}, {hint}")
        arguments[key] = _value(hints[key], value, f"{where}: {key}")
    return kind(**arguments)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: found {value!r}, expected a section of keys and values")
        return _build(typing.cast(type, hint), value, where)
    if origin is Literal:
        value = "no" if value is False and "no" in parts else value  # which is what YAML makes of a bare no
        if value not in parts:
            raise RecipeError(f"{where}: found {value!r}, expected one of {', '.join(map(str, parts))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(parts):
            raise RecipeError(f"{where}: found {value!r}, expected {len(parts)} values")
        return tuple(_value(p, v, where) for p, v in zip(parts, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return _share(value, where)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5 as text
        except ValueError:
            raise RecipeError(f"{where}: found {value!r}, expected a number") from None
    if hint is str and value is None:
        return ""  # key= on the command line, an empty value in a file
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(f"{where}: found {value!r}, expected {hint.__name__}")
    return value


def _share(value: Any, where: str) -> dict[int, float]:
    if not isinstance(value, Mapping) or not value:
        raise RecipeError(
            f"{where}: found {value!r}, expected step counts with their probabilities, as {{8: 0.5, 4: 0.5}}"
        )
    return {_value(int, k, where): _value(float, v, where) for k, v in value.items()}
