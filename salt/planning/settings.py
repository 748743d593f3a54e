"""The settings that a memory plan is about, and those of the acceleration presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..acceleration.presets import preset_of
from ..errors import InputError
from ..memory import MemoryPolicy
from ..spec import StudentSpec
from .models import PlannedModel

Weights = Literal["float32", "bf16", "fp8", "layers"]
TextPlacement = Literal["device", "layers", "visit", "cpu", "int8 alone", "none"]
Decoder = Literal["whole", "tiles", "taehv", "none"]
VaePrecision = Literal["bf16", "float32"]
MOST_SECONDS, MOST_PIXELS = 10**7, 2**14
TEMPORAL_SCALE = 4  # pixel frames per latent frame


@dataclass(frozen=True)
class PlanSettings:
    """What a memory plan depends on beside the model.

    height, width: pixels. seconds: of the clip. policy: None takes the student's. clips: generated at once.
    weights: of the transformer in bfloat16 (or float32), stored in fp8, or in main memory with two blocks on the device
        (`layers`).
    text: where UMT5 is: always on the `device`; its blocks on the device one after another (`layers`); there as a whole
        while it encodes (`visit`), in int8 with the transformer off the device (`int8 alone`), on the `cpu`, or not in
        this process (`none`).
    decoder, vae: Wan's VAE, whole frames or tiles, and its precision; or TAEHV; or none (latents are wanted).
    guided: two branches. fuse, compiled: as of `AccelerationPreset`; compiled forwards are recorded as CUDA graphs.
    """

    height: int = 480
    width: int = 832
    seconds: float = 5.0
    policy: MemoryPolicy | None = None
    clips: int = 1
    weights: Weights = "bf16"
    text: TextPlacement = "layers"
    decoder: Decoder = "whole"
    vae: VaePrecision = "bf16"
    guided: bool = False
    fuse: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        for field, allowed in (
            ("weights", Weights),
            ("text", TextPlacement),
            ("decoder", Decoder),
            ("vae", VaePrecision),
        ):
            if (value := getattr(self, field)) not in get_args(allowed):
                raise InputError(field, f"found {value!r}, expected one of {', '.join(get_args(allowed))}")
        for field, value in (("height", self.height), ("width", self.width)):
            if not 1 <= value <= MOST_PIXELS:
                raise InputError(field, f"found {value} pixels, expected 1 to {MOST_PIXELS:,}")
        if not 0 < self.seconds <= MOST_SECONDS:
            raise InputError("seconds", f"found {self.seconds:g}, expected more than 0 and at most {MOST_SECONDS:,}")
        if self.clips < 1:
            raise InputError("clips", f"found {self.clips}, expected at least 1")

    def frames(self, spec: StudentSpec) -> int:
        """Latent frames of the clip, in whole blocks of a student's."""
        block, first = max(spec.frames_per_block, 1), spec.first_block
        latent = 1 + math.ceil(max(self.seconds * spec.fps - 1, 0) / TEMPORAL_SCALE)
        return first + math.ceil(max(latent - first, 0) / block) * block


def preset_settings(name: str, model: PlannedModel, settings: PlanSettings) -> PlanSettings:
    """`settings` as an acceleration preset changes them. Raises InputError for another name."""
    preset = preset_of(name)
    return replace(
        settings,
        policy=preset.policy(settings.policy or model.spec.policy),
        weights=preset.weights if settings.weights == "bf16" else settings.weights,
        decoder="tiles" if preset.tiles and settings.decoder == "whole" else settings.decoder,
        text="layers" if preset.offload_text_encoder and settings.text == "device" else settings.text,
        fuse=settings.fuse or preset.fuse,
        compiled=preset.compiled,
    )
