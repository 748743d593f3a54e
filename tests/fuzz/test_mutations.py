"""Seeded mutations of every kind of file that is read: each gives a result, or one line that names the file.

`pytest -m slow tests/fuzz`; SALT_FUZZ_COUNT and SALT_FUZZ_SECONDS set the number of mutations and the time for all.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from salt import cli
from salt.checkpoints import describe, read_checkpoint, save_wan
from salt.cli.run_workflow import as_prompt, read_graph
from salt.io.model_folders import check_model_folder
from salt.io.prompt_files import read_prompts
from salt.io.video import read_image
from salt.memory import KVMemory, MemoryPolicy, load_memory, save_memory
from salt.pipeline.components import read_index
from salt.spec import StudentSpec
from tests.helpers import tiny_system
from tests.helpers.small_memory import GEOMETRY, write
from tests.salt.test_run_workflow import INFO, PROMPT, browser_graph
from train.config.loader import RECIPES, load_recipe

COUNT = int(os.environ.get("SALT_FUZZ_COUNT", "10000"))
SECONDS = float(os.environ.get("SALT_FUZZ_SECONDS", "540"))
HANGS_AFTER = 20.0  # seconds
LONGEST_ERROR = 500
NASTY: tuple[Any, ...] = (
    *(None, True, "", "x", "\x1b[31m[/x]", "../../x", "9" * 5000, [], {}, [[]], -1, 0, 1, 10**9, 10**30, 1e300),
    *(float("nan"), float("inf"), [1] * 50, {"a": {"b": None}}),
)


@dataclass(frozen=True)
class Kind:
    """A kind of file. file: the one that is mutated, in a folder of its own. read: with the folder's path."""

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    metadata: str = ""  # a JSON text in the header of a safetensors file, mutated as JSON


def student(path: Path) -> None:
    save_wan(tiny_system.student(text_dim=32), path, spec=StudentSpec())


def torch_file(path: Path) -> None:
    model = tiny_system.student(text_dim=32, num_attention_heads=1, attention_head_dim=128)
    torch.save({"generator": model.state_dict(), "step": 3}, path)


def sharded(path: Path) -> None:
    weights = tiny_system.student(text_dim=32, num_attention_heads=1, attention_head_dim=128).state_dict()
    save_file(dict(weights), path.parent / "a.safetensors")
    path.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")}))


@torch.no_grad()
def memory(path: Path) -> None:
    made = KVMemory(MemoryPolicy("sink", 12, 3), GEOMETRY)
    for _ in range(3):
        write(made)
    save_memory(made, path)


def picture(path: Path) -> None:
    import imageio.v3 as iio

    iio.imwrite(path, torch.randint(0, 255, (20, 30, 3), dtype=torch.uint8).numpy())


def index(path: Path) -> None:
    words = {"dim": 32, "max_length": 4, "vocabulary": ["a", "b"]}
    values = {
        "_class_name": "SaltPipeline",
        "words": words,
        "default_size": [32, 32],
        "student": StudentSpec().to_dict(),
    }
    path.write_text(json.dumps(values))


def both(path: Path) -> None:
    describe(path)
    read_checkpoint(path).state_dict  # noqa: B018 (reads every weight)


def prompt_of(path: Path) -> None:
    as_prompt(read_graph(path), INFO, path)


def folder(path: Path) -> None:
    check_model_folder(path.parent)
    read_index(path.parent)


def recipe(path: Path) -> None:
    path.write_text((RECIPES / "parts" / "tiny.yaml").read_text())


KINDS = {
    "safetensors": Kind("student.safetensors", student, both),
    "config": Kind("student.safetensors", student, both, "config"),
    "spec": Kind("student.safetensors", student, both, "salt"),
    "torch": Kind("student.pt", torch_file, both),
    "shards": Kind("model.safetensors.index.json", sharded, both),
    "memory": Kind("memory.safetensors", memory, load_memory),
    "memory_info": Kind("memory.safetensors", memory, load_memory, "salt_memory"),
    "index": Kind("model_index.json", index, folder),
    "prompt": Kind("prompt.json", lambda path: path.write_text(json.dumps(PROMPT)), prompt_of),
    "workflow": Kind("workflow.json", lambda path: path.write_text(json.dumps(browser_graph())), prompt_of),
    "recipe": Kind("recipe.yaml", recipe, load_recipe),
    "prompts": Kind("prompts.txt", lambda path: path.write_text("a red circle\na square\n"), read_prompts),
    "picture": Kind("picture.png", picture, read_image),
}


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


def mutate(path: Path, kind: Kind, original: bytes, rng: random.Random) -> None:
    if kind.metadata:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
        values = json.loads(metadata.get(kind.metadata, "{}")) or {"num_heads": 2, "num_layers": 2, "eps": 1e-6}
        metadata[kind.metadata] = json_text(mutate_json(values, rng), rng)
        save_file(load_file(path), path, metadata)
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json_text(mutate_json(json.loads(original), rng), rng))
    else:
        path.write_bytes(mutate_bytes(original, rng))


def fault(path: Path, kind: Kind) -> str:
    """What is wrong with how a file is read; empty where all is well."""
    began = time.monotonic()
    try:
        kind.read(path)
    except (ValueError, OSError, RuntimeError) as error:
        if str(path.parent) not in str(error) and path.name not in str(error):
            return f"unnamed file: {type(error).__name__}: {error!s:.200}"
        if len(str(error)) > LONGEST_ERROR + len(str(path)):
            return f"an error of {len(str(error))} characters: {error!s:.200}"
    except Exception as error:  # noqa: BLE001 (what this test looks for)
        return f"traceback: {type(error).__name__}: {error!s:.200}"
    seconds = time.monotonic() - began
    return f"took {seconds:.0f} s" if seconds > HANGS_AFTER else ""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_mutation_is_a_traceback(name: str, tmp_path: Path) -> None:
    kind, rng = KINDS[name], random.Random(f"{name} 0")
    path = tmp_path / kind.file
    kind.make(path)
    original, began, faults, tried = path.read_bytes(), time.monotonic(), {}, 0
    for i in range(COUNT // len(KINDS)):
        if time.monotonic() - began > SECONDS / len(KINDS):
            break
        path.write_bytes(original)
        mutate(path, kind, original, rng)
        tried += 1
        if found := fault(path, kind):
            faults.setdefault(found[:60], f"mutation {i}: {found}")
    print(f"{name}: {tried} mutations, {len(faults)} kinds of faults")
    assert not faults, "\n".join(faults.values())


@pytest.mark.slow
def test_the_command_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    for name in ("safetensors", "torch", "memory_info", "spec", "shards"):
        kind = KINDS[name]
        path = tmp_path / kind.file
        kind.make(path)
        original = path.read_bytes()
        for _ in range(100):
            path.write_bytes(original)
            mutate(path, kind, original, rng)
            code, error = cli.main(["inspect", str(path)]), capsys.readouterr().err
            assert code == 0 or (error.startswith("error: ") and error.count("\n") == 1 and len(error) < 420), error
