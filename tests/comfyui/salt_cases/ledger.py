"""A stock WanModel of true width through the adapter, on the fake device of `benchmarks.ledger`.

Streams, events, pinning and kernels are stubs there; loading by ComfyUI (low VRAM, dynamic VRAM) is not run.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from . import startup
from .session import FOLDER, PACK, run_case

sys.path.append(str(startup.ROOT))  # behind ComfyUI's own folder, whose `nodes` stays the first

from benchmarks.ledger import counting  # noqa: E402
from benchmarks.ledger.counting import Costs, Ledger  # noqa: E402
from benchmarks.ledger.fake_device import DEVICE, fake_cuda  # noqa: E402

counting.CODE = (*counting.CODE, f"{FOLDER}/", os.environ["COMFYUI_PATH"] + "/")  # where waits are looked for
SIZE, BLOCK, TEXT_TOKENS = (60, 104), 3, 512
WIDTH_1_3B = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "in_dim": 16,
    "out_dim": 16, "freq_dim": 256, "text_dim": 4096, "patch_size": (1, 2, 2), "window_size": (-1, -1),
    "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
LAYERS = 30


def wan(layers: int):
    """A MODEL of 1.3B's width in bfloat16 on the device."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.WAN21_T2V({**WIDTH_1_3B, "num_layers": layers})
    config.set_inference_dtype(torch.bfloat16, None)
    base = config.get_model({}, device=DEVICE)
    base.eval().requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(base, load_device=DEVICE, offload_device=torch.device("cpu"))
    base.current_patcher = patcher
    return base, patcher


def forward(layers: int, policy: str, form: str) -> dict[str, Any]:
    """One forward over a full window, behind one that makes what is kept for later ones."""
    import comfy.conds

    base, patcher = wan(layers)
    keep = PACK.memory.MemoryPolicy.parse(policy)
    model = PACK.comfy_model.ComfyModel(base, {"transformer_options": {}})
    geometry = PACK.comfy_model.memory_geometry(patcher, 1, *SIZE)
    memory = PACK.memory.KVMemory(keep, geometry, torch.bfloat16, DEVICE, keep.window)
    while memory.next_frame < keep.window:
        memory.commit(memory.open(write=BLOCK))
    text = comfy.conds.CONDRegular(torch.zeros(1, TEXT_TOKENS, 4096, dtype=torch.bfloat16, device=DEVICE))
    conds = [{"model_conds": {"c_crossattn": text}, "uuid": 0}]
    write, read = {"read": (0, BLOCK), "write": (BLOCK, 0), "fused": (BLOCK, BLOCK)}[form]
    with Ledger() as ledger:
        for _ in range(2):
            ledger.watch(t for layer in memory.allocated(memory.next_frame).buffers for t in layer)
            ledger.start_again()
            before = ledger.now
            memory_pass = memory.open(**({"write": write} if write else {}), **({"read": read} if read else {}))
            frames = write + read
            x = torch.zeros(1, 16, frames, *SIZE, device=DEVICE)
            t = torch.full((1, frames), 500.0, device=DEVICE)
            model(PACK.model_input.ModelInput(x, t, conds, memory_pass))
            if write:
                memory.commit(memory_pass)
        phase = ledger.phase
        return {
            "costs": phase.costs, "waits": dict(phase.waits), "reads": sorted(phase.reads),
            "transient": phase.peak - before, "memory": memory.nbytes,
        }  # fmt: skip


def forwards() -> dict[str, Any]:
    """The versions that counted, and costs at full depth by policy and form, from two depths."""
    import comfy.model_management
    from comfyui_version import __version__

    comfy.model_management.get_free_memory = lambda *device, **options: 10**11
    found: dict[str, dict[str, Any]] = {}
    with fake_cuda(), torch.no_grad():
        for policy, form in (
            ("sink:3,window:12", "read"),
            ("sink:3,window:12", "fused"),
            ("relative:3,window:12,int8", "read"),
            ("sink:3,window:12,cpu", "write"),
        ):
            low, high = forward(2, policy, form), forward(3, policy, form)
            costs: Costs = low["costs"] + (high["costs"] - low["costs"]) * (LAYERS - 2)
            found[f"{policy} {form}"] = {
                "launches": costs.launches,
                "GB": costs.bytes / 1e9,
                "TFLOP": costs.flops / 1e12,
                "to host": costs.to_host / 1e9,
                "to device": costs.to_device / 1e9,
                "transient": high["transient"] / 1e9,
                "waits": high["waits"],
                "reads": high["reads"],
            }
    return {"comfyui": __version__, "torch": torch.__version__, "cases": found}


if __name__ == "__main__":
    run_case(forwards)
