"""torch's zip archives, checked before torch reads them: what they claim may not exceed what they hold.

With `weights_only=True` torch runs no code, but it allocates what a file asks for: `bytearray(8 * 10**9)`, a tensor of
one stored value and a stride of 0, nested tuples that share their parts.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

MAX_PROGRAM_BYTES = 64 * 2**20  # of the pickle: about 100 bytes per tensor
MAX_TUPLE_ITEMS = 10_000  # nested ones counted as often as they appear
MAX_SHARING = 2  # all tensors of a file together may claim this many times its bytes: tied weights share storage
KNOWN_NAMES = {
    *("collections OrderedDict", "collections Counter", "collections defaultdict", "_codecs encode"),
    *("torch Size", "torch device", "torch.serialization _get_layout", "torch.nn.parameter Parameter"),
    *("__builtin__ set", "builtins set", "__builtin__ dict", "builtins dict", "torch._tensor _rebuild_from_type_v2"),
    *(
        f"torch._utils _rebuild_{kind}"
        for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
    ),
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype) or "Storage" in name),
    "torch.storage UntypedStorage",
}


class ArchiveError(ValueError):
    """An archive that claims more than it holds, or holds something else than tensors. Without the file's name."""

    __module__ = "salt.io.torch_archive"


def check_archive(path: Path) -> None:
    """Raise ArchiveError for an archive that torch must not read, BadZipFile for a damaged one."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > size:
            raise ArchiveError(f"claims more bytes than the file's {size:,}: its members are compressed or overlap")
        for member in members:
            if member.filename.rpartition("/")[2] == "data.pkl":
                if member.file_size > MAX_PROGRAM_BYTES:
                    raise ArchiveError(f"found a data.pkl of {member.file_size:,} bytes, expected tensors")
                try:
                    _check_program(archive.read(member))
                except (IndexError, UnicodeDecodeError) as error:
                    raise zipfile.BadZipFile(f"its data.pkl is damaged: {error}") from None


def check_tensors(content: Mapping[object, object], size: int) -> None:
    """Raise ArchiveError for tensors of `content`, or of the mappings in it, that claim more than `size` bytes hold."""
    for group in (content, *(value for value in content.values() if isinstance(value, dict))):
        total = 0
        for name, tensor in group.items():
            if not isinstance(tensor, torch.Tensor):
                continue
            if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
                raise ArchiveError(f"{name!r:.80} is a tensor of another layout, expected a plain one")
            claimed = tensor.numel() * tensor.element_size()
            if claimed > tensor.untyped_storage().nbytes():
                raise ArchiveError(
                    f"{name!r:.80} claims {claimed:,} bytes, and {tensor.untyped_storage().nbytes():,} are stored"
                )
            total += claimed
        if total > MAX_SHARING * size:
            raise ArchiveError(f"its tensors claim {total:,} bytes, and the file has {size:,}")


def _check_program(program: bytes) -> None:
    """Follow a pickle's stack without running it: how large its tuples become, and which names it calls."""
    stack: list[int | None] = []  # items of a tuple, 1 for anything else; None is a mark
    memo: dict[object, int | None] = {}
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, 1))
        elif name == "MARK":
            stack.append(None)
        elif name == "GLOBAL" and argument not in KNOWN_NAMES:
            raise ArchiveError(
                f"holds more than tensors, possibly code; none of it was run: {str(argument).replace(' ', '.'):.100}"
            )
        else:
            taken = _take(stack, operation)
            items = 1 + sum(taken) if "TUPLE" in name else 1
            if items > MAX_TUPLE_ITEMS:
                raise ArchiveError(f"holds a tuple of more than {MAX_TUPLE_ITEMS:,} items, expected tensors")
            stack.extend([items] * len(operation.stack_after))


def _take(stack: list[int | None], operation: pickletools.OpcodeInfo) -> list[int]:
    """Pop what an operation uses."""
    before, taken = operation.stack_before, []
    count = len(before)
    if pickletools.markobject in before:
        while (item := stack.pop()) is not None:
            taken.append(item)
        count = before.index(pickletools.markobject)
    for _ in range(count):
        taken.append(stack.pop() or 1)
    return taken
