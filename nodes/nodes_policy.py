"""Host 1: *Memory Policy*, what a KV-cache memory keeps, and how much room that takes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..salt.memory import MemoryPolicy, estimate_bytes
from ..salt.memory.policy import PRECISIONS, RESIDENCES
from ..salt.spec import StudentSpec
from .adapter.comfy_model import compute_dtype, memory_geometry
from .adapter.student_spec import spec_of
from .io_types import ADVANCED, Policy, schema

KINDS = {
    "full": "full",
    "window": "window",
    "sink + window": "sink",
    "relative": "relative",
    "cyclic": "cyclic",
    "blended sink": "blended",
}
SINKS = ("sink", "relative", "blended")


def policy_of(kind: str, window: int, sink: int, blend: float, precision: str, residence: str) -> MemoryPolicy:
    """The policy that the widgets say; those a kind does not have are passed over. Raises ValueError naming one."""
    name: Any = KINDS[kind]
    stored: Any = {"precision": precision, "residence": residence}
    if name == "full":
        return MemoryPolicy(**stored)
    return MemoryPolicy(name, window, sink if name in SINKS else 0, blend, **stored)


class SaltMemoryPolicy(io.ComfyNode):
    """What to remember."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltMemoryPolicy",
            display_name="Memory Policy",
            category="Salt/memory",
            description="What the KV-cache memory keeps of the clip so far. A latent frame is 4 frames, a quarter of a "
            "second at 16 frames a second. With a MODEL connected it says how much room the memory takes.",
            search_aliases=["kv cache", "window", "sink", "attention sink", "longlive", "infinity rope", "vram"],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="sink + window",
                    tooltip="full keeps everything (up to about 20 s). window keeps the newest frames. sink + window "
                    "also "
                    "keeps the first ones (LongLive), relative re-counts positions at every read, so that no clip is "
                    "too "
                    "long (Infinity-RoPE). cyclic and blended sink are Salt's experiments.",
                ),
                io.Int.Input(
                    "window",
                    default=12,
                    min=1,
                    max=4096,
                    tooltip="Latent frames kept in all, sink and current block counted: 12 is 3 seconds. Not for full.",
                ),
                io.Int.Input(
                    "sink",
                    default=3,
                    min=0,
                    max=1024,
                    tooltip="First latent frames that are never forgotten; for sink + window, relative, blended sink.",
                ),
                io.Float.Input(
                    "blend",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="blended sink: how much of the sink stays when a forgotten frame is mixed into it.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="model",
                    tooltip="model: as the MODEL computes. int8 and fp8 take about half of bf16, int4 28 %, at a small "
                    "loss that grows with it.",
                ),
                io.Combo.Input(
                    "residence",
                    options=list(RESIDENCES),
                    default="device",
                    tooltip="cpu keeps the memory in main memory and fetches it layer by layer: slower, little VRAM.",
                ),
                io.Model.Input("model", optional=True, tooltip="To say how much room the memory takes."),
                io.Int.Input("width", default=832, min=16, max=4096, step=16, tooltip="For the prediction: pixels."),
                io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip="For the prediction: pixels."),
                io.Float.Input(
                    "seconds", default=5.0, min=0.1, max=3600.0, step=0.1, tooltip="For the prediction: length (full)."
                ),
            ],
            outputs=[
                Policy.Output(display_name="policy", tooltip="For Salt Rollout and Salt Sampler."),
                io.String.Output(display_name="prediction", tooltip="What it takes, in words."),
            ],
        )

    @classmethod
    def execute(
        cls, kind: str, window: int, sink: int, blend: float, precision: str, residence: str, width: int, height: int,
        seconds: float, model: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        policy = policy_of(kind, window, sink, blend, precision, residence)
        told = str(policy)
        if model is not None:
            size = predicted_bytes(model, policy, width, height, seconds)
            where = "main memory" if residence == "cpu" else "VRAM"
            told = f"{policy}: {size / 1e9:.3g} GB of {where} at {width}x{height}, {seconds:g} s (with cfg, twice that)"
        return io.NodeOutput(policy, told, ui={"text": [told]})


def predicted_bytes(model: Any, policy: MemoryPolicy, width: int, height: int, seconds: float) -> int:
    """Bytes of a memory of one clip of `seconds`, rounded up to whole blocks as a rollout of this MODEL does."""
    from ..salt.pipeline.inputs import PipelineInputs, plan_length

    geometry = memory_geometry(model, 1, height // 8, width // 8)
    frames = plan_length(PipelineInputs(seconds=seconds), spec_of(model) or StudentSpec()).frames
    return estimate_bytes(policy, geometry, compute_dtype(model), frames)


NODES = [SaltMemoryPolicy]
