"""Controls of a live session: what a viewer may ask for, checked when it is made, and read from JSON.

A control is a frozen dataclass. `kind` is its name in JSON; of several controls of one kind that arrive before the next
block the latest is used. Those that are `immediate` act at once, also while the session is paused; the others wait for
the next block that is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, ClassVar, Literal

from ..block_plan import MAX_GUIDANCE
from ..conditioning import SWITCHES, Switch
from ..errors import InputError
from ..io.fields import Between, FieldError, check_known, read_fields, shown
from ..memory import MemoryPolicy
from ..video_in.strength import check_strength
from .adapters import LoraStrength, check_strengths

MAX_PROMPT_LENGTH = 4000  # characters
MAX_PROMPTS = 8
MAX_BLEND_BLOCKS = 64
MAX_NAME_LENGTH = 80
MAX_SECONDS = 10.0**6
MAX_SEED = 2**63 - 1
LIVE_NFE = (1, 2, 4, 8)
BlendMethod = Literal["linear", "slerp"]
Pacing = Literal["realtime", "free"]


def check_prompt_length(field: str, text: str) -> None:
    """Raise InputError about `field` for a prompt that is too long."""
    if len(text) > MAX_PROMPT_LENGTH:
        raise InputError(field, f"found {len(text):,} characters, expected at most {MAX_PROMPT_LENGTH:,}")


@dataclass(frozen=True)
class WeightedPrompt:
    """A prompt and its weight among the others; weights are divided by their sum."""

    text: str
    weight: float = 1.0
    refuses_unknown: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_prompt_length("text", self.text)
        if not 0 < self.weight <= 1000:
            raise InputError("weight", f"found {self.weight:g}, expected above 0, at most 1000")


@dataclass(frozen=True)
class Blend:
    """How a prompt follows the one before: `blocks` blocks lie in between, and the next one has the pure prompt."""

    blocks: Annotated[int, Between(0, MAX_BLEND_BLOCKS)] = 0
    method: BlendMethod = "linear"
    refuses_unknown: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.blocks <= MAX_BLEND_BLOCKS:
            raise InputError("blocks", f"found {self.blocks}, expected 0 to {MAX_BLEND_BLOCKS}")
        if self.method not in ("linear", "slerp"):
            raise InputError("method", f"found {self.method!r}, expected linear or slerp")


@dataclass(frozen=True)
class Control:
    """What every control has in common."""

    kind: ClassVar[str] = ""
    immediate: ClassVar[bool] = True


@dataclass(frozen=True)
class Prompt(Control):
    """Another prompt, or several with weights. switch, keep_sink: of the memory, as in `salt.PromptChange`."""

    prompts: tuple[WeightedPrompt, ...]
    switch: Switch = "keep"
    keep_sink: bool = False
    blend: Blend = Blend()
    kind: ClassVar[str] = "prompt"
    immediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.prompts) <= MAX_PROMPTS:
            raise InputError("prompts", f"found {len(self.prompts)}, expected 1 to {MAX_PROMPTS}")
        if self.switch not in SWITCHES:
            raise InputError("switch", f"found {self.switch!r}, expected one of {', '.join(SWITCHES)}")
        if self.keep_sink and self.switch != "recache":
            raise InputError("keep_sink", f"has no effect with the switch {self.switch}, only with recache")

    @classmethod
    def of(cls, text: str, switch: Switch = "keep", blocks: int = 0, method: BlendMethod = "linear") -> Prompt:
        """One prompt, as text."""
        return cls((WeightedPrompt(text),), switch, blend=Blend(blocks, method))


@dataclass(frozen=True)
class Seed(Control):
    """Seed of the blocks to come."""

    seed: int
    kind: ClassVar[str] = "seed"
    immediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError("seed", f"found {shown(self.seed)}, expected 0 to {MAX_SEED}")


@dataclass(frozen=True)
class Nfe(Control):
    """Model evaluations per block: 1, 2, 4 or 8."""

    nfe: int
    kind: ClassVar[str] = "nfe"
    immediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.nfe not in LIVE_NFE:
            raise InputError("nfe", f"found {shown(self.nfe)}, expected 1, 2, 4 or 8")


@dataclass(frozen=True)
class Guidance(Control):
    """Scale of classifier-free guidance, 1 for none."""

    guidance: float
    kind: ClassVar[str] = "guidance"
    immediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise InputError("guidance", f"found {self.guidance:g}, expected 0 to {MAX_GUIDANCE:g}, 1 for none")


@dataclass(frozen=True)
class Strength(Control):
    """How far pictures of a camera or a file may be changed, 0 to 1 (see `salt.video_in.strength`)."""

    strength: float
    kind: ClassVar[str] = "strength"
    immediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_strength(self.strength)


@dataclass(frozen=True)
class Policy(Control):
    """Another memory policy, as text (`sink:3,window:12`): the latents in its window are encoded again."""

    policy: str
    kind: ClassVar[str] = "policy"
    immediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.policy) > MAX_NAME_LENGTH:
            raise InputError("policy", f"found {len(self.policy):,} characters, expected at most {MAX_NAME_LENGTH}")
        MemoryPolicy.parse(self.policy)


@dataclass(frozen=True)
class Loras(Control):
    """The loaded LoRAs that act from the next block on, with their strengths; the others are off.

    recache: the latents in the memory's window are encoded again with them.
    """

    adapters: tuple[LoraStrength, ...]
    recache: bool = False
    kind: ClassVar[str] = "lora"
    immediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_strengths("adapters", self.adapters)


@dataclass(frozen=True)
class Bookmark(Control):
    """Remember the current end of the branch under a name."""

    name: str = ""
    kind: ClassVar[str] = "bookmark"

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_LENGTH:
            raise InputError("name", f"found {len(self.name):,} characters, expected at most {MAX_NAME_LENGTH}")


@dataclass(frozen=True)
class Rewind(Control):
    """Go on from `seconds` of the branch, rounded down to a block's start. What came later is dropped."""

    seconds: float
    kind: ClassVar[str] = "rewind"

    def __post_init__(self) -> None:
        _check_seconds(self.seconds)


