"""Starts ComfyUI's modules on the CPU, imports the pack as ComfyUI does, and loads the golden model as a MODEL."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "golden"
HEADS, TEXT_DIM = 2, 64  # of the golden model; core would take a head for 128 wide and text for 4096


def start(*flags: str) -> None:
    """ComfyUI's modules from COMFYUI_PATH, as `main.py` with these flags (none: `--cpu`) would have them."""
    sys.argv = [sys.argv[0], *(flags or ["--cpu"])]
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # noqa: F401


def enter(folder: Path) -> ModuleType:
    """The pack, imported from a link in a custom_nodes folder by the name core gives it (no identifier)."""
    home = folder / "custom_nodes" / "ComfyUI-Salt"
    home.parent.mkdir(parents=True, exist_ok=True)
    if not home.exists():
        home.symlink_to(ROOT, target_is_directory=True)
    name = str(home).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, home / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_pack(folder: Path) -> SimpleNamespace:
    """The modules of the pack that most cases need."""
    name = enter(folder).__name__

    def submodule(path: str) -> ModuleType:
        return importlib.import_module(f"{name}.{path}")

    adapter = ("comfy_model", "sampler", "fingerprint", "self_attention_patch")
    engine = (
        "memory", "rollout", "schedule", "noise", "conditioning", "checkpoints", "checkpoints.wan_keys",
        "models.causal_model", "model_input",
        "models.transformer_salt",
    )  # fmt: skip
    return SimpleNamespace(
        **{n: submodule(f"nodes.adapter.{n}") for n in adapter},
        **{n.rpartition(".")[2]: submodule(f"salt.{n}") for n in engine},
    )


def save_golden(path: Path, **extra) -> Path:
    """The golden model as a Wan-named file whose metadata says what core cannot see in the shapes."""
    from safetensors.torch import load_file, save_file

    weights = {**load_file(GOLDEN / "tiny_a.safetensors"), **extra}
    config = {"transformer": {"num_heads": HEADS, "text_dim": TEXT_DIM}}
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={"config": json.dumps(config)})
    return path


@contextmanager
def golden_shape() -> Iterator[None]:
    """While open, core's loader takes a model for the golden one: ComfyUI before 0.27 ignores the metadata of a Wan
    file, so what it says is put into what core detects."""
    import comfy.model_detection as detection

    detect = detection.detect_unet_config

    def with_heads(*args, **kwargs):
        return {**detect(*args, **kwargs), "num_heads": HEADS, "text_dim": TEXT_DIM}

    detection.detect_unet_config = with_heads
    try:
        yield
    finally:
        detection.detect_unet_config = detect


def load(path: Path, plain: bool = False, **options):
    """A MODEL by core's own loader. plain: a file whose shapes say everything."""
    import comfy.sd

    with nullcontext() if plain else golden_shape():
        return comfy.sd.load_diffusion_model(str(path), model_options=options)
