"""Long rollouts of salt-tiny: whether time and memory per block stay constant on a windowed memory.

`python -m benchmarks.rollout [--frames 2000] [--out benchmarks/results/rollout.json]` prints a table: time per block at
the end over block 20, resident memory, and the same rollout on a cache that is cloned per layer.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cloning import CloningMemory
from benchmarks.measure import environment, median, resident_mib, write_json
from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.memory import KVMemory, MemoryPolicy, estimate_bytes
from salt.models.causal_model import CausalModel
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.models.word_embedder import WordEmbedder
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.spec import TINY_FOLDER

PROMPT = "a fast red circle moving right"
LATENT_SIZE = 8  # height and width; Shapes clips have 64 x 64 pixels
POLICY = MemoryPolicy("sink", 12, 3)
EARLY_BLOCK = 20
MEDIAN_BLOCKS = 20  # number of blocks whose median time is compared
# Late enough that the window has evicted, early enough that rounding errors, which grow from block to block, are small.
COMPARED_BLOCK = 6


@torch.no_grad()
def timed_rollout(student: SaltTransformer3DModel, memory: KVMemory, frames: int, fuse: bool = False) -> dict:
    """Seconds of every block (including its context pass), resident MiB after it, and the latents of COMPARED_BLOCK."""
    text = Conditioning(WordEmbedder().encode([PROMPT]))
    noise = SeededNoise(0, 1, student.config.in_channels, LATENT_SIZE, LATENT_SIZE)
    seconds, resident, compared = [], [], None
    gc.collect()
    start = time.perf_counter()
    for block in rollout(CausalModel(student), text, memory, noise, frames, RolloutSettings(fuse=fuse)):
        now = time.perf_counter()
        seconds.append(now - start)
        resident.append(resident_mib())
        start = now
        if block.index == COMPARED_BLOCK:
            compared = block.latents
    return {"seconds": seconds, "resident": resident, "compared": compared}


def at(values: list[float], block: int) -> float:
    """Median of the values around a block."""
    return median(values[max(block - MEDIAN_BLOCKS // 2, 1) : block + MEDIAN_BLOCKS // 2])


def run(frames: int, peer_frames: int) -> dict:
    student = load_student(TINY_FOLDER / "transformer", dtype=torch.float32).eval()
    ours = timed_rollout(student, student.new_memory(POLICY, 1, LATENT_SIZE, LATENT_SIZE), frames)
    geometry = student.memory_geometry(1, LATENT_SIZE, LATENT_SIZE)
    # Baselines last: on a CPU the first run warms the allocator, so our loop is timed again beside them.
    ours_again = timed_rollout(student, student.new_memory(POLICY, 1, LATENT_SIZE, LATENT_SIZE), peer_frames)
    cloning = timed_rollout(student, CloningMemory(POLICY, geometry, student.dtype), peer_frames)  # type: ignore[arg-type]
    fused = timed_rollout(student, student.new_memory(POLICY, 1, LATENT_SIZE, LATENT_SIZE), peer_frames, fuse=True)
    int8 = student.new_memory(POLICY.with_storage("int8"), 1, LATENT_SIZE, LATENT_SIZE)
    quantised = timed_rollout(student, int8, peer_frames)
    early, late = at(ours["seconds"], EARLY_BLOCK), median(ours["seconds"][-MEDIAN_BLOCKS:])
    plain = median(ours_again["seconds"][EARLY_BLOCK:])
    return {
        "frames": frames,
        "blocks": len(ours["seconds"]),
        "policy": str(POLICY),
        "block_seconds_early": early,
        "block_seconds_late": late,
        "late_over_early": late / early,
        "resident_mib_early": ours["resident"][EARLY_BLOCK],
        "resident_mib_late": ours["resident"][-1],
        "resident_late_over_early": ours["resident"][-1] / ours["resident"][EARLY_BLOCK],
        "memory_mib": estimate_bytes(POLICY, geometry, student.dtype) / 2**20,
        "cloning_over_ours": median(cloning["seconds"][EARLY_BLOCK:]) / plain,
        "fused_over_plain": median(fused["seconds"][EARLY_BLOCK:]) / plain,
        "int8_over_plain": median(quantised["seconds"][EARLY_BLOCK:]) / plain,
        "int8_bytes_over_bf16": int8.nbytes / estimate_bytes(POLICY, geometry, torch.bfloat16),
        "cloning_max_difference": (cloning["compared"] - ours_again["compared"]).abs().max().item(),
    }


def show(results: dict) -> None:
    """Print the results as a table."""
    where = environment()
    title = f"{results['frames']} latent frames, {results['policy']}, {where['device']}, {where['threads']} threads"
    table = Table("what", "figure", "limit", title=title)
    table.add_row("time per block, last 20 over block 20", f"{results['late_over_early']:.3f}", "1.10")
    table.add_row("resident memory, end over block 20", f"{results['resident_late_over_early']:.3f}", "flat")
    table.add_row("cache cloned per layer, over ours", f"{results['cloning_over_ours']:.2f}", "baseline")
    table.add_row("fused context pass, over plain", f"{results['fused_over_plain']:.2f}", "")
    table.add_row("int8 memory, time over plain", f"{results['int8_over_plain']:.2f}", "")
    table.add_row("int8 memory, bytes over bf16", f"{results['int8_bytes_over_bf16']:.3f}", "0.55")
    table.add_row(
        "latents of the baseline at block 6, largest difference",
        f"{results['cloning_max_difference']:.1e}",
        "same clip",
    )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=2001, help="latent frames, a multiple of 3")
    parser.add_argument("--peer-frames", type=int, default=300, help="latent frames of the runs with the baseline")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rollout.json"))
    args = parser.parse_args()
    results = run(args.frames, args.peer_frames)
    show(results)
    write_json(args.out, results)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
