"""The checkpoint room's reader: whatever file a Wan student comes in, out comes one kind of state dict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..memory import MemoryPolicy
from ..spec import StudentSpec
from .errors import CheckpointError, some
from .tensor_files import find_files, open_tensors
from .wan_keys import check_shapes, infer_config, metadata_json, refuse_stranger, sort_names, variant_of

Weights = Literal["auto", "ema", "regular", "critic"]

# Which kind of weights a training checkpoint keeps under which key, in the order "auto" prefers them ("critic" never).
# A file without such keys holds "regular" weights.
BRANCHES = {"generator_ema": "ema", "generator": "regular", "model": "regular", "critic": "critic"}
LORA_BRANCHES = ("generator_lora", "critic_lora")
# The released students' files say nothing about themselves, so their names do: which weights their authors sample
# with, and the recipe. Anything else says so in its `salt` metadata, or is read with the moving average if it has one.
LONGLIVE = StudentSpec(policy=MemoryPolicy("sink", window=12, sink=3))
RELEASED: dict[str, tuple[Weights, StudentSpec]] = {
    "salt_cf": ("ema", StudentSpec()),
    "salt_ll": ("regular", LONGLIVE),
    "longlive_base": ("regular", LONGLIVE),
}

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = (".scale_weight", ".weight_scale")
# What no weight is lost with: notes of quantised files beside weights and scales, and a norm that diffusers' older I2V
# files carry but its model never had.
IDLE = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8", ".norm_added_q.weight")
# How much of a file may be held open while its tensors are copied out of it.
HELD_PART, HELD_LEAST = 16, 64 * 2**20


@dataclass(frozen=True)
class Entry:
    """Where one weight lies: in `file`, under `name`, with the name of its fp8 scale if it has one."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scale: str | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Checkpoint:
    """A student's weights in a file, found, named and checked, but not read yet.

    `config` builds the model class; `entries` has every weight by diffusers' name; `weights` says which of the
    `available` ones were taken; `spec` is the recipe the file names, None where it names none.
    """

    path: Path
    format: str
    variant: str
    weights: str
    available: tuple[str, ...]
    config: dict[str, Any]
    entries: dict[str, Entry]
    spec: StudentSpec | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the numbers have."""
        counts: Counter[torch.dtype] = Counter()
        for entry in self.entries.values():
            counts[entry.dtype] += math.prod(entry.shape)
        return counts.most_common(1)[0][0]

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights by diffusers' names: windows on the file, except fp8 ones, which are bfloat16 copies."""
        return dict(self.tensors())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(diffusers' name, weight), one by one. What the caller lets go of is let go of here too.

        Copying weights out of a mapped file leaves the file's pages in memory until the mapping is closed, so it is
        closed and opened again after every sixteenth of the file.
        """
        held_most = max(HELD_LEAST, sum(entry.bytes for entry in self.entries.values()) // HELD_PART)
        content: dict[str, torch.Tensor] = {}
        opened, held = None, 0
        for name, entry in sorted(self.entries.items(), key=lambda item: str(item[1].file)):
            if entry.file != opened or held + entry.bytes > held_most:
                content.clear()
                content = _branches(open_tensors(entry.file)[0], entry.file)[self.weights]
                opened, held = entry.file, 0
            held += entry.bytes
            yield name, _weight(content[entry.name], content[entry.scale] if entry.scale else None)


def read_checkpoint(path: str | Path, weights: Weights = "auto") -> Checkpoint:
    """Find out what `path` is and check it, without reading its weights.

    Reads `.pt` files of Salt, Self Forcing, Causal Forcing and LongLive; safetensors with Wan's or diffusers' names,
    with or without ComfyUI's prefixes, also fp8 with scales; sharded ones by folder or index; diffusers models and
    pipelines. `weights="auto"` takes what the file's `salt` metadata or its well-known name says, else the moving
    average ("ema") if there is one, else the plain weights ("regular").

    Raises `CheckpointError` if that is not one whole, well-formed Wan 2.1 T2V or I2V transformer.
    """
    path = Path(path)
    where, (files, given) = str(path), find_files(path)
    usual, recipe = RELEASED.get(path.stem, ("auto", None))
    if weights == "auto":
        weights = usual
    tensors: dict[str, torch.Tensor] = {}
    homes: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    branches: dict[str, dict[str, torch.Tensor]] = {}
    taken = "regular"
    for file in files:
        content, notes = open_tensors(file)
        branches = _branches(content, file)
        taken = _pick(branches, weights, file)
        twice = [name for name in branches[taken] if name in homes]
        if twice:
            raise CheckpointError(f"{where}: {file.name} and {homes[twice[0]].name} both hold {some(twice)}")
        tensors |= branches[taken]
        homes |= dict.fromkeys(branches[taken], file)
        metadata |= notes
    names = sort_names((name for name in tensors if not name.endswith((*IDLE, *SCALES))), where)
    refuse_stranger(names, where)
    entries = {name: _entry(homes[raw], raw, tensors, where) for name, raw in sorted(names.canonical.items())}
    shapes = {name: entry.shape for name, entry in entries.items()}
    config = infer_config(shapes, given or metadata_json(metadata, "config", where), where)
    check_shapes(shapes, names.extra, config, where)
    return Checkpoint(
        path=path,
        format=_format(files, path, names.spelling, any(entry.scale for entry in entries.values())),
        variant=variant_of(config, where),
        weights=taken,
        available=tuple(branches),
        config=config,
        entries=entries,
        spec=_spec(metadata_json(metadata, "salt", where), where) or recipe,
        metadata=metadata,
    )


def _branches(content: dict[str, Any], file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts in a weight file, by kind of weights."""
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return {"regular": content}
    if any(key in content for key in LORA_BRANCHES) and not any(key in content for key in BRANCHES):
        raise CheckpointError(f"{file} is a LoRA: give it as lora= together with its base model")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, kind in BRANCHES.items():
        branch = content.get(key)
        if not isinstance(branch, dict) or kind in found:
            continue
        odd = [str(name) for name, value in branch.items() if not isinstance(value, torch.Tensor)]
        if odd or not branch:
            raise CheckpointError(f"{file}: {key} holds {some(odd) or 'nothing'}; expected tensors by name")
        found[kind] = branch
    if not found:
        keys = some(map(str, content)) or "nothing"
        raise CheckpointError(f"{file} holds {keys}; expected weights by name, or {', '.join(BRANCHES)}")
    return found


def _pick(branches: dict[str, dict[str, torch.Tensor]], weights: str, file: Path) -> str:
    wanted = ("ema", "regular") if weights == "auto" else (weights,)
    taken = next((kind for kind in wanted if kind in branches), None)
    if taken is None:
        raise CheckpointError(f"{file} has no {' or '.join(wanted)} weights; it has {', '.join(branches)}")
    return taken


def _spec(facts: dict[str, Any], where: str) -> StudentSpec | None:
    try:
        return StudentSpec.from_dict(facts) if facts else None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its metadata `salt` is no student's recipe: {error}") from error


def _entry(file: Path, raw: str, tensors: dict[str, torch.Tensor], where: str) -> Entry:
    tensor, stem = tensors[raw], raw.removesuffix(".weight")
    scale = next((stem + end for end in SCALES if stem != raw and stem + end in tensors), None)
    if not tensor.is_floating_point():
        raise CheckpointError(f"{where}: {raw} is stored as {tensor.dtype}, a quantisation that only ComfyUI reads")
    if scale and tensors[scale].numel() not in (1, tensor.shape[0]):
        raise CheckpointError(
            f"{where}: {raw} has scales of shape {list(tensors[scale].shape)}; expected one, or one per output channel"
        )
    return Entry(file, raw, tuple(tensor.shape), tensor.dtype, scale)


def _weight(tensor: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """fp8 weights become bfloat16, which models compute in; everything else stays the window on the file that it is."""
    if scale is not None:
        return (tensor.float() * scale.float().reshape(-1, *[1] * (tensor.ndim - 1))).bfloat16()
    return tensor.bfloat16() if tensor.dtype in FLOAT8 else tensor


def _format(files: list[Path], path: Path, spelling: str, scaled: bool) -> str:
    kind = "safetensors" if files[0].suffix in (".safetensors", ".sft") else "torch"
    kind = f"{len(files)} {kind} files" if len(files) > 1 else f"{kind} file"
    return f"{kind}{' in a folder' if path.is_dir() else ''}, {spelling} names{', scaled fp8' if scaled else ''}"
