"""Fused kernels beside their twins under Triton's interpreter; `python -m tests.helpers.kernel_cases CASE` prints JSON.

A process of its own, because Triton reads TRITON_INTERPRET when it is imported. The interpreter takes milliseconds per
program, and there is one per token: shapes are tiny.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

CPU = torch.device("cpu")
MANTISSA = {"bfloat16": 7, "float16": 10, "float32": 23}
SOME = (
    *(f"{what} {dtype}" for what in ("norm", "residual") for dtype in MANTISSA),
    *(f"memory sink:1,window:3{precision} bfloat16" for precision in ("", ",int8", ",fp8", ",int4")),
    "memory sink:1,window:3 float32",
    "memory relative:1,window:3 bfloat16",
    "memory relative:1,window:3,int8 float16",
    "memory rebuild:3 bfloat16",
    "student float32",
)
POLICIES = ("full", "window:3", "sink:1,window:3", "relative:1,window:3", "cyclic:3", "blended:1,window:3", "rebuild:3")
ALL = tuple(
    f"memory {policy}{precision} {dtype}"
    for policy in POLICIES
    for precision in ("", ",int8", ",fp8", ",int4")
    for dtype in ("bfloat16", "float32")
)


def ulps(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in units of the last place, beside 1e-6 of the largest number for those near zero."""
    digits = MANTISSA[str(expected.dtype).removeprefix("torch.")]
    found, expected = found.double(), expected.double()
    unit = torch.exp2(expected.abs().clamp_min(1e-30).log2().floor() - digits)
    return ((found - expected).abs() / (unit + 1e-6 * expected.abs().max())).max().item()


def case_pairs(name: str) -> Iterator[Any]:
    from salt.acceleration.kernels import trials
    from salt.memory import MemoryGeometry, MemoryPolicy

    what, *policy, dtype_name = name.split(" ")
    dtype = getattr(torch, dtype_name)
    if what == "student":
        return student_pairs(dtype)
    if what == "memory":
        # No power of two where there need be none: int4 has groups of 32. Quantised memories take the longest.
        precision, batch = MemoryPolicy.parse(policy[0]).precision, 2 if name.endswith("3 bfloat16") else 1
        tokens = 3 if precision == "model" else 2
        geometry = MemoryGeometry(1, 3, 64 if precision == "int4" else 10, 1, tokens, batch)
        return trials.memory_pairs(MemoryPolicy.parse(policy[0]), geometry, CPU, dtype, frames=1)
    pairs: Callable[..., Iterator[Any]] = {"norm": trials.norm_pairs, "residual": trials.residual_pairs}[what]
    return pairs(CPU, dtype, 36, frames=2, tokens=2)


@torch.no_grad()
def student_pairs(dtype: torch.dtype) -> Iterator[Any]:
    """A whole student with all kernels beside one without: a context pass, and a denoising step after it."""
    from salt.acceleration.kernels.choice import ALL_KERNELS, use_kernels
    from salt.acceleration.kernels.chosen import NO_KERNELS
    from salt.acceleration.kernels.trials import Pair
    from salt.conditioning import Conditioning
    from salt.memory import MemoryPolicy
    from salt.model_input import ModelInput
    from salt.models.causal_model import CausalModel
    from salt.models.transformer_salt import SaltTransformer3DModel

    torch.manual_seed(0)
    student = SaltTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=1
    ).to(dtype)
    text = Conditioning(torch.randn(1, 4, 8, dtype=dtype))
    x, t = torch.randn(1, 16, 2, 2, 4, dtype=dtype), torch.tensor([[400.0, 500.0]])
    flows = []
    for kernels in (ALL_KERNELS, NO_KERNELS):
        use_kernels(student, kernels)
        memory = student.new_memory(MemoryPolicy.parse("sink:2,window:4"), 1, 2, 4)
        passing = memory.open(write=2)
        CausalModel(student)(ModelInput(x, t, text, passing))
        memory.commit(passing)
        flows.append(CausalModel(student)(ModelInput(x, t, text, memory.open(read=2))))
    yield Pair("flow", *flows)


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    torch.set_num_threads(1)
    results = {}
    for name in sys.argv[1:]:
        results[name] = [
            (p.name, p.stored, ulps(p.found, p.expected), p.error, (p.found != p.expected).double().mean().item())
            for p in case_pairs(name)
        ]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
