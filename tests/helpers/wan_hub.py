"""A stand-in for the hub: the repositories that docs/training.md downloads, with small random models in their layouts.

`hf` copies from it, so that the page's downloads run as they are written. Models differ from the real ones in their
widths and numbers of layers alone; heads have 128 channels and texts 4096, which their files do not state.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from salt.checkpoints.wan_keys import to_wan
from tests.helpers import tiny_recipes, tiny_system

TEXT_DIM, ALIGNED_BLOCK = 4096, 20  # the block of the teacher whose features the alignment compares
PROMPTS = ("a red circle", "a circle moving right")

HF = """#!/bin/sh
# hf download REPOSITORY [FILE] --local-dir FOLDER, from the folder that lies beside this one
set -e
[ "$1" = download ] && [ -d "{hub}/$2" ] || { echo "no such repository: $*" >&2; exit 1; }
if [ "$3" = --local-dir ]; then mkdir -p "$4"; cp -R "{hub}/$2/." "$4"
else [ "$4" = --local-dir ]; mkdir -p "$5/$(dirname "$3")"; cp "{hub}/$2/$3" "$5/$3"; fi
"""


def make(folder: Path) -> Path:
    """Writes the hub, and returns the folder with the program `hf`."""
    hub, programs = folder / "hub", folder / "programs"
    _wan(hub / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", seed=1, layers=2)
    _wan(hub / "Wan-AI/Wan2.1-T2V-14B-Diffusers", seed=2, layers=ALIGNED_BLOCK + 1)
    _released(hub / "gdhe17/Self-Forcing/checkpoints/ode_init.pt", seed=3)
    _released(hub / "zhuhz22/Causal-Forcing/framewise/causal_ode.pt", seed=4)
    (hub / "gdhe17/Self-Forcing/vidprom_filtered_extended.txt").write_text("\n".join(PROMPTS) + "\n")
    programs.mkdir()
    (programs / "hf").write_text(HF.replace("{hub}", str(hub)))
    (programs / "hf").chmod(0o755)
    return programs


def _transformer(seed: int, layers: int = 2) -> WanTransformer3DModel:
    sizes = dict(num_attention_heads=1, attention_head_dim=128, ffn_dim=128, text_dim=TEXT_DIM, freq_dim=256)
    weights = tiny_recipes.model(seed, num_layers=layers, **sizes).state_dict()
    model = WanTransformer3DModel(**sizes, num_layers=layers)
    model.load_state_dict(weights)
    return model


def _wan(folder: Path, seed: int, layers: int) -> None:
    """A repository of Wan-AI as diffusers writes it, in shards."""
    tokenizer, text_encoder = tiny_system.umt5_models(TEXT_DIM)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = WanPipeline(tokenizer, text_encoder, tiny_system.vae(), scheduler, _transformer(seed, layers))
    pipeline.save_pretrained(folder, max_shard_size="4MB")


def _released(file: Path, seed: int) -> None:
    """A file of Self Forcing's trainer: Wan's names under `generator`, with its wrapper's prefix."""
    file.parent.mkdir(parents=True)
    weights = {f"model.{to_wan(name)}": value for name, value in _transformer(seed).state_dict().items()}
    torch.save({"generator": weights}, file)
