"""Quality of the faster and smaller settings: ShapeBench scores of salt-tiny on the same prompts and noise.

`python -m benchmarks.quality [--prompts 48] [--out benchmarks/results/quality]` writes JSON and markdown, row by row;
an interrupted run continues. Float8 multiplication is simulated: weights and activations are rounded as in
`salt.acceleration.presets.fp8_linears`, and multiplied in float32.

`--long` compares memories by their size instead, on the last 21 of 120 latent frames, for several `--seeds`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from salt.checkpoints import load_student, read_checkpoint
from salt.io.atomic import write_text
from salt.memory import MemoryGeometry, MemoryPolicy, estimate_bytes
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.spec import TINY_FOLDER, StudentSpec
from train.evaluation.sampling import load_vae
from train.evaluation.shapebench import PROMPTS, REPORTED_SEED, score_ends, score_model
from train.shapes.bench import summarize
from train.shapes.world import Scene

STUDENT_POLICY = "relative:3,window:12"
# name, memory policy, whether linear layers are in float8
ROWS = (
    ("exact", STUDENT_POLICY, False),
    ("int8 memory", f"{STUDENT_POLICY},int8", False),
    ("fp8 memory", f"{STUDENT_POLICY},fp8", False),
    ("int4 memory", f"{STUDENT_POLICY},int4", False),
    ("fp8 linear layers", STUDENT_POLICY, True),
    ("fp8 linear layers, int8 memory", f"{STUDENT_POLICY},int8", True),
    ("everything kept", "full", False),
    ("sink 3 + window 12", "sink:3,window:12", False),
    ("window 12", "window:12", False),
)
SCORES = ("passed", "color", "shape", "direction", "count", "sharp")
LONG_FRAMES = 120
LONG_POLICIES = (
    "relative:3,window:12", "relative:3,window:9", "relative:1,window:6", "relative:3,window:12,int4",
    "relative:3,window:9,int4", "relative:1,window:6,int4",
)  # fmt: skip
LONG_SCORES = ("passed", "shape", "speed", "count", "sharp", "steady", "no_drift")
TRUE_SIZE = MemoryGeometry(30, 12, 128, 30, 52)  # Wan 2.1 1.3B at 832x480


def to_fp8(x: Tensor) -> Tensor:
    """x rounded to float8 e4m3 with one scale per row, in x's dtype."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


@contextmanager
def float8(model: nn.Module, enabled: bool):
    """Context in which the transformer blocks' linear layers compute with values rounded to float8."""
    layers = [m for n, m in model.named_modules() if enabled and isinstance(m, nn.Linear) and n.startswith("blocks.")]
    weights = [layer.weight.data for layer in layers]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: tuple(map(to_fp8, inputs))) for layer in layers]
    for layer in layers:
        layer.weight.data = to_fp8(layer.weight.data)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.data = weight


def loaded() -> tuple[SaltTransformer3DModel, AutoencoderKLWan, StudentSpec]:
    student = load_student(TINY_FOLDER / "transformer", dtype=torch.float32)
    vae = load_vae(TINY_FOLDER / "vae", dtype=torch.bfloat16)
    return student, vae, read_checkpoint(TINY_FOLDER / "transformer").spec or StudentSpec()


def earlier_results(path: Path, student: SaltTransformer3DModel, prompts: int) -> dict:
    """The file's results, without those of other weights or prompts."""
    weights = {"weights": sum(p.double().abs().sum().item() for p in student.parameters()), "prompts": prompts}
    results = json.loads(path.read_text()) if path.exists() else {}
    return results if {k: results.get(k) for k in weights} == weights else {**weights, "rows": {}}


