"""The list of checks, and running them."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import diffusers
import torch

from ..acceleration.attention_backend import BACKENDS, installed_backends
from ..memory.policy import PRECISIONS
from . import fast_paths, kernels, speed
from .machine import Machine
from .outcome import NotRun, Outcome, Row, SelfTestReport


@dataclass(frozen=True)
class Check:
    """A row of the report. Raises NotRun where this machine cannot run it; errors are failures."""

    name: str
    run: Callable[[Machine], Outcome]


def checks(device: torch.device) -> tuple[Check, ...]:
    """All checks, in the order of the report."""
    made = [
        Check("golden rollouts, float32", partial(fast_paths.golden_rollouts, dtype=torch.float32)),
        Check("golden rollouts, bfloat16", partial(fast_paths.golden_rollouts, dtype=torch.bfloat16)),
        Check("fused context pass", fast_paths.fused_context),
        Check("CUDA graphs", fast_paths.cuda_graphs),
        Check("memory on the CPU", fast_paths.cpu_residence),
        *(Check(f"{p} memory", partial(fast_paths.quantised_memory, precision=p)) for p in fast_paths.PRECISIONS),
        Check("tiled decode", fast_paths.tiled_decode),
        Check("decoding stream", fast_paths.decoding_stream),
        *(Check(f"attention {n}", partial(fast_paths.attention_backend, name=n)) for n in BACKENDS),
        Check("kernel: norm and modulation", partial(kernels.kernel, pairs=kernels.norm)),
        Check("kernel: gated residual", partial(kernels.kernel, pairs=kernels.residual)),
        *(
            Check(f"kernels: {p} memory", partial(kernels.kernel, pairs=partial(kernels.memory, precision=p)))
            for p in PRECISIONS
        ),
        Check("kernels: rollouts", kernels.rollouts),
        Check("compiled blocks", _not_run("compiling takes longer than this command may; `--prefer fast` does it")),
        Check("ceilings", speed.rates),
        Check("salt-tiny", speed.tiny_blocks),
    ]
    if device.type == "cuda":
        made.append(Check("random 1.3B, 832x480", speed.wan_blocks))
    else:
        made.append(Check("random 1.3B, 832x480", _not_run(f"the device is {device.type}, expected a GPU")))
    return tuple(made)


def _not_run(reason: str) -> Callable[[Machine], Outcome]:
    def run(machine: Machine) -> Outcome:
        raise NotRun(reason)

    return run


def run_checks(
    device: torch.device, chosen: tuple[Check, ...], show: Callable[[Row], None] = lambda row: None
) -> SelfTestReport:
    """Run the checks one after another; one that fails does not stop the others. show: called with every row."""
    machine, rows, began = Machine(device), [], time.perf_counter()
    for check in chosen:
        start = time.perf_counter()
        try:
            outcome = check.run(machine)
        except NotRun as reason:
            outcome = Outcome("not run", str(reason))
        except (ArithmeticError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            outcome = Outcome("failed", f"{type(error).__name__}: {error}".splitlines()[0][:300])
        rows.append(Row(check.name, outcome, time.perf_counter() - start))
        show(rows[-1])
    return SelfTestReport(environment(device), tuple(rows), time.perf_counter() - began)


def environment(device: torch.device) -> dict[str, str]:
    """Device and versions; nothing that names the user or a folder."""
    try:
        version = importlib.metadata.version("salt-video")
    except importlib.metadata.PackageNotFoundError:
        version = "a folder that is not installed"
    cuda = device.type == "cuda"
    where = {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "salt": version,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "diffusers": diffusers.__version__,
        "attention": ", ".join(n for n in BACKENDS if n in installed_backends()),
    }
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        where["memory"] = f"{properties.total_memory / 1e9:.1f} GB, capability {properties.major}.{properties.minor}"
    return where
