"""Processes that compute one clip together, for tests: each is a Python of its own, joined by gloo."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from salt.memory import KVMemory, save_memory
from tests.helpers import tiny_system

CLIP: dict[str, Any] = dict(num_frames=33, num_inference_steps=2, height=48, width=80, output_type="latent")
PROMPT = "a red circle moving right"


def pipeline() -> Any:
    """Four heads; 3 x 5 tokens a frame, which neither two nor four processes share evenly."""
    return tiny_system.pipeline(num_attention_heads=4, attention_head_dim=12)


def make(pipe: Any, policy: str, **options: Any) -> tuple[torch.Tensor, KVMemory]:
    generator = torch.Generator().manual_seed(3)
    schedule = [(0.8, "a blue square moving up", "recache")]
    made = pipe(PROMPT, memory_policy=policy, generator=generator, prompt_schedule=schedule, **CLIP, **options)
    return made.frames, made.memory


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def process(rank: int, size: int, port: int, folder: Path, policy: str, failing: int) -> None:
    """One of `size` processes. It leaves RANK.bytes, and the first one clip.pt and memory.safetensors.

    failing: number of a process that fails in the clip; -1 for none.
    """
    from salt.parallel.memory_shards import whole
    from salt.parallel.processes import joined, split_heads

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipe = pipeline()
    try:
        with joined(timedelta(seconds=60)) as group:
            split_heads(pipe.transformer, pipe.acceleration, group)
            if rank == failing:
                raise OSError(f"disk of process {rank} is full")
            latents, memory = make(pipe, policy)
            (folder / f"{rank}.bytes").write_text(str(memory.nbytes))
            all_heads = whole(memory, group)
            if rank == 0:
                torch.save(latents, folder / "clip.pt")
                save_memory(all_heads, folder / "memory.safetensors")
    except OSError as error:
        (folder / f"{rank}.error").write_text(str(error))


def run(size: int, folder: Path, policy: str = "sink:3,window:9", failing: int = -1) -> None:
    arguments = (size, free_port(), folder, policy, failing)
    torch.multiprocessing.start_processes(process, arguments, nprocs=size, start_method="spawn")
