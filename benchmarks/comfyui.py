"""Speed of our sampler in ComfyUI compared with the library alone and with ComfyUI core's own sampler (SamplerARVideo).

    COMFYUI_PATH=... COMFYUI_PYTHON=... python -m benchmarks.comfyui [--device cuda] [--only 1.3B]

Student file, size, noise, prompt and evaluations are the same for all. Every case runs in a separate process, so that
its peak memory is not mixed with others; the library's rollout is timed in alternation with ours, so that ComfyUI's
overhead is a ratio of adjacent runs. Core has full memory only, so a window has no counterpart there. Attention is
PyTorch's everywhere, which is ComfyUI's default on NVIDIA cards.
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
# frames, height and width are latent; text: tokens of the prompt (umt5 pads every prompt to 512). Random weights in the
# shape of salt-tiny, of a Wan of width 1024 with 20 layers, and of Wan 2.1 1.3B. pairs: how often ours and the library
# are timed in alternation.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(frames=24, height=16, width=16, nfe=2, text=16, pairs=31),
    "tiny, long": dict(frames=120, height=16, width=16, nfe=2, text=16, pairs=5),
    "0.3B": dict(frames=12, height=16, width=16, nfe=2, text=512, pairs=5),
    "1.3B": dict(frames=21, height=60, width=104, nfe=4, text=512, pairs=3),  # 832 x 480
}
CPU_SIZES = ("tiny", "tiny, long", "0.3B")
SAMPLERS = {
    "core": ("core", None),
    "ours": ("ours", "full"),
    "ours, window": ("ours", "sink:3,window:12"),
    "library": ("library", "full"),
    "library, window": ("library", "sink:3,window:12"),
}


class CaseFailed(RuntimeError):
    """A case whose process ended without a result; the message is its last line of output."""


def run(names: Sequence[str] = CPU_SIZES, device: str = "cpu") -> dict[str, dict]:
    """Figures by "SIZE / SAMPLER", all of them plain numbers.

    Raises CaseFailed for a case that ends without a result, KeyError if COMFYUI_PATH or COMFYUI_PYTHON is not set.
    """
    python, home = os.environ["COMFYUI_PYTHON"], os.environ["COMFYUI_PATH"]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for sampler, (method, policy) in SAMPLERS.items():
                case = {
                    **SIZES[name],
                    "block": BLOCK,
                    "name": name,
                    "method": method,
                    "policy": policy,
                    "device": device,
                }
                command = [python, str(Path(__file__).parent / "comfyui_case.py"), folder, json.dumps(case)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=home)
                lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
                if done.returncode or not lines:
                    raise CaseFailed(f"{name}, {sampler}: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
                results[f"{name} / {sampler}"] = json.loads(lines[0].removeprefix("RESULT "))
    return results


def as_table(results: dict[str, dict]) -> str:
    """Markdown table: time and peak memory over core's, ours over the library's, growth over the clip, difference."""
    rows = [
        "| student | sampler | blocks | time per block, of core's | ours through ComfyUI, of the library's "
        "| last quarter of blocks, of the first | peak memory above the model, of core's "
        "| relative difference to core's latents |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, r in results.items():
        name, sampler = key.split(" / ")
        core = results[f"{name} / core"]
        error = f"{r['error']:.1e}" if "error" in r else "-"
        over = f"{r['over_library']:.3f}" if "over_library" in r else "-"
        rows.append(
            f"| {name} | {sampler} | {r['blocks']} | {r['per_block'] / core['per_block']:.2f} | {over} "
            f"| {r['growth']:.2f} | {r['peak_mib'] / core['peak_mib']:.2f} | {error} |"
        )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """The command line; returns the figures that it prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIZES, help="default: all sizes meant for the device")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/comfyui"))
    arguments = parser.parse_args(argv)
    names = arguments.only or (CPU_SIZES if arguments.device == "cpu" else SIZES)
    try:
        results = run(list(names), arguments.device)
    except KeyError as missing:
        sys.exit(f"error: {missing.args[0]} is not set; expected a ComfyUI 0.27 checkout and its Python")
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
