"""*Salt Semigroup Defect* of a student, and *Salt Plan*: what a clip needs of the card's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..salt.memory import MemoryPolicy
from ..salt.semigroup_defect import defect_table, parse_triples
from .adapter.clip_size import latent_size
from .adapter.comfy_model import pixels_per_latent
from .adapter.connections import answer
from .adapter.core_versions import schema
from .adapter.input_errors import UNCONNECTED, widget_names
from .adapter.model_size import chosen_size, size_notes
from .adapter.queued_prompt import check_queued_memory
from .adapter.semigroup_defect import measure_defects, plot, student_spec
from .io_types import Conditioning
from .widgets import frames_per_block_widget, policy_socket, seconds_widget, size_widgets

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

DEFAULT_TRIPLES = "1000, 875, 750; 750, 625, 500; 500, 375, 250; 250, 125, 0"


class SaltSemigroupDefect(io.ComfyNode):
    """The semigroup defect as number and plot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltSemigroupDefect",
            display_name="Salt Semigroup Defect",
            category="Salt/diagnostics",
            description="How far the result of one long step of a student is from that of two shorter ones, measured "
            "on a clip it generates, block by block with its own memory; squared and relative to the step. Salt's "
            "training reduces it: compare two students with the same seed.",
            search_aliases=["consistency", "self-consistency", "diagnose student", "semigroup"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A student, autoregressive or bidirectional."),
                io.Conditioning.Input("positive", tooltip="A prompt."),
                io.String.Input(
                    "triples",
                    default=DEFAULT_TRIPLES,
                    tooltip="Steps t_s, t_m, t_e before the shift, separated by semicolons; t_s from the 4- or 8-step "
                    "list.",
                ),
                seconds_widget("Length of the clip.", default=2.0, min=0.5, max=60.0),
                *size_widgets("Pixels; 0: the MODEL's own.", "Pixels; 0: the MODEL's own."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="The same seed for every student."),
                frames_per_block_widget("0: the MODEL's own."),
                policy_socket(),
            ],
            outputs=[
                io.Float.Output(display_name="defect", tooltip="Mean over the triples, Euler operator."),
                io.String.Output(display_name="table", tooltip="All of them, also with the real sampler (markdown)."),
                io.Image.Output(display_name="plot", tooltip="The same as bars."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, model: object = UNCONNECTED, positive: object = UNCONNECTED, policy: object = UNCONNECTED
    ) -> bool | str:
        """Before anything runs."""
        return answer(check_queued_memory, "SaltSemigroupDefect", model=model, positive=positive, policy=policy)

    @classmethod
    @widget_names(student="model")
    def execute(
        cls,
        model: ModelPatcher,
        positive: Conditioning,
        triples: str,
        seconds: float,
        width: int,
        height: int,
        seed: int,
        frames_per_block: int,
        policy: MemoryPolicy | None = None,
    ) -> io.NodeOutput:
        from comfy_api.latest import ui

        from ..salt.pipeline.inputs import PipelineInputs, plan_length

        spec = student_spec(model, frames_per_block)
        frames = plan_length(PipelineInputs(seconds=seconds), spec).frames
        size = latent_size(*chosen_size(model, width, height), pixels_per_latent(model))
        defects = measure_defects(
            model, positive, parse_triples(triples), spec, policy or spec.policy, frames, size, seed
        )  # fmt: skip
        euler = [value for (_, operator), value in defects.items() if operator == "euler"]
        mean, table = sum(euler) / len(euler), "\n".join([defect_table({"student": defects}), *size_notes(model, size)])
        image = plot(defects, f"semigroup defect, mean {mean:.5f}")
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(mean, table, image, ui={**shown, "text": [table]})


class SaltPlan(io.ComfyNode):
    """Peaks of a clip by phase, and what would fit the card."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltPlan",
            display_name="Salt Plan",
            category="Salt/diagnostics",
            description="What a clip needs of the card's memory, phase by phase, before anything runs; which changes "
            "of widgets save how much, and the cheapest that fits.",
            search_aliases=["vram", "memory", "out of memory", "plan"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A student; only its sizes are read."),
                *size_widgets("Pixels; 0: the MODEL's own.", "Pixels; 0: the MODEL's own."),
                seconds_widget("Length of the clip."),
                io.Float.Input(
                    "vram", default=0.0, min=0.0, max=1000.0, step=0.1, tooltip="GB of the card; 0 takes this one."
                ),
                io.Boolean.Input("guided", default=False, tooltip="Whether cfg is another than 1: two branches."),
                policy_socket(),
            ],
            outputs=[
                io.String.Output(display_name="plan", tooltip="Tables (markdown)."),
                io.Float.Output(display_name="peak", tooltip="GB."),
            ],
        )

    @classmethod
    @widget_names()
    def execute(
        cls,
        model: ModelPatcher,
        width: int,
        height: int,
        seconds: float,
        vram: float,
        guided: bool,
        policy: MemoryPolicy | None = None,
    ) -> io.NodeOutput:
        from .adapter.memory_plan import card_bytes, plan_of_model, plan_text

        width, height = chosen_size(model, width, height)
        plan = plan_of_model(model, policy, width, height, seconds, guided)
        notes = size_notes(model, latent_size(width, height, pixels_per_latent(model)))
        text = "\n\n".join([plan_text(plan, card_bytes(vram, model.load_device)), *notes])
        return io.NodeOutput(text, plan.peak / 1e9, ui={"text": [text]})


NODES = [SaltSemigroupDefect, SaltPlan]
