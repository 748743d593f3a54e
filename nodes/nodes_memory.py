"""Nodes that save, load, inspect, rewind and fork a memory. A memory on a wire is never written to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..salt.errors import InputError
from ..salt.memory.inspect import as_text, blended_since, lost_by_rewinding, picture, ranges
from .adapter.clip_size import FRAMES_PER_LATENT
from .adapter.core_versions import schema
from .adapter.file_prefix import FOLDER
from .adapter.input_errors import accepted
from .adapter.memory_files import (
    NEWEST,
    check_save_prefix,
    load_clip_memory,
    memory_files,
    memory_path,
    save_clip_memory,
)
from .io_types import ClipMemory, Memory
from .memory_ui import memory_ui

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class SaltSaveMemory(io.ComfyNode):
    """A memory to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltSaveMemory",
            display_name="Salt Save Memory",
            category="Salt/memory",
            description="Writes a memory to output/salt_memories, to continue from it later. Save the clip's latents "
            "as well (Save Latent): Salt Extend Video needs both.",
            search_aliases=["save kv cache", "checkpoint clip", "keep memory"],
            is_output_node=True,
            inputs=[
                Memory.Input("memory", tooltip="From Salt Rollout or Salt Extend Video."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{FOLDER}/clip",
                    tooltip=f"Below {FOLDER}/ in the output folder; a number is added, and an older file is never "
                    "replaced. It may have %date:yyyy-MM-dd%, %width%, %height% or %Salt Rollout.seed%, as in core's "
                    "save nodes.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        """Before anything runs. A linked prefix is not known yet."""
        return filename_prefix is None or accepted(check_save_prefix, filename_prefix)

    @classmethod
    def execute(cls, memory: ClipMemory, filename_prefix: str) -> io.NodeOutput:
        path = save_clip_memory(memory, filename_prefix)
        return io.NodeOutput(str(path), ui={"text": [f"saved {path}"], **memory_ui(memory)})


class SaltLoadMemory(io.ComfyNode):
    """A memory from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltLoadMemory",
            display_name="Salt Load Memory",
            category="Salt/memory",
            description="Reads a memory that Salt Save Memory wrote (output/salt_memories), or one that you put in "
            "input/salt_memories. Press R in ComfyUI to see new files, or choose newest.",
            search_aliases=["load kv cache", "continue clip", "resume"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[NEWEST, *memory_files()],
                    tooltip="Saved memories, newest first. newest is the newest file at the time of the run.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL it is meant for: a memory of another model or LoRA is rejected at once.",
                ),
            ],
            outputs=[Memory.Output(display_name="memory", tooltip="For Salt Rollout or Salt Extend Video.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """The list in the page may be old, so the folder itself is looked at. A linked name is not known yet, nor is
        what earlier prompts of the queue will have saved by then."""
        return file is None or file == NEWEST or accepted(memory_path, file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: object) -> str | float:
        if file is None:
            return float("nan")  # equal to nothing: the file is read again
        try:
            path = memory_path(file)
        except FileNotFoundError:
            return float("nan")  # the run itself says so
        return f"{path}:{path.stat().st_mtime_ns}"

    @classmethod
    def execute(cls, file: str, model: ModelPatcher | None = None) -> io.NodeOutput:
        memory = load_clip_memory(memory_path(file), model)
        return io.NodeOutput(memory, ui=memory_ui(memory))


class SaltInspectMemory(io.ComfyNode):
    """A memory to look at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltInspectMemory",
            display_name="Salt Inspect Memory",
            category="Salt/memory",
            description="What a memory holds: which latent frame lies in which slot, and how large keys and values are "
            "in every layer. In the picture: sink orange, recent blue, empty dark; below, keys and values, a row per "
            "layer.",
            search_aliases=["show kv cache", "debug memory", "kv norms"],
            is_output_node=True,
            inputs=[Memory.Input("memory", tooltip="Any memory; it is only read.")],
            outputs=[
                io.String.Output(display_name="table", tooltip="Its content, in words and numbers."),
                io.Image.Output(display_name="picture", tooltip="The same as a picture."),
            ],
        )

    @classmethod
    def execute(cls, memory: ClipMemory) -> io.NodeOutput:
        from comfy_api.latest import ui

        image, table = picture(memory.memory)[None], as_text(memory.memory, memory.fps)
        if memory.negative is not None:
            table += f"\n\nunconditional branch (cfg): as much again, {memory.negative.nbytes / 2**20:.1f} MiB"
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        return io.NodeOutput(table, image, ui={**shown, "text": [table], **memory_ui(memory)})


class SaltRewindMemory(io.ComfyNode):
    """A memory as it was."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltRewindMemory",
            display_name="Salt Rewind Memory",
            category="Salt/memory",
            description="Takes a memory back to an earlier moment of its clip, to continue differently from there. "
            "Frames that a window has already dropped do not come back; the node reports which.",
            search_aliases=["undo", "trim memory", "go back", "retake"],
            inputs=[
                Memory.Input("memory", tooltip="It is copied, never changed."),
                io.Float.Input(
                    "to", default=2.0, min=0.0, max=3600.0, step=0.25, round=0.01, tooltip="The moment to go back to."
                ),
                io.Combo.Input(
                    "unit",
                    options=["seconds", "latent frames"],
                    default="seconds",
                    tooltip="A latent frame is a quarter of a second, at 24 frames a second (Wan 2.2 TI2V) a sixth.",
                ),
            ],
            outputs=[
                Memory.Output(display_name="memory", tooltip="The memory at that moment."),
                io.String.Output(display_name="report", tooltip="Its new position, and what did not come back."),
            ],
        )

    @classmethod
    def execute(cls, memory: ClipMemory, to: float, unit: str) -> io.NodeOutput:
        rate = memory.fps / FRAMES_PER_LATENT
        frame = round(to * rate) if unit == "seconds" else round(to)
        first, last = memory.memory.origin, memory.memory.next_frame
        if not first <= frame <= last:
            raise InputError(
                "to",
                f"found latent frame {frame} ({frame / rate:.4g} s), expected {first} to {last} "
                f"({last / rate:.4g} s), where the memory stands",
            )
        rewound = memory.copied("cpu")
        lost, blended = lost_by_rewinding(memory.memory, frame), blended_since(memory.memory, frame)
        for branch in rewound.branches:
            branch.trim(frame)
        report = f"at latent frame {frame} ({frame / rate:.4g} s)"
        if rewound.memory.needs_history:
            report += "; it is rebuilt from the clip's latents: connect them to Salt Extend Video, or to latents"
        if lost:
            report += f"; {len(lost)} latent frames forgotten by the window stay lost ({ranges(lost)})"
        if blended:
            report += f"; the sink keeps what was blended into it since, of latent frames {ranges(blended)}"
        return io.NodeOutput(rewound, report, ui={"text": [report], **memory_ui(rewound)})


class SaltForkMemory(io.ComfyNode):
    """One memory into two continuations."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltForkMemory",
            display_name="Salt Fork Memory",
            category="Salt/memory",
            description="Two branches of one memory, for two continuations of the same clip. (Nodes copy the memory "
            "they continue from, so one memory may be used any number of times; this makes the branching visible.)",
            search_aliases=["branch", "split memory", "two endings"],
            inputs=[Memory.Input("memory", tooltip="The memory to copy.")],
            outputs=[
                Memory.Output(display_name="a", tooltip="One branch."),
                Memory.Output(display_name="b", tooltip="The other."),
            ],
        )

    @classmethod
    def execute(cls, memory: ClipMemory) -> io.NodeOutput:
        return io.NodeOutput(memory.copied("cpu"), memory.copied("cpu"), ui=memory_ui(memory))


NODES = [SaltSaveMemory, SaltLoadMemory, SaltInspectMemory, SaltRewindMemory, SaltForkMemory]
