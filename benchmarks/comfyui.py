"""Our sampler beside ComfyUI core's own (SamplerARVideo): same file, size, noise and prompt, in the same ComfyUI.

    COMFYUI_PATH=... COMFYUI_PYTHON=... python -m benchmarks.comfyui

Every case runs in a process of its own, so that its peak memory is its own. Times are read where the host calls the
model, block by block; figures are ratios to core's. Core keeps everything, so a window has no counterpart there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = 3
# frames are latent; size is of the latent's sides; the 0.3B student has Wan's width 1024 in 20 layers, random weights
SIZES = {
    "tiny": dict(frames=24, size=16, nfe=2),
    "tiny, long": dict(frames=120, size=16, nfe=2),
    "0.3B": dict(frames=24, size=16, nfe=2),
}
HOSTS = {"core": None, "ours": "full", "ours, window": "sink:3,window:12"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/comfyui"))
    arguments = parser.parse_args()
    python, home = os.environ.get("COMFYUI_PYTHON"), os.environ.get("COMFYUI_PATH")
    if not python or not home:
        sys.exit("error: COMFYUI_PATH, COMFYUI_PYTHON: found none, expected a ComfyUI 0.27 checkout and its Python")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            for host in HOSTS:
                case = {**SIZES[name], "block": BLOCK, "name": name, "policy": HOSTS[host]}
                command = [python, str(Path(__file__).parent / "comfyui_case.py"), folder, json.dumps(case)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=home)
                lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
                if done.returncode or not lines:
                    sys.exit(f"error: {name}, {host}: {done.stderr.strip().splitlines()[-1]}")
                results[f"{name} / {host}"] = json.loads(lines[0].removeprefix("RESULT "))
                print(f"{name} / {host}: {results[f'{name} / {host}']['seconds']:.1f} s", flush=True)
    table = as_table(results)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table + "\n")
    print(table)


def as_table(results: dict[str, dict]) -> str:
    """Markdown: time per block and peak memory beside core's, growth over the clip, difference to core's latents."""
    rows = [
        "| student | sampler | blocks | time per block, of core's | last quarter of blocks, of the first "
        "| peak memory above the model, of core's | relative difference to core's latents |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, r in results.items():
        name, host = key.split(" / ")
        core = results[f"{name} / core"]
        error = f"{r['error']:.1e}" if "error" in r else "-"
        rows.append(
            f"| {name} | {host} | {r['blocks']} | {r['per_block'] / core['per_block']:.2f} | {r['growth']:.2f} "
            f"| {r['peak_mib'] / core['peak_mib']:.2f} | {error} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
