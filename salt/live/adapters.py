"""LoRA adapters of a live session: those that are loaded, and the strengths that blocks are made with. Plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..errors import InputError
from ..io.fields import Between, shown

MAX_LORAS = 32
MAX_STRENGTH = 100.0
LORA_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True)
class LoraStrength:
    """A LoRA by the name that it was loaded under, added `strength` times; 0 leaves it out."""

    name: str
    strength: Annotated[float, Between(-MAX_STRENGTH, MAX_STRENGTH)] = 1.0
    refuses_unknown: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not LORA_NAME.fullmatch(self.name):
            raise InputError("name", f"found {shown(self.name)}, expected up to 40 letters, digits, - and _")
        if not -MAX_STRENGTH <= self.strength <= MAX_STRENGTH:
            raise InputError(
                "strength", f"found {self.strength:g} for {self.name}, expected -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
            )


def check_strengths(field: str, loras: Sequence[LoraStrength]) -> None:
    """Raise InputError about `field` for more LoRAs than a session takes, and for one that is named twice."""
    if len(loras) > MAX_LORAS:
        raise InputError(field, f"found {len(loras)}, expected at most {MAX_LORAS}")
    names = [lora.name for lora in loras]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(field, f"found {twice} twice, expected one strength for each LoRA")


def acting(loras: Iterable[LoraStrength]) -> tuple[LoraStrength, ...]:
    """Those that are not 0, by name: the order in which a layer adds them decides the last bit."""
    return tuple(sorted((lora for lora in loras if lora.strength), key=lambda lora: lora.name))


def check_loaded(loaded: Sequence[LoraStrength], loras: Iterable[LoraStrength], field: str = "adapters") -> None:
    """Raise InputError about `field` for a LoRA that is not among the loaded ones."""
    known = [lora.name for lora in loaded]
    if unknown := next((lora.name for lora in loras if lora.name not in known), None):
        expected = f"expected {', '.join(known)}" if known else "and no LoRA is loaded whose strength can be changed"
        raise InputError(field, f"found {unknown}, {expected}")


def all_strengths(loaded: Iterable[LoraStrength], loras: Iterable[LoraStrength]) -> tuple[LoraStrength, ...]:
    """Every loaded LoRA with its strength among `loras`, 0 where it is not there."""
    strengths = {lora.name: lora.strength for lora in loras}
    return tuple(LoraStrength(lora.name, strengths.get(lora.name, 0.0)) for lora in loaded)
