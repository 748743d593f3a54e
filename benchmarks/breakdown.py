"""Profile of one forward of Wan 2.1 1.3B over a full window: share of the time by kind of operation.

`python -m benchmarks.breakdown [--layers 2] [--prefer fast]` prints the shares; on a CPU a few layers represent the
thirty identical ones. Times are the operators' own, as the profiler reports them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import get_args

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.generation import RandomWan, random_wan
from salt.acceleration.presets import Preference
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from salt.planning.arithmetic import forward_flops
from salt.selftest.timing import timed
from train.config.model_configs import WAN_1_3B

OPERATION_KINDS = {
    "linear layers": ("addmm", "mm", "linear", "onednn", "scaled_mm"),
    "attention": ("scaled_dot_product", "flash", "cudnn_attention", "efficient_attention"),
    "norms": ("layer_norm", "rms_norm", "native_layer"),
    "memory: write and gather": ("index_copy", "index_select", "cat"),
    "casts and copies": ("copy_", "clone", "_to_copy", "contiguous"),
}
OTHER_OPERATIONS = "modulation, rotation, activation, residuals"


def kind_of(name: str) -> str:
    """The kind of operation of a profiler event, by its name."""
    name = name.removeprefix("aten::").removeprefix("_").lower()
    return next(
        (kind for kind, parts in OPERATION_KINDS.items() if any(name.startswith(p.strip("_")) for p in parts)),
        OTHER_OPERATIONS,
    )


@torch.no_grad()
def shares(layers: int, prefer: Preference, policy: str = "sink:3,window:12") -> tuple[dict[str, float], float, float]:
    """Share of the time by kind, seconds of the forward, and its floating-point operations per second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = random_wan(device, RandomWan({**WAN_1_3B, "num_layers": layers}, umt5=None))
    pipe.set_acceleration(prefer)
    memory = pipe.transformer.new_memory(MemoryPolicy.parse(policy), 1, 60, 104)
    model, text = (
        CausalModel(pipe.transformer),
        Conditioning(pipe.prompt_encoder.encode([""]).to(device, torch.bfloat16)),
    )
    x = torch.randn(1, 16, 3, 60, 104, device=device, dtype=torch.bfloat16)
    t = torch.full((1, 3), 500.0, device=device)
    for _ in range(4):
        memory_pass = memory.open(write=3)
        model(ModelInput(x, t, text, memory_pass))
        memory.commit(memory_pass)

    def forward() -> None:
        model(ModelInput(x, t, text, memory.open(read=3)))

    forward()
    seconds = min(timed(forward, device) for _ in range(3))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        forward()
    seconds_by_kind: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, whose time is counted in its operator
        self_time = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        seconds_by_kind[kind_of(event.key)] += self_time
    total = sum(seconds_by_kind.values())
    work = sum(forward_flops(pipe.transformer.config, 3 * 1560, 12 * 1560, 512).values())
    return (
        {kind: s / total for kind, s in sorted(seconds_by_kind.items(), key=lambda x: -x[1])},
        seconds,
        work / seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.breakdown", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--layers", type=int, default=30 if torch.cuda.is_available() else 2)
    parser.add_argument("--prefer", choices=get_args(Preference), default="exact")
    arguments = parser.parse_args()
    share_by_kind, seconds, rate = shares(arguments.layers, arguments.prefer)
    print(f"{arguments.layers} layers, {arguments.prefer}: {seconds:.3g} s, {rate / 1e12:.3g} TFLOP/s")
    for kind, share in share_by_kind.items():
        print(f"{share:6.1%}  {kind}")


if __name__ == "__main__":
    main()
