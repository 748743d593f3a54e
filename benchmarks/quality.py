"""Quality of the faster and smaller settings: ShapeBench scores of salt-tiny on the same prompts and noise.

`python -m benchmarks.quality [--prompts 48] [--out benchmarks/results/quality]` writes JSON and markdown, row by row;
an interrupted run continues. Float8 multiplication is simulated: weights and activations are rounded as in
`salt.acceleration.presets.fp8_linears`, and multiplied in float32.
"""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from salt.checkpoints import load_student, read_checkpoint
from salt.io.atomic import write_text
from salt.memory import MemoryPolicy
from salt.spec import TINY_FOLDER, StudentSpec
from train.evaluation.sampling import load_vae
from train.evaluation.shapebench import PROMPTS, score_model
from train.shapes.bench import summarize

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


def run(path: Path, prompts: int, steps: tuple[int, ...]) -> dict:
    """Score the rows that the results file lacks. Scores of other weights are discarded."""
    student, vae = (
        load_student(TINY_FOLDER / "transformer", dtype=torch.float32),
        load_vae(TINY_FOLDER / "vae", dtype=torch.bfloat16),
    )
    spec = read_checkpoint(TINY_FOLDER / "transformer").spec or StudentSpec()
    weights = {"weights": sum(p.double().abs().sum().item() for p in student.parameters()), "prompts": prompts}
    results = json.loads(path.read_text()) if path.exists() else {}
    if {k: results.get(k) for k in weights} != weights:
        results = {**weights, "rows": {}}
    half = PROMPTS[: prompts // 2] + PROMPTS[len(PROMPTS) // 2 :][: prompts // 2]
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results = run(arguments.out.with_suffix(".json"), arguments.prompts, tuple(arguments.steps))
    table = as_table(results)
    arguments.out.with_suffix(".md").write_text(table + "\n")
    print(f"\n{table}")


if __name__ == "__main__":
    main()
