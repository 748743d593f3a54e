"""Show this machine's driver, torch, attention back ends, GPU, ComfyUI, models and memory plan, as text to copy."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..io.printable import one_line, printable

PACKAGES = (
    *("diffusers", "transformers", "accelerate", "safetensors", "torchao", "peft", "aiohttp", "av"),
    *("triton", "flash-attn-3", "flash-attn", "sageattention"),
)
HEAD_DIM = 128  # of every Wan student
MODEL_SUFFIXES = (".safetensors", ".sft", ".pt", ".pth")
MOST_MODELS = 20
SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader")
SMI_SECONDS = 20


def add_arguments(command: argparse.ArgumentParser) -> None:
    """No options: everything that can be found is shown."""


def run(arguments: argparse.Namespace) -> None:
    for name, value in findings():
        print(f"{name}: {printable(value)}")


def findings() -> Iterator[tuple[str, str]]:
    """(what, found) of this machine. What is missing is said, never raised."""
    yield (
        "salt",
        f"{package_version('salt-video') or 'not installed, a checkout'}, {Path(__file__).resolve().parents[2]}",
    )
    yield "system", f"{platform.platform()}, Python {platform.python_version()}"
    yield "driver", driver()
    yield from torch_findings()
    yield from attention_findings()
    yield "packages", ", ".join(f"{p} {v}" for p in PACKAGES if (v := package_version(p)) is not None) or "none"
    comfyui = comfyui_folder()
    named = os.environ.get("COMFYUI_PATH")
    if named and comfyui != Path(named):
        yield "COMFYUI_PATH", f"{named}: found no comfyui_version.py in it, expected ComfyUI's folder"
    yield "ComfyUI", "not found (COMFYUI_PATH names its folder)" if comfyui is None else comfyui_text(comfyui)
    models = model_files(comfyui)
    for path in models[:MOST_MODELS]:
        yield "model", f"{path}: {model_text(path)}"
    if len(models) > MOST_MODELS:
        yield "model", f"and {len(models) - MOST_MODELS} more files"
    if not models:
        yield "model", "none found; salt-tiny is included, `salt pull salt-ll` downloads another"
    yield "memory plan", plan_text()


def driver() -> str:
    """GPUs with their driver, as nvidia-smi has them."""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=SMI_SECONDS, check=False, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi cannot be run ({type(error).__name__})"
    return one_line(done.stdout.strip() or done.stderr.strip() or "nvidia-smi says nothing")


def torch_findings() -> Iterator[tuple[str, str]]:
    """torch with its CUDA and cuDNN, and the devices that it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA that cannot be loaded
        yield "torch", f"cannot be imported: {one_line(str(error))}"
        return
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    yield "cuDNN", str(cudnn) if cudnn else "not available"
    if not torch.cuda.is_available():
        yield "VRAM", "torch sees no CUDA device"
        return
    for index in range(torch.cuda.device_count()):
        try:
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            yield f"cuda:{index}", f"cannot be used: {one_line(str(error))}"
            continue
        capability = f"compute capability {properties.major}.{properties.minor}"
        yield f"cuda:{index}", f"{properties.name}, {capability}, VRAM {total / 1e9:.1f} GB, {free / 1e9:.1f} GB free"


def attention_findings() -> Iterator[tuple[str, str]]:
    """Attention's back ends, as a run would choose among them on the first GPU (`salt.acceleration`)."""
    try:
        import torch

        from ..acceleration.attention_backend import BACKENDS, card_of, choose, installed_backends, why_not
        from ..acceleration.attention_backend import PACKAGES as SOURCES

        card = card_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        installed = installed_backends()
    except (ImportError, OSError, RuntimeError) as error:
        yield "attention", f"its back ends cannot be examined: {one_line(str(error))}"
        return
    for name in BACKENDS:
        found = f"{SOURCES[name]}, {'installed' if name in installed else 'not installed'}"
        fault = why_not(name, card, installed, torch.bfloat16, HEAD_DIM)
        yield f"attention {name}", f"{found}, but {fault}" if fault is not None and name in installed else found
    yield "attention", f"auto takes {choose(card, installed, torch.bfloat16, HEAD_DIM)[0]} for a bfloat16 student here"


def package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def comfyui_folder() -> Path | None:
    """ComfyUI's folder: that of COMFYUI_PATH, the one that this pack is installed in, or one in the home folder."""
    pack = Path(__file__).resolve().parents[2]
    around = [pack.parent.parent] if pack.parent.name == "custom_nodes" else []
    named = [Path(path)] if (path := os.environ.get("COMFYUI_PATH")) else []
    candidates = [*named, *around, Path.home() / "ComfyUI", Path.cwd()]
    return next((folder for folder in candidates if (folder / "comfyui_version.py").is_file()), None)


def comfyui_text(folder: Path) -> str:
    text = read_start(folder / "comfyui_version.py")
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    packs = [path.name for path in files_in(folder / "custom_nodes") if path.is_dir() and not path.name.startswith("_")]
    salt = "this pack is in it" if any("salt" in name.lower() for name in packs) else "this pack is not in custom_nodes"
    return f"{found[1] if found else 'version unknown'}, {folder}, {salt}, {len(packs)} packs"


def model_files(comfyui: Path | None) -> list[Path]:
    """Weight files and pipeline folders where `salt pull` and ComfyUI put them."""
    from ..io.hub import models_folder

    folders = [comfyui / "models" / name for name in ("diffusion_models", "unet")] if comfyui else []
    found = [path for folder in folders for path in files_in(folder) if path.suffix in MODEL_SUFFIXES]
    for repository in files_in(models_folder()):
        found += [path for path in files_in(repository / "checkpoints") if path.suffix in MODEL_SUFFIXES]
        if (repository / "transformer").is_dir():
            found.append(repository)
    return found


def files_in(folder: Path) -> list[Path]:
    """Of a folder that may be missing or not readable."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def read_start(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:10_000]
    except OSError:
        return ""


def model_text(path: Path) -> str:
    """What a file is, as `salt inspect` finds it, in one line."""
    from ..checkpoints import describe

    try:
        found = describe(path)
    except (ValueError, OSError, RuntimeError) as error:
        return f"not read: {one_line(str(error))}"
    if "parameters" not in found:
        return f"{found['format']}, {found['bytes'] / 1e9:.1f} GB"
    return (
        f"{found['variant']}, {found['parameters'] / 1e9:.1f} B parameters, {found['dtype']}, {found['weights']} "
        f"weights, {found['format']}, {found['bytes'] / 1e9:.1f} GB"
    )


def plan_text() -> str:
    """The plan of a 1.3B student on the first GPU, or on a small card where there is none."""
    try:
        import torch

        from ..planning import PlanSettings, memory_plan, planned_model
        from ..planning.report import gb, plan_line
        from .plan import device_bytes

        vram = device_bytes()
        card = "this card" if torch.cuda.is_available() else f"a card of {gb(vram)}, as there is none here"
        return f"1.3B on {card}: {plan_line(memory_plan(planned_model('1.3B'), PlanSettings()), vram)}"
    except (ImportError, OSError, RuntimeError) as error:
        return f"cannot be made: {one_line(str(error))}"
