"""The ledger's table: `python -m benchmarks ledger`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from benchmarks.ledger.cases import DEEP, SHALLOW, SIZES, ForwardCase, forward_costs
from benchmarks.ledger.compiled import compiled_block_bytes
from benchmarks.ledger.fake_device import fake_cuda
from benchmarks.ledger.live import STEERED, LiveCase, full_depth, live_phases
from benchmarks.ledger.runs import DECODE, TEXT, RunCase, run_costs, tiled_decode_costs
from benchmarks.ledger.text import Placement, text_costs
from salt.io.atomic import write_text
from salt.models.streaming_vae import Tiling

KEPT = "sink:3,window:12"
FORWARDS = (
    ForwardCase("full"),
    ForwardCase("window:12"),
    ForwardCase(KEPT),
    ForwardCase("relative:3,window:12"),
    ForwardCase("blended:3,window:12"),
    ForwardCase("cyclic:12"),
    *(ForwardCase(f"{KEPT},{precision}") for precision in ("int8", "fp8", "int4")),
    ForwardCase("relative:3,window:12,int8"),
    ForwardCase(f"{KEPT},cpu"),
    ForwardCase(f"{KEPT},int8,cpu"),
    ForwardCase(KEPT, form="write"),
    ForwardCase(f"{KEPT},cpu", form="write"),
    ForwardCase(f"{KEPT},int8,cpu", form="write"),
    ForwardCase(KEPT, form="fused"),
    ForwardCase(KEPT, graph=True),
    ForwardCase(KEPT, size="14B"),
    ForwardCase(f"{KEPT},int4", size="14B"),
    *(ForwardCase(policy, kernels=True) for policy in ("full", KEPT, "relative:3,window:12")),
    *(ForwardCase(f"{KEPT},{precision}", kernels=True) for precision in ("int8", "fp8", "int4")),
    ForwardCase(f"{KEPT},int8,cpu", form="write", kernels=True),
    ForwardCase(KEPT, form="fused", kernels=True),
    ForwardCase(KEPT, size="14B", kernels=True),
    ForwardCase(f"{KEPT},int4", size="14B", kernels=True),
)
CHANGED = {"prompt_schedule": ((2.5, "another", "recache"),)}  # before the last block
RUNS = {
    "exact": RunCase(),
    "exact, VAE in float32": RunCase(vae_dtype=torch.float32),
    "exact, TAEHV": RunCase(decoder="taehv"),
    "exact, guidance": RunCase(options={"guidance_scale": 3.0, "negative_prompt": "another"}),
    "exact, UMT5 on the device": RunCase(text=True),
    "exact, start image": RunCase(image=True),
    "exact, no decoding": RunCase(decoder="none"),
    "exact, prompt change with recache, no decoding": RunCase(decoder="none", options=CHANGED),
    "exact, blended memory, no decoding": RunCase(decoder="none", policy="blended:3,window:12"),
    "exact, rebuilt memory, frames encoded again": RunCase(policy="rebuild:12"),
    "exact, AnyFlow, no decoding": RunCase(decoder="none", policy="far:2"),
    "exact, LongLive 2 (5B, 1280x704, UniPC)": RunCase(size="5B", policy=None),
    "context pass fused, no decoding": RunCase(decoder="none", options={"fuse": True}),
    "low memory": RunCase("low memory"),
    "low memory, prompt encoded": RunCase("low memory", text=True, decoder="none"),
    "14B, exact": RunCase(size="14B"),
    "14B, low memory, no decoding": RunCase("low memory", size="14B", decoder="none"),
    "14B, lowest memory, no decoding": RunCase("lowest memory", size="14B", decoder="none"),
    "14B, layer by layer, no decoding": RunCase("layer by layer", size="14B", decoder="none"),
}


def forward_rows(cases: tuple[ForwardCase, ...] = FORWARDS) -> list[str]:
    """Markdown table of single forwards."""
    rows = [
        "| one forward, 832x480, 3 latent frames | launches | GB | TFLOP | waits | to host, GB | to device, GB "
        "| on top of weights and memory, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        found = forward_costs(case)
        c = found.costs
        rows.append(
            f"| {case} | {c.launches:,.0f} | {c.bytes / 1e9:.1f} | "
            f"{c.flops / 1e12:.2f} | {c.waits:.0f} | {c.to_host / 1e9:.2f} | {c.to_device / 1e9:.2f} | "
            f"{found.transient / 1e9:.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def group_rows(case: ForwardCase = FORWARDS[2]) -> list[str]:
    """Markdown table of one forward by kind of operation."""
    rows = [f"| {case} | launches | GB | TFLOP |", "|---|---|---|---|"]
    for name, c in sorted(forward_costs(case).groups.items(), key=lambda item: -item[1].bytes):
        if c.launches:
            rows.append(f"| {name} | {c.launches:,.0f} | {c.bytes / 1e9:.1f} | {c.flops / 1e12:.2f} |")
    return rows


def decode_rows() -> list[str]:
    """Markdown table of decoding one block with Wan's VAE."""
    rows = [
        "| decoding a block, VAE in bf16 | launches | GB | waits | to host, GB | to device, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, tiling in (
        ("whole", None),
        ("in tiles, caches on the device", Tiling(caches="device")),
        ("in tiles, caches in main memory", Tiling(caches="cpu")),
    ):
        c = tiled_decode_costs(tiling).costs
        rows.append(
            f"| {name} | {c.launches:,.0f} | {c.bytes / 1e9:.0f} | {c.waits:.0f} | {c.to_host / 1e9:.2f} | "
            f"{c.to_device / 1e9:.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def run_rows(cases: dict[str, RunCase]) -> list[str]:
    """Markdown table of runs: a block's costs, and peaks by phase."""
    rows = [
        "| run, 4 NFE | launches per block + decoding | GB per block + decoding | waits in it | peak denoising, GB "
        "| decoding | prompt | highest | whole run: launches | GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        found = run_costs(case)
        peaks = {phase: f"{found.peaks.get(phase, 0) / 1e9:.1f}" for phase in ("denoise", DECODE, TEXT)}
        shown = [peaks["denoise"], "-" if case.decoder == "none" else peaks[DECODE], peaks[TEXT] if case.text else "-"]
        waits = sum(n for phase, places in found.waits.items() if phase in ("denoise", DECODE) for n in places.values())
        highest = max(value for phase, value in found.peaks.items() if phase != DECODE or case.decoder != "none")
        rows.append(
            f"| {name} | {found.block.launches:,.0f} + {found.decode.launches:,.0f} | "
            f"{found.block.bytes / 1e9:,.0f} + {found.decode.bytes / 1e9:,.0f} | {waits} | {' | '.join(shown)} | "
            f"{highest / 1e9:.1f} | {found.total.launches:,.0f} | {found.total.bytes / 1e9:,.0f} |"
        )
        print(rows[-1], flush=True)
    return rows


def text_rows() -> list[str]:
    """Markdown table of encoding one prompt with Wan's UMT5."""
    rows = ["| one prompt, UMT5 | launches | GB | waits | to device, GB | peak, GB |", "|---|---|---|---|---|---|"]
    for placement in get_args(Placement):
        found = text_costs(placement)
        c = found.costs
        rows.append(
            f"| {placement} | {c.launches:,.0f} | {c.bytes / 1e9:.1f} | {c.waits:.0f} | {c.to_device / 1e9:.2f} | "
            f"{found.peak / 1e9:.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def live_rows(case: LiveCase = STEERED) -> list[str]:
    """Markdown table of a live session's blocks over a full window, with the control before each."""
    rows = ["| live session, 4 NFE | launches | GB | waits |", "|---|---|---|---|"]
    shallow, deep = (live_phases(case, layers) for layers in (SHALLOW, DEEP))
    for index in range(4, case.blocks):
        launches, moved = full_depth(shallow[index], deep[index], case.size)
        control = f", {case.controls[index].kind}" if index in case.controls else ""
        waits = sum(shallow[index].waits.values())
        rows.append(f"| block {index}{control} | {launches:,.0f} | {moved / 1e9:.1f} | {waits} |")
        print(rows[-1], flush=True)
    return rows


def compiled_rows(sizes: tuple[str, ...] = ("1.3B",)) -> list[str]:
    """Markdown table of compiled blocks, counted by Inductor on real tensors."""
    rows = ["| compiled blocks without self-attention and memory | GB |", "|---|---|"]
    for size in sizes:
        layers = SIZES[size]["num_layers"]
        rows.append(f"| {size}, {layers} blocks | {compiled_block_bytes(size) * layers / 1e9:.1f} |")
        print(rows[-1], flush=True)
    return rows


def write_table(path: Path, only: list[str] | None = None) -> None:
    """Print the table and write it. only: cases whose row contains one of these texts."""

    def chosen(name: str) -> bool:
        return not only or any(text in name for text in only)

    forwards = tuple(c for c in FORWARDS if chosen(str(c)))
    with fake_cuda():
        parts = [
            [f"torch {torch.__version__}, no GPU: operations counted on fake tensors, not timed."],
            forward_rows(forwards),
            group_rows() if chosen("groups") else [],
            decode_rows() if chosen("decoding") else [],
            text_rows() if chosen("prompt") else [],
            live_rows() if chosen("live") else [],
            run_rows({name: case for name, case in RUNS.items() if chosen(name)}),
        ]
    parts.append(compiled_rows() if chosen("compiled") else [])
    table = "\n\n".join("\n".join(rows) for rows in parts if rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table + "\n")
    print(f"\n{table}")
