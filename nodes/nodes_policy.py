"""*Salt Memory Policy*: what a KV-cache memory keeps, and how much memory that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..salt.memory import PRECISIONS, RESIDENCES
from ..salt.memory.policy import MAX_SHOT_OFFSET
from .adapter.core_versions import ADVANCED, schema
from .adapter.memory_policy import POLICY_KINDS, SHOT_OFFSET, policy_of, predicted_bytes
from .adapter.model_size import chosen_size
from .io_types import Policy
from .widgets import seconds_widget, size_widgets

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class SaltMemoryPolicy(io.ComfyNode):
    """What to remember."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltMemoryPolicy",
            display_name="Salt Memory Policy",
            category="Salt/memory",
            description="What the KV-cache memory keeps of the clip so far. A latent frame is 4 frames: a quarter of a "
            "second at 16 frames a second, a sixth at 24 (Wan 2.2 TI2V). With a MODEL connected it predicts how much "
            "memory that takes.",
            search_aliases=["kv cache", "window", "sink", "attention sink", "longlive", "infinity rope", "vram"],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(POLICY_KINDS),
                    default="sink + window",
                    tooltip="full keeps everything (up to about 20 s). window keeps the newest frames. sink + window "
                    "also keeps the first ones (LongLive), relative assigns positions anew at every read, for clips of "
                    "any length (Infinity-RoPE). cyclic and blended sink are experiments of Salt's authors. rebuilt "
                    "(Krea realtime) is made anew after every block from the newest frames and needs a VAE, or keeps "
                    "the first frame.",
                ),
                io.Int.Input(
                    "window",
                    default=12,
                    min=1,
                    max=4096,
                    tooltip="Latent frames kept in all, sink and current block included: 12 is 3 seconds at 16 frames "
                    "a second. Not for full. rebuilt: latent frames that it is made from, whole blocks (Krea: 3).",
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
                    tooltip="model: the MODEL's own dtype. int8 and fp8 take about half of bf16, int4 28 %; the fewer "
                    "bits, the larger the loss.",
                ),
                io.Combo.Input(
                    "residence",
                    options=list(RESIDENCES),
                    default="device",
                    tooltip="cpu keeps it in main memory and fetches it layer by layer: slower, little VRAM.",
                ),
                io.Model.Input("model", optional=True, tooltip="To predict how much memory it takes."),
                *size_widgets(
                    "For the prediction: pixels; 0: the MODEL's own.", "For the prediction: pixels; 0: the MODEL's own."
                ),
                seconds_widget("For the prediction: length (full)."),
                io.Int.Input(
                    "shot_offset",
                    default=SHOT_OFFSET,
                    min=0,
                    max=MAX_SHOT_OFFSET,
                    tooltip="shots: temporal positions that every new shot moves on by (LongLive 2.0: 8).",
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "clean_shots",
                    default=False,
                    tooltip="shots: the first block of a shot is written with nothing but the sink in the memory.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                Policy.Output(display_name="policy", tooltip="For Salt Rollout and Salt Sampler."),
                io.String.Output(display_name="prediction", tooltip="The predicted size, in words."),
            ],
        )

    @classmethod
    def execute(
        cls, width: int, height: int, seconds: float, model: ModelPatcher | None = None, **widgets: Any
    ) -> io.NodeOutput:
        policy = policy_of(**widgets)
        prediction = str(policy)
        if model is not None:
            width, height = chosen_size(model, width, height)
            size = predicted_bytes(model, policy, width, height, seconds) / 1e9
            place = "main memory" if policy.residence == "cpu" else "VRAM"
            prediction += f": {size:.3g} GB of {place} at {width}x{height}, {seconds:g} s (with cfg, twice that)"
        return io.NodeOutput(policy, prediction, ui={"text": [prediction]})


NODES = [SaltMemoryPolicy]
