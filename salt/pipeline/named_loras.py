"""LoRAs under names, which a pipeline keeps apart from its weights: their strengths can be changed while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.lora_merge import LoraFile
from ..errors import InputError
from ..live.adapters import LORA_NAME
from .lora import set_strengths

if TYPE_CHECKING:
    from .pipeline import SaltPipeline


@dataclass(frozen=True)
class NamedLora:
    """A LoRA file under a name, with the strength that it begins with; at 0 it is loaded, and does not act."""

    name: str
    path: str
    strength: float

    @classmethod
    def parse(cls, text: str) -> NamedLora | None:
        """`NAME=FILE` or `NAME=FILE:STRENGTH`; None for text without a name, and for a file whose own name has a `=`.

        Raises InputError for a name that is none, and a strength that is no number.
        """
        name, sign, rest = text.partition("=")
        before, colon, _ = text.rpartition(":")
        if not sign or Path(text).exists() or (colon and Path(before).exists()):
            return None
        if not LORA_NAME.fullmatch(name):
            raise InputError("lora", f"found the name {name[:60]!r}, expected up to 40 letters, digits, - and _")
        path, colon, strength = rest.rpartition(":")
        if colon and not Path(rest).exists() and strength.strip() in ("0", "0.0"):
            return cls(name, path, 0.0)
        file = LoraFile.parse(rest)
        return cls(name, str(file.path), file.strength)


def load_named(pipe: SaltPipeline, loras: Sequence[NamedLora]) -> None:
    """Load LoRAs beside the weights. Raises InputError for a name that is given twice, and errors of `read_lora`."""
    names = [lora.name for lora in loras]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("lora", f"found the name {twice} twice, expected another one for each file")
    for lora in loras:
        pipe.load_lora_weights(lora.path, adapter_name=lora.name)
    if loras:
        set_strengths(pipe.transformer, {lora.name: lora.strength for lora in loras})
