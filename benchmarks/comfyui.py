"""Our sampler through ComfyUI beside the library alone and ComfyUI core's own sampler (SamplerARVideo), in one ComfyUI.

    COMFYUI_PATH=... COMFYUI_PYTHON=... python -m benchmarks.comfyui [--device cuda] [--only 1.3B]

Same student file, size, noise, prompt and evaluations for all. Every case runs in a process of its own, so that its
peak memory is its own; the library's rollout is timed in turns with ours, so that what ComfyUI costs on top of the
library is a ratio of neighbours. Core keeps everything, so a window has no counterpart there. Attention is PyTorch's
everywhere, which is what ComfyUI takes on NVIDIA cards by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLOCK = 3
# frames are latent; height and width are of the latent; text is the prompt's tokens (umt5 pads every prompt to 512).
# Random weights: of salt-tiny's shape, of Wan's width 1024 in 20 layers, and of Wan 2.1 1.3B. pairs: how often ours and
# the library's are timed in turns.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(frames=24, height=16, width=16, nfe=2, text=16, pairs=31),
    "tiny, long": dict(frames=120, height=16, width=16, nfe=2, text=16, pairs=5),
    "0.3B": dict(frames=12, height=16, width=16, nfe=2, text=512, pairs=5),
    "1.3B": dict(frames=21, height=60, width=104, nfe=4, text=512, pairs=3),  # 832 x 480
}
ON_CPU = ("tiny", "tiny, long", "0.3B")
HOSTS = {
    "core": ("core", None),
    "ours": ("ours", "full"),
    "ours, window": ("ours", "sink:3,window:12"),
    "library": ("library", "full"),
    "library, window": ("library", "sink:3,window:12"),
}


class CaseFailed(RuntimeError):
    """A case whose process ended without a result; the message is the last line it wrote."""


def run(names: Sequence[str] = ON_CPU, device: str = "cpu") -> dict[str, dict]:
    """Figures by "SIZE / HOST", all of them plain numbers.

    Raises CaseFailed for a case that ends without one, and KeyError where COMFYUI_PATH or COMFYUI_PYTHON is not set.
    """
    python, home = os.environ["COMFYUI_PYTHON"], os.environ["COMFYUI_PATH"]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for host, (way, policy) in HOSTS.items():
                case = {**SIZES[name], "block": BLOCK, "name": name, "way": way, "policy": policy, "device": device}
                command = [python, str(Path(__file__).parent / "comfyui_case.py"), folder, json.dumps(case)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=home)
                lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
                if done.returncode or not lines:
                    raise CaseFailed(f"{name}, {host}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
                results[f"{name} / {host}"] = json.loads(lines[0].removeprefix("RESULT "))
    return results


def as_table(results: dict[str, dict]) -> str:
    """Markdown: time and peak memory beside core's, ours over the library's, growth over the clip, difference."""
    rows = [
        "| student | sampler | blocks | time per block, of core's | ours through ComfyUI, of the library's "
        "| last quarter of blocks, of the first | peak memory above the model, of core's "
        "| relative difference to core's latents |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, r in results.items():
        name, host = key.split(" / ")
        core = results[f"{name} / core"]
        error = f"{r['error']:.1e}" if "error" in r else "-"
        over = f"{r['over_library']:.3f}" if "over_library" in r else "-"
        rows.append(
            f"| {name} | {host} | {r['blocks']} | {r['per_block'] / core['per_block']:.2f} | {over} "
            f"| {r['growth']:.2f} | {r['peak_mib'] / core['peak_mib']:.2f} | {error} |"
        )
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> dict[str, dict]:
    """The command line; returns the figures that it has printed and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIZES, help="default: all that the device is meant for")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/comfyui"))
    arguments = parser.parse_args(words)
    names = arguments.only or (ON_CPU if arguments.device == "cpu" else SIZES)
    try:
        results = run(list(names), arguments.device)
    except KeyError as missing:
        sys.exit(f"error: {missing.args[0]}: found none, expected a ComfyUI 0.27 checkout and its Python")
    except CaseFailed as failed:
        sys.exit(f"error: {failed}")
    table = as_table(results)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table + "\n")
    print(table)
    return results


if __name__ == "__main__":
    main()
