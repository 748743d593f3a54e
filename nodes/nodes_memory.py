"""Host 1: memories as things: save, load, inspect, rewind, fork. What is on a wire is never written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..salt.memory import KVMemory, MemoryFileError, load_memory, save_memory
from ..salt.memory.inspect import as_text, blended_since, lost_by_rewinding, picture, ranges
from ..salt.memory.serialization import NEGATIVE, negative_path
from .adapter.comfy_model import memory_geometry
from .adapter.fingerprint import fingerprint
from .io_types import ClipMemory, Memory, schema
from .memory_ui import memory_ui

FOLDER = "salt_memories"
FRAMES_PER_SECOND = 4  # latent


def memory_files() -> list[str]:
    """Saved memories in output/ and input/, as `salt_memories/NAME.safetensors [output]`, newest first."""
    import folder_paths

    found = []
    for kind, root in (("output", folder_paths.get_output_directory()), ("input", folder_paths.get_input_directory())):
        for path in Path(root, FOLDER).rglob("*.safetensors"):
            hidden = path.stem.endswith(NEGATIVE) or path.name.startswith(".")
            if not hidden and path.is_file():  # no link to a disk that is away
                found.append((path.stat().st_mtime, f"{path.relative_to(root).as_posix()} [{kind}]"))
    return [name for _, name in sorted(found, reverse=True)]


def memory_path(name: str) -> Path:
    """Where `NAME [output]` lies. Raises FileNotFoundError naming the folder it is looked for in."""
    import folder_paths

    path = Path(folder_paths.get_annotated_filepath(name))
    if not path.is_file():
        raise FileNotFoundError(f"{name}: found no such file, expected a memory saved by Save Memory in {path.parent}")
    return path


def loaded(path: Path, model: Any) -> KVMemory:
    """A memory file; with a MODEL, only one that it has written. Raises MemoryFileError naming the file."""
    if model is None:
        return load_memory(path)
    memory = load_memory(path, fingerprint=fingerprint(model))
    # Equal weights may be read as other heads: their number is not in the shapes.
    found = memory.geometry
    expected = memory_geometry(model, found.batch, found.height * 2, found.width * 2)
    if found != expected:
        told = [f"{g.layers} layers, {g.heads} heads of {g.head_dim}" for g in (found, expected)]
        raise MemoryFileError(f"{path}: found a memory of {told[0]}, expected the MODEL's {told[1]}")
    return memory


class SaltSaveMemory(io.ComfyNode):
    """A memory to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltSaveMemory",
            display_name="Save Memory",
            category="Salt/memory",
            description="Writes a memory to output/salt_memories, to go on from it another day. Save the clip's "
            "latents "
            "beside it (Save Latent): Extend Video wants both.",
            search_aliases=["save kv cache", "checkpoint clip", "keep memory"],
            is_output_node=True,
            inputs=[
                Memory.Input("memory", tooltip="From Salt Rollout or Extend Video."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{FOLDER}/clip",
                    tooltip="Below the output folder; a number is added. An older file is never replaced.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, memory: ClipMemory, filename_prefix: str) -> io.NodeOutput:
        import folder_paths

        folder, name, counter, *_ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        # The branch first: a file without one that ought to have one would guide wrongly, silently.
        if memory.negative is not None:
            save_memory(memory.negative, negative_path(path))
        save_memory(memory.memory, path)
        return io.NodeOutput(str(path), ui={"text": [f"saved {path}"], **memory_ui(memory)})


class SaltLoadMemory(io.ComfyNode):
    """A memory from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltLoadMemory",
            display_name="Load Memory",
            category="Salt/memory",
            description="Reads a memory that Save Memory wrote (output/salt_memories), or one that you put in "
            "input/salt_memories. Press R in ComfyUI to see new files.",
            search_aliases=["load kv cache", "continue clip", "resume"],
            inputs=[
                io.Combo.Input("file", options=memory_files(), tooltip="Saved memories, newest first."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL it is meant for: a memory of another model, or of another LoRA, is refused at "
                    "once.",
                ),
            ],
            outputs=[Memory.Output(display_name="memory", tooltip="For Salt Rollout or Extend Video.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """Files come while ComfyUI runs, so the list of a moment ago does not decide. A linked name comes later."""
        if file is None:
            return True
        try:
            memory_path(file)
        except FileNotFoundError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> str | float:
        if file is None:
            return float("nan")  # equal to nothing: read anew
        path = memory_path(file)
        return f"{path}:{path.stat().st_mtime_ns}"

    @classmethod
    def execute(cls, file: str, model: Any = None) -> io.NodeOutput:
        path = memory_path(file)
        negative = negative_path(path)
        memory = ClipMemory(loaded(path, model), loaded(negative, model) if negative.is_file() else None)
        return io.NodeOutput(memory, ui=memory_ui(memory))


class SaltInspectMemory(io.ComfyNode):
    """A memory to look at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltInspectMemory",
            display_name="Inspect Memory",
            category="Salt/memory",
            description="What a memory holds: which latent frame lies in which slot, and how large keys and values "
            "are in "
            "every layer. In the picture: sink orange, recent blue, empty dark; below, keys and values, a row per "
            "layer.",
            search_aliases=["show kv cache", "debug memory", "kv norms"],
            is_output_node=True,
            inputs=[Memory.Input("memory", tooltip="Any memory; it is only looked at.")],
            outputs=[
                io.String.Output(display_name="table", tooltip="What it holds, in words and figures."),
                io.Image.Output(display_name="picture", tooltip="The same as a picture."),
            ],
        )

    @classmethod
    def execute(cls, memory: ClipMemory) -> io.NodeOutput:
        from comfy_api.latest import ui

        image, table = picture(memory.memory)[None], as_text(memory.memory)
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
            display_name="Rewind Memory",
            category="Salt/memory",
            description="Takes a memory back to an earlier moment of its clip, to go on differently from there. "
            "Frames that "
            "a window has already forgotten do not come back; the node says which.",
            search_aliases=["undo", "trim memory", "go back", "retake"],
            inputs=[
                Memory.Input("memory", tooltip="It is copied, never changed."),
                io.Float.Input("to", default=2.0, min=0.0, max=3600.0, step=0.25, tooltip="The moment to go back to."),
                io.Combo.Input(
                    "unit",
                    options=["seconds", "latent frames"],
                    default="seconds",
                    tooltip="A latent frame is a quarter of a second.",
                ),
            ],
            outputs=[
                Memory.Output(display_name="memory", tooltip="The memory at that moment."),
                io.String.Output(display_name="report", tooltip="Where it stands now, and what did not come back."),
            ],
        )

    @classmethod
    def execute(cls, memory: ClipMemory, to: float, unit: str) -> io.NodeOutput:
        frame = round(to * FRAMES_PER_SECOND) if unit == "seconds" else round(to)
        stands = memory.memory.next_frame
        if not memory.memory.origin <= frame <= stands:
            raise ValueError(
                f"to: found latent frame {frame} ({frame / FRAMES_PER_SECOND:g} s), expected "
                f"{memory.memory.origin} to {stands} ({stands / FRAMES_PER_SECOND:g} s), where the memory stands"
            )
        back = memory.rested()
        lost, mixed = lost_by_rewinding(memory.memory, frame), blended_since(memory.memory, frame)
        for branch in (back.memory, back.negative):
            if branch is not None:
                branch.trim(frame)
        told = f"at latent frame {frame} ({frame / FRAMES_PER_SECOND:g} s)"
        told += f"; {len(lost)} latent frames forgotten by the window stay lost ({ranges(lost)})" if lost else ""
        told += f"; the sink keeps what was blended into it since, of latent frames {ranges(mixed)}" if mixed else ""
        return io.NodeOutput(back, told, ui={"text": [told], **memory_ui(back)})


class SaltForkMemory(io.ComfyNode):
    """One memory into two continuations."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SaltForkMemory",
            display_name="Fork Memory",
            category="Salt/memory",
            description="Two branches of one memory, for two continuations of the same clip. (Any node may go on from "
            "a "
            "memory as often as it likes, as it copies it; this makes the branching seen.)",
            search_aliases=["branch", "split memory", "two endings"],
            inputs=[Memory.Input("memory", tooltip="Where both branches begin.")],
            outputs=[
                Memory.Output(display_name="a", tooltip="One branch."),
                Memory.Output(display_name="b", tooltip="The other."),
            ],
        )

    @classmethod
    def execute(cls, memory: ClipMemory) -> io.NodeOutput:
        return io.NodeOutput(memory.rested(), memory.rested(), ui=memory_ui(memory))


NODES = [SaltSaveMemory, SaltLoadMemory, SaltInspectMemory, SaltRewindMemory, SaltForkMemory]
