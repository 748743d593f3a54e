"""Identify, name and check the weights in a file of a Wan student, and read them as one kind of state dict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..spec import StudentSpec
from .families import LONGLIVE, family_of
from .fused import is_fused, split_fused
from .longlive2 import refuse_nvfp4
from .tensor_files import CheckpointError, find_files, metadata_json, open_tensors, read_metadata, shorten
from .trained_size import trained_size
from .wan22 import wan22_spec
from .wan_config import check_shapes, infer_config, variant_of
from .wan_keys import A_LORA, check_is_wan, match_names

Weights = Literal["auto", "ema", "regular", "critic"]

# Top-level key of a training checkpoint -> kind of weights, in the order in which "auto" prefers them ("critic" never).
# A file without these keys holds "regular" weights.
WEIGHTS_KEYS = {
    "generator_ema": "ema",
    "generator": "regular",
    "model": "regular",
    "state_dict": "regular",
    "critic": "critic",
}
FLAT_PREFIXES = ("generator.", "generator_ema.")  # of a file's names in place of such keys
LORA_KEYS = ("generator_lora", "critic_lora")
# The released students' files have no metadata, so their file names determine which weights their authors sample with,
# and the recipe. Other files have `salt` metadata, or are read with the moving average if they have one.
RELEASED: dict[str, tuple[Weights, StudentSpec]] = {
    "salt_cf": ("ema", StudentSpec()),
    "salt_ll": ("regular", LONGLIVE),
    "longlive_base": ("regular", LONGLIVE),
}

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = (".scale_weight", ".weight_scale")
# Keys that are no weights of the model: annotations of quantised files beside weights and scales, and a norm that
# diffusers' older I2V files contain but its model never had.
IGNORED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8", ".norm_added_q.weight")
# At most this share of a file, but at least so many bytes, stay mapped while its tensors are copied.
MAPPED_SHARE, MIN_MAPPED_BYTES = 16, 64 * 2**20


@dataclass(frozen=True)
class Entry:
    """Location of one weight: `file`, `name` in it, and its fp8 scale if it has one, which may lie in another file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scale: torch.Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Checkpoint:
    """A student's weights in a file: identified, named and checked, but not read yet.

    config: arguments of the model class. entries: every weight by diffusers' name. weights: which of the `available`
    kinds was chosen. spec: the student's recipe, None where the file has none; size: (height, width) in pixels that it
    was trained for, None where the file does not say. ignored: names of what else the file holds, an optimizer or a
    counter.
    """

    path: Path
    format: str
    variant: str
    weights: str
    available: tuple[str, ...]
    config: dict[str, Any]
    entries: dict[str, Entry]
    spec: StudentSpec | None = None
    size: tuple[int, int] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most parameters."""
        counts: Counter[torch.dtype] = Counter()
        for entry in self.entries.values():
            counts[entry.dtype] += math.prod(entry.shape)
        return counts.most_common(1)[0][0]

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights by diffusers' names: memory-mapped, except fp8 ones, which are bfloat16 copies."""
        return dict(self.tensors())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(diffusers' name, weight), one by one. No reference to a weight is kept here.

        Copying weights out of a mapped file leaves the file's pages in memory until the mapping is closed, so it is
        closed and opened again after every sixteenth of the file.
        """
        limit = max(MIN_MAPPED_BYTES, sum(entry.bytes for entry in self.entries.values()) // MAPPED_SHARE)
        content: dict[str, torch.Tensor] = {}
        opened, mapped = None, 0
        for name, entry in sorted(self.entries.items(), key=lambda item: str(item[1].file)):
            if entry.file != opened or mapped + entry.bytes > limit:
                content.clear()
                content = _state_dicts(open_tensors(entry.file)[0], entry.file)[self.weights]
                opened, mapped = entry.file, 0
            mapped += entry.bytes
            yield name, _weight(content[entry.name], entry.scale)


def read_checkpoint(path: str | Path, weights: Weights = "auto") -> Checkpoint:
    """Identify and check the checkpoint at `path`, without reading its weights.

    Reads `.pt` files of Salt, Self Forcing, Causal Forcing and LongLive; safetensors with Wan's or diffusers' names,
    with or without ComfyUI's prefixes, also fp8 with scales; sharded ones by folder or index; diffusers models and
    pipelines. `weights="auto"` uses what a released student's file name determines, else the moving average ("ema") if
    there is one, else the plain weights ("regular").

    Raises `CheckpointError` if that is not one whole, well-formed Wan 2.1 T2V or I2V transformer.
    """
    path = Path(path)
    where, (files, declared) = str(path), find_files(path)
    released, recipe = RELEASED.get(path.stem, ("auto", None))
    if weights == "auto":
        weights = released
    tensors: dict[str, torch.Tensor] = {}
    origins: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    state_dicts: dict[str, dict[str, torch.Tensor]] = {}
    ignored: list[str] = []
    kind = "regular"
    for file in files:
        content, file_metadata = open_tensors(file)
        state_dicts = _state_dicts(content, file)
        kind = _choose_weights(state_dicts, weights, file)
        duplicated = [name for name in state_dicts[kind] if name in origins]
        if duplicated:
            raise CheckpointError(
                f"{where}: {file.name} and {origins[duplicated[0]].name} both hold {shorten(duplicated)}"
            )
        tensors |= state_dicts[kind]
        origins |= dict.fromkeys(state_dicts[kind], file)
        metadata |= file_metadata
        ignored += _ignored(content, kind, state_dicts[kind])
    names = match_names((name for name in tensors if not name.endswith((*IGNORED, *SCALES))), where)
    check_is_wan(names, where)
    entries = {name: _entry(origins[raw], raw, tensors, where) for name, raw in sorted(names.canonical.items())}
    shapes = {name: entry.shape for name, entry in entries.items()}
    config = infer_config(shapes, declared or metadata_json(metadata, "config", where), where)
    check_shapes(shapes, names.extra, config, where)
    return Checkpoint(
        path=path,
        format=_format(files, path, names.spelling, any(entry.scale is not None for entry in entries.values())),
        variant=variant_of(config, where),
        weights=kind,
        available=tuple(state_dicts),
        config=config,
        entries=entries,
        spec=_spec(metadata_json(metadata, "salt", where), where)
        or recipe
        or _family_spec(path)
        or wan22_spec(path, config),
        size=trained_size(path, metadata),
        metadata=metadata,
        ignored=(*ignored, *names.beside),
    )


def read_spec(path: str | Path) -> StudentSpec | None:
    """The student's recipe in the metadata of a weight file, or that of a released file by its name; None without one.

    No weights are read. Raises `CheckpointError` for a damaged file and for a recipe that is none.
    """
    path = Path(path)
    recipe = _spec(metadata_json(read_metadata(path), "salt", str(path)), str(path))
    return recipe or RELEASED.get(path.stem, ("auto", None))[1] or _family_spec(path)


def _family_spec(path: Path) -> StudentSpec | None:
    family = family_of(path)
    return None if family is None else family.spec


def _state_dicts(content: dict[str, Any], file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts in a weight file, by kind of weights. What else the file holds is left alone."""
    refuse_nvfp4(content, file)
    if any(key in content for key in LORA_KEYS) and not any(key in content for key in WEIGHTS_KEYS):
        raise CheckpointError(f"{file} is {A_LORA}")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, kind in WEIGHTS_KEYS.items():
        tensors = _tensors(content.get(key))
        if tensors and kind not in found:
            found[kind] = tensors
    if not found and (tensors := _tensors(content)):
        found = _by_prefix(tensors) or {"regular": tensors}
    if not found:
        keys = shorten(map(str, content)) or "nothing"
        raise CheckpointError(f"{file} holds {keys}; expected weights by name, or {', '.join(WEIGHTS_KEYS)}")
    return {kind: split_fused(tensors) for kind, tensors in found.items()}


def _by_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of a flat training checkpoint, whose names begin with `generator.` and the like; {} of others."""
    if not any(name.startswith(FLAT_PREFIXES) for name in tensors):
        return {}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, kind in WEIGHTS_KEYS.items():
        own = {name.removeprefix(f"{key}."): x for name, x in tensors.items() if name.startswith(f"{key}.")}
        if own:
            found.setdefault(kind, own)
    return found


def _tensors(value: Any) -> dict[str, torch.Tensor]:
    """The weights of a state dict, without counters (`step`, `n_averaged`) and what is no tensor."""
    if not isinstance(value, dict):
        return {}
    return {
        str(name): tensor
        for name, tensor in value.items()
        if isinstance(tensor, torch.Tensor) and ("." in str(name) or tensor.numel() > 1)
    }


def _ignored(content: dict[str, Any], kind: str, used: dict[str, torch.Tensor]) -> list[str]:
    """Names of what lies beside the weights in a file: `critic`, or `generator: step`."""
    key = next((key for key, value in WEIGHTS_KEYS.items() if value == kind and _tensors(content.get(key))), None)
    if key is None:
        prefixes = ("", *(f"{key}." for key, value in WEIGHTS_KEYS.items() if value == kind))
        others = [name for name in content if all(name.removeprefix(p) not in used for p in prefixes)]
        return [name for name in others if not is_fused(name)]
    beside = [name for name, value in content.items() if name not in WEIGHTS_KEYS or not _tensors(value)]
    return beside + [f"{key}: {name}" for name in map(str, content[key]) if name not in used and not is_fused(name)]


def _choose_weights(state_dicts: dict[str, dict[str, torch.Tensor]], weights: str, file: Path) -> str:
    candidates = ("ema", "regular") if weights == "auto" else (weights,)
    chosen = next((kind for kind in candidates if kind in state_dicts), None)
    if chosen is None:
        raise CheckpointError(f"{file} has no {' or '.join(candidates)} weights; it has {', '.join(state_dicts)}")
    return chosen


def _spec(facts: dict[str, Any], where: str) -> StudentSpec | None:
    try:
        return StudentSpec.from_dict(facts) if facts else None
    except ValueError as error:
        raise CheckpointError(f"{where}: its metadata `salt` is not a student's recipe: {error}") from error


def _entry(file: Path, raw: str, tensors: dict[str, torch.Tensor], where: str) -> Entry:
    tensor, stem = tensors[raw], raw.removesuffix(".weight")
    scale = next((stem + end for end in SCALES if stem != raw and stem + end in tensors), None)
    if not tensor.is_floating_point():
        raise CheckpointError(f"{where}: {raw} is stored as {tensor.dtype}, a quantisation that only ComfyUI reads")
    if scale and tensors[scale].numel() not in (1, tensor.shape[0]):
        raise CheckpointError(
            f"{where}: {raw} has scales of shape {list(tensors[scale].shape)}; expected one, or one per output channel"
        )
    # A copy: the tensor itself would keep its file mapped.
    return Entry(file, raw, tuple(tensor.shape), tensor.dtype, tensors[scale].clone() if scale else None)


def _weight(tensor: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """fp8 weights converted to bfloat16, which models compute in; everything else stays memory-mapped."""
    if scale is not None:
        return (tensor.float() * scale.float().reshape(-1, *[1] * (tensor.ndim - 1))).bfloat16()
    return tensor.bfloat16() if tensor.dtype in FLOAT8 else tensor


def _format(files: list[Path], path: Path, spelling: str, scaled: bool) -> str:
    kind = "safetensors" if files[0].suffix in (".safetensors", ".sft") else "torch"
    kind = f"{len(files)} {kind} files" if len(files) > 1 else f"{kind} file"
    return f"{kind}{' in a folder' if path.is_dir() else ''}, {spelling} names{', scaled fp8' if scaled else ''}"