@dataclass(frozen=True)
class Fork(Control):
    """Go on from `seconds` of the branch as a new branch; this one stays as it is."""

    seconds: float
    kind: ClassVar[str] = "fork"

    def __post_init__(self) -> None:
        _check_seconds(self.seconds)


@dataclass(frozen=True)
class Goto(Control):
    """Go on at a bookmark (as a new branch, unless it is at a branch's end), or at the end of a branch.

    seconds: go on from there on that branch, as `Rewind` does.
    """

    bookmark: int | None = None
    branch: int | None = None
    seconds: float | None = None
    kind: ClassVar[str] = "goto"

    def __post_init__(self) -> None:
        if (self.bookmark is None) == (self.branch is None):
            raise InputError("goto", "needs a bookmark or a branch")
        if self.seconds is not None:
            if self.branch is None:
                raise InputError("seconds", "has no effect with a bookmark, only with a branch")
            _check_seconds(self.seconds)


@dataclass(frozen=True)
class Pause(Control):
    """Make no further block."""

    kind: ClassVar[str] = "pause"


@dataclass(frozen=True)
class Resume(Control):
    """Make blocks again."""

    kind: ClassVar[str] = "resume"


@dataclass(frozen=True)
class Step(Control):
    """Make one block, then pause."""

    kind: ClassVar[str] = "step"


@dataclass(frozen=True)
class Stop(Control):
    """End the session. What was made is kept."""

    kind: ClassVar[str] = "stop"


@dataclass(frozen=True)
class Pace(Control):
    """`realtime`: a bounded lead over the fastest viewer. `free`: as fast as blocks can be made."""

    pace: Pacing
    kind: ClassVar[str] = "pace"

    def __post_init__(self) -> None:
        if self.pace not in ("realtime", "free"):
            raise InputError("pace", f"found {shown(self.pace)}, expected realtime or free")


CONTROLS: dict[str, type[Control]] = {
    control.kind: control
    for control in (
        *(Prompt, Seed, Nfe, Guidance, Strength, Policy, Loras, Bookmark, Rewind, Fork, Goto),
        *(Pause, Resume, Step, Stop, Pace),
    )
}


def read_control(values: object) -> Control:
    """A control from a JSON object with its name in `control`. Raises InputError about the field that is wrong."""
    values = values if isinstance(values, Mapping) else {}
    name = values.get("control")
    kind = CONTROLS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError("control", f"found {shown(name)}, expected one of {', '.join(CONTROLS)}")
    for each in fields(kind):
        if each.default is MISSING and each.name not in values:
            raise InputError(each.name, f"is missing from the control {name}")
    values = {key: value for key, value in values.items() if key != "control"}
    try:
        check_known(kind.kind, values, {each.name for each in fields(kind)})
        return read_fields(kind, values)
    except FieldError as error:
        field, _, problem = str(error).partition(": ")
        inner, colon, rest = problem.partition(": ")  # of what the class itself refuses
        raise InputError(inner, rest) if colon and " " not in inner else InputError(field, problem) from None


def control_values(control: Control) -> dict[str, object]:
    """The JSON object that `read_control` reads."""
    return {"control": control.kind, **asdict(control)}


def _check_seconds(seconds: float) -> None:
    if not 0 <= seconds <= MAX_SECONDS:
        raise InputError("seconds", f"found {seconds:g}, expected 0 to {MAX_SECONDS:g}")