def halves(prompts: int) -> tuple[Scene, ...]:
    """As many held-out captions as trained ones."""
    return PROMPTS[: prompts // 2] + PROMPTS[len(PROMPTS) // 2 :][: prompts // 2]


def run(path: Path, prompts: int, steps: tuple[int, ...]) -> dict:
    """Score the rows that the results file lacks. Scores of other weights are discarded."""
    student, vae, spec = loaded()
    results, half = earlier_results(path, student, prompts), halves(prompts)
    for nfe in steps:
        for name, policy, linears in ROWS:
            key = f"{name}, {nfe} NFE"
            if key in results["rows"]:
                continue
            with float8(student, linears):
                row_spec = replace(spec, policy=MemoryPolicy.parse(policy))
                results["rows"][key] = summarize(score_model(student, vae, nfe, half, spec=row_spec))
            print(f"{key}: {results['rows'][key]['passed']:.0%}", flush=True)
            write_text(path, json.dumps(results, indent=1) + "\n")
    return results


def as_table(results: dict) -> str:
    """Markdown table of the scores."""
    rows = [f"| setting, NFE | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 1) + "|"]
    for name, summary in results["rows"].items():
        rows.append(f"| {name} | {' | '.join(f'{summary[key]:.0%}' for key in SCORES)} |")
    return "\n".join(rows)


def run_long(path: Path, prompts: int, steps: Sequence[int], seeds: Sequence[int]) -> dict:
    """The same for the ends of long clips: one entry for each policy, number of evaluations and seed."""
    student, vae, spec = loaded()
    results, half = earlier_results(path, student, prompts), halves(prompts)
    for nfe, seed, policy in product(steps, seeds, LONG_POLICIES):
        key = f"{policy} at {nfe} NFE, seed {seed}"
        if key in results["rows"]:
            continue
        row_spec = replace(spec, policy=MemoryPolicy.parse(policy))
        _, ends = score_ends(student, vae, nfe, half, frames=LONG_FRAMES, seed=seed, spec=row_spec)
        results["rows"][key] = summarize(ends)
        print(f"{key}: {results['rows'][key]['passed']:.0%}", flush=True)
        write_text(path, json.dumps(results, indent=1) + "\n")
    return results


def as_long_table(results: dict, steps: Sequence[int], seeds: Sequence[int]) -> str:
    """Markdown table: GB of each memory at true size, scores as means over seeds, and the range of those that pass."""
    rows = [f"| memory, NFE | GB | {' | '.join(LONG_SCORES)} | by seed |", "|---" * (len(LONG_SCORES) + 3) + "|"]
    for nfe, policy in product(steps, LONG_POLICIES):
        found = [results["rows"][f"{policy} at {nfe} NFE, seed {seed}"] for seed in seeds]
        means = [f"{sum(row[score] for row in found) / len(found):.0%}" for score in LONG_SCORES]
        size = estimate_bytes(MemoryPolicy.parse(policy), TRUE_SIZE, torch.bfloat16) / 1e9
        passed = sorted(row["passed"] for row in found)
        rows.append(f"| {policy}, {nfe} | {size:.2f} | {' | '.join(means)} | {passed[0]:.0%} to {passed[-1]:.0%} |")
    clips = len(seeds) * int(results["prompts"])
    return "\n".join([*rows, "", f"{clips} clips in each row, {len(steps) * len(LONG_POLICIES)} rows."])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--long", action="store_true", help="memories by their size, on the ends of long clips")
    parser.add_argument("--seeds", type=int, nargs="+", help="with --long (default: 2000 5000)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.seeds and not arguments.long:
        parser.error(f"--seeds: is for --long, the other rows have seed {REPORTED_SEED}")
    out = arguments.out or Path("benchmarks/results") / ("quality_long" if arguments.long else "quality")
    out.parent.mkdir(parents=True, exist_ok=True)
    prompts, steps = arguments.prompts, tuple(arguments.steps)
    if arguments.long:
        seeds = arguments.seeds or [REPORTED_SEED, 5000]
        table = as_long_table(run_long(out.with_suffix(".json"), prompts, steps, seeds), steps, seeds)
    else:
        table = as_table(run(out.with_suffix(".json"), prompts, steps))
    out.with_suffix(".md").write_text(table + "\n")
    print(f"\n{table}")


if __name__ == "__main__":
    main()
