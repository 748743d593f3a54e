"""The fused kernels as code for a GPU: Triton brings a compiler and an assembler, which need no GPU."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from salt.acceleration.kernels.device import memory, modulation
from salt.acceleration.kernels.launching import padded, warps
from salt.acceleration.kernels.memory_ops import shape_options

POINTERS = dict.fromkeys(("x", "y", "q", "k", "v", "q_weight", "k_weight", "out", "q_out", "keys", "values"), "*bf16")
POINTERS |= dict.fromkeys(("weight", "bias", "scale", "shift", "gate", "cos", "sin"), "*fp32") | {"slots": "*i64"}
STORED = {"model": ("*bf16", None), "int8": ("*i8", "*fp32"), "fp8": ("*u8", "*fp32"), "int4": ("*u8", "*fp16")}


def compiled(kernel: Any, capability: int, num_warps: int, constants: dict[str, Any], types: dict[str, str]) -> Any:
    """A kernel compiled for bfloat16 tokens; what is None is an argument that is not given."""
    signature = {
        name: "constexpr" if name in constants else types.get(name, "fp32" if name == "eps" else "i32")
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})


def modulation_code(capability: int, width: int) -> list[Any]:
    """The kernels of norms and residuals."""
    block = padded(width)
    modulated = dict(AFFINE=False, MODULATED=True, BLOCK=block, weight=None, bias=None)
    affine = dict(AFFINE=True, MODULATED=False, BLOCK=block, scale=None, shift=None)
    norm, residual = modulation.modulated_norm_kernel, modulation.gated_residual_kernel
    made = [compiled(norm, capability, warps(block), constants, POINTERS) for constants in (modulated, affine)]
    return [*made, compiled(residual, capability, warps(block), {"BLOCK": block}, POINTERS)]


def memory_code(capability: int, heads: int, precision: str) -> list[Any]:
    """The kernels that write and read a memory of this precision, with heads of 128."""
    constants: dict[str, Any] = {**shape_options(heads, 128, 32), "PRECISION": precision, "SLOTS": True}
    num_warps = constants.pop("num_warps")
    codes, scale = STORED[precision]
    types = POINTERS | {"ring_k": codes, "ring_v": codes}
    if scale is None:
        constants |= {"ring_k_scale": None, "ring_v_scale": None}
    else:
        types |= {"ring_k_scale": scale, "ring_v_scale": scale}
    write = dict(READ=True, WRITE=True, ROTATE_STORED=True)
    return [
        compiled(memory.rotate_and_write_kernel, capability, num_warps, constants | write, types),
        compiled(memory.read_kernel, capability, num_warps, constants | {"ROTATE": True}, types),
    ]
