"""Seeded mutations of files: bytes, and the values of JSON files and of the JSON in a safetensors file's header."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

NASTY: tuple[Any, ...] = (
    *(None, True, "", "x", "\x1b[31m[/x]", "../../x", "9" * 5000, [], {}, [[]], -1, 0, 1, 10**9, 10**30, 1e300),
    *(float("nan"), float("inf"), [1] * 50, {"a": {"b": None}}),
)


def mutate(path: Path, metadata: str, original: bytes, rng: random.Random) -> None:
    """Change a file once. metadata: the JSON text in the header that is changed, "" for the file itself."""
    if metadata:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
        values = json.loads(header.get(metadata, "{}")) or {"num_heads": 2, "num_layers": 2, "eps": 1e-6}
        header[metadata] = json_text(mutate_json(values, rng), rng)
        tensors = {name: x.clone() for name, x in load_file(path).items()}  # not mapped to the file that is replaced
        save_file(tensors, path, header)
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json_text(mutate_json(json.loads(original), rng), rng))
    else:
        path.write_bytes(mutate_bytes(original, rng))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Changes near the beginning more often, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = min(int(rng.random() ** 3 * len(changed)), max(len(changed) - 1, 0))
        match rng.randrange(5):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
            case 2:
                del changed[at : at + rng.choice((1, 4, 100))]
            case 3:
                del changed[at:]
            case _:
                changed[at:at] = changed[at : at + rng.choice((4, 100))]
    return bytes(changed)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """The value with one place replaced, removed or nested."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_json(value[at], rng), *value[at + 1 :]]
    return rng.choice(NASTY)


def json_text(value: Any, rng: random.Random) -> str:
    text = json.dumps(value)
    hostile = rng.choice(("[" * 20_000, '{"a":' * 20_000, "9" * 5000))
    return text.replace("3", hostile, 1) if rng.random() < 0.05 else text
