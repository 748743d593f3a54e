"""From the widgets of Salt Memory Policy to a `MemoryPolicy`, and the size of a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...salt.memory import MemoryPolicy, estimate_bytes
from ...salt.memory.policy import Kind, Precision, Residence
from .clip_size import latent_size
from .comfy_model import compute_dtype, memory_geometry, pixels_per_latent
from .input_errors import widget_names
from .student_spec import spec_of, unknown_spec

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

POLICY_KINDS: dict[str, Kind] = {
    "full": "full",
    "window": "window",
    "sink + window": "sink",
    "relative": "relative",
    "cyclic": "cyclic",
    "blended sink": "blended",
    "rebuilt": "rebuild",
    "rebuilt, first frame kept": "rebuild",
    "shots": "shots",
}
KEPT = "rebuilt, first frame kept"
KINDS_WITH_SINK = ("sink", "relative", "blended", "shots")
SHOT_OFFSET = 8  # LongLive 2.0's


@widget_names()
def policy_of(
    kind: str,
    window: int,
    sink: int,
    blend: float,
    precision: Precision,
    residence: Residence,
    shot_offset: int = SHOT_OFFSET,
    clean_shots: bool = False,
) -> MemoryPolicy:
    """The policy that the widgets describe; those that a kind does not have are ignored.

    Raises ValueError naming the widget.
    """
    name = POLICY_KINDS[kind]
    if name == "full":
        return MemoryPolicy(precision=precision, residence=residence)
    sink = sink if name in KINDS_WITH_SINK else int(kind == KEPT)
    shots = (shot_offset, clean_shots) if name == "shots" else (0, False)
    return MemoryPolicy(name, window, sink, blend, precision, residence, *shots)


def predicted_bytes(model: ModelPatcher, policy: MemoryPolicy, width: int, height: int, seconds: float) -> int:
    """Bytes of a memory of one clip of `seconds`, rounded up to whole blocks as a rollout of this MODEL does."""
    from ...salt.pipeline.inputs import PipelineInputs, plan_length

    geometry = memory_geometry(model, 1, *latent_size(width, height, pixels_per_latent(model)))
    frames = plan_length(PipelineInputs(seconds=seconds), spec_of(model) or unknown_spec(model)).frames
    return estimate_bytes(policy, geometry, compute_dtype(model), frames)
