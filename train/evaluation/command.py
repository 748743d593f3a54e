"""`python -m train evaluate`: benchmarks of one student, each written as a table and a JSON file.

ShapeBench, the semigroup defect and drift give figures; vbench and vbench-long give videos for VBench's own tools.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.cli.option_types import file_path
from salt.errors import InputError
from salt.io.atomic import check_writable, write_text
from salt.io.launcher import is_main_process
from train.command_line import DEVICE, DEVICE_HELP

if TYPE_CHECKING:
    from salt.pipeline import SaltPipeline
    from salt.spec import StudentSpec

BENCHES = ("shapes", "defect", "drift", "vbench", "vbench-long")
OUTPUTS = Path("outputs")
OUTPUT_NAMES = dict(zip(BENCHES, ("shapebench", *BENCHES[1:]), strict=True))

# The benchmarks that read an option, and what it is where it was not given.
READERS: dict[str, tuple[Sequence[str], object]] = {
    **dict.fromkeys(("teacher", "vae", "seeds", "first_steps"), (BENCHES[:1], None)),
    **dict.fromkeys(("parts", "dtype", "prompts", "samples", "memory"), (BENCHES[1:], None)),
    "weights": (BENCHES[1:], "auto"),
    "seed": (BENCHES[1:], 0),
    "batch": (("defect", "drift"), 1),
    "extended": (("vbench", "vbench-long"), None),
    "steps": (("shapes", "drift", "vbench", "vbench-long"), None),
    "triples": (("defect",), None),
}


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    command = commands.add_parser("evaluate", help=evaluate.__doc__, description=__doc__)
    command.add_argument("student", type=Path, nargs="?", help="any checkpoint, diffusers folder or pipeline folder")
    command.add_argument("--bench", nargs="+", choices=BENCHES, default=["shapes"], metavar="BENCH",
                         help=f"{', '.join(BENCHES)} (default: shapes)")  # fmt: skip
    command.add_argument("--out", type=file_path, help="written as OUT.md and OUT.json (vbench: a folder); of several "
                         "benches OUT is their folder (default: outputs/BENCH, "
                         "for shapes outputs/shapebench)")  # fmt: skip
    command.add_argument("--steps", type=int, nargs="+", metavar="NFE",
                         help="steps per block; shapes 2 4 8, others the student's own; vbench takes one")  # fmt: skip
    command.add_argument("--frames", type=int, help="latent frames of a clip (default: shapes, defect and vbench 21, "
                         "drift and vbench-long 120, which is half a minute)")  # fmt: skip
    command.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    command.add_argument("--device", default=DEVICE, help=DEVICE_HELP)
    shapes = command.add_argument_group("shapes")
    shapes.add_argument("--first-steps", type=int, metavar="NFE", help="of the first block, where more (student's own)")
    shapes.add_argument("--teacher", type=file_path, help="a teacher, scored in 50 guided steps, in blocks or whole as "
                        "its file says")  # fmt: skip
    shapes.add_argument("--vae", type=file_path, help="its VAE (default: salt-tiny's)")
    shapes.add_argument("--seeds", type=int, nargs="+", metavar="N", help="a clip of every prompt for each "
                        "(default: 2000)")  # fmt: skip
    others = command.add_argument_group("the other benches")
    others.add_argument("--parts", type=file_path, help="folder with vae/, text_encoder/, tokenizer/ "
                        "(default: those beside the student, else the pulled ones)")  # fmt: skip
    others.add_argument("--weights", choices=("auto", "ema", "regular"), default="auto")
    others.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: bfloat16 on CUDA")
    others.add_argument("--prompts", type=file_path, help="prompts, one per line, or VBench_full_info.json "
                        "(Shapes world: ShapeBench's captions by default)")  # fmt: skip
    others.add_argument("--extended", type=file_path, help="vbench: an extended version of each prompt, line by line")
    others.add_argument("--samples", type=int, metavar="N",
                        help="clips per prompt (default: 1; vbench 5, and 25 for temporal_flickering)")  # fmt: skip
    others.add_argument("--seed", type=int, default=0)
    others.add_argument("--memory", metavar="POLICY", help="as `salt generate --memory` (default: the student's)")
    others.add_argument("--batch", type=int, default=1, metavar="N", help="defect, drift: clips at a time")
    others.add_argument("--triples", nargs="+", metavar="S,M,E",
                        help="defect: steps before warping (default: 1000,875,750 750,625,500 ...)")  # fmt: skip
    command.set_defaults(run=evaluate)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate a student: ShapeBench, semigroup defect, drift, videos for VBench."""
    for name in ("limit", "samples", "frames", "batch"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name}: found {value}, expected 1 or more")
    for name, (readers, default) in READERS.items():
        if (value := getattr(args, name)) != default and not set(readers) & set(args.bench):
            problem = f"has no effect on --bench {' '.join(args.bench)}, only on {' or '.join(readers)}"
            raise InputError(name, problem, value)
    if args.student is None and not (args.teacher and args.bench == ["shapes"]):
        raise ValueError("student: found none, expected a checkpoint or folder (or --teacher, for shapes alone)")
    if any(bench.startswith("vbench") for bench in args.bench):
        _check_vbench(args)
    benches: dict[str, Callable[[argparse.Namespace, Path], None]] = {
        "shapes": _shapes,
        "defect": _defect,
        "drift": _drift,
        "vbench": _vbench,
        "vbench-long": partial(_vbench, long=True),
    }
    chosen = list(dict.fromkeys(args.bench))
    places = {bench: (args.out or OUTPUTS) / OUTPUT_NAMES[bench] for bench in chosen}
    if args.out and len(chosen) == 1:
        places = {chosen[0]: args.out}
    for out in places.values():
        check_writable(out.with_name(out.name + ".md"), ".md")
    for bench, out in places.items():
        benches[bench](args, out)
    if is_main_process():
        print("\n".join(_what_follows(args, places)))


def _what_follows(args: argparse.Namespace, places: dict[str, Path]) -> list[str]:
    """Where the figures lie, and the commands for a video of the student and for ComfyUI."""
    from salt.pipeline.components import TINY_NAME
    from train.next_commands import TINY_PROMPT, after_evaluate

    written = [f"{out}.md, {out}.json" for bench, out in places.items() if not bench.startswith("vbench")]
    lines = [f"written: {', '.join(written)}"] if written else []
    if args.student is None or not args.student.exists():  # salt-tiny by its name
        return lines
    if "shapes" in args.bench:
        return lines + after_evaluate(args.student, TINY_PROMPT, TINY_NAME)
    return lines + after_evaluate(args.student, "a prompt", str(args.parts or ""))


def _check_vbench(args: argparse.Namespace) -> None:
    """Check the options of vbench before any other benchmark has run."""
    if args.prompts is None:
        raise ValueError("--prompts: found none, expected VBench_full_info.json or a list of VBench's prompts")
    if args.steps and len(args.steps) > 1:
        raise ValueError(f"--steps: found {' '.join(map(str, args.steps))}, expected one number of steps for vbench")


def open_pipeline(args: argparse.Namespace) -> SaltPipeline:
    """The student with its text encoder and VAE; a transformer/ in a pipeline's folder uses that folder's parts."""
    import torch

    from salt.pipeline.components import INDEX
    from salt.pipeline.from_options import PipelineOptions, load_pipeline

    path: Path = args.student
    if args.parts is None and path.name == "transformer" and (path.parent / INDEX).is_file():
        path = path.parent
    options = PipelineOptions(model=str(path), parts=args.parts, weights=args.weights, dtype=args.dtype)
    return load_pipeline(options, torch.device(args.device))


def check_frames(frames: int, spec: StudentSpec) -> None:
    """Raise ValueError unless `--frames` is a whole number of the student's blocks."""
    block, first = max(spec.frames_per_block, 1), spec.first_block
    below = (frames - first) // block * block + first
    if frames != below:
        near = " or ".join(str(n) for n in (below, below + block) if n > first)
        raise ValueError(f"--frames: found {frames}, expected {near} (blocks of {block} latent frames)")


def bench_prompts(args: argparse.Namespace, pipe: SaltPipeline) -> list[str]:
    """The file's prompts, or ShapeBench's captions for a student of the Shapes world."""
    from salt.io.prompt_files import read_prompts
    from salt.models.word_embedder import WordEmbedder
    from train.evaluation.shapebench import PROMPTS

    if args.prompts is None and not isinstance(pipe.prompt_encoder, WordEmbedder):
        raise ValueError("--prompts: found none, expected a file of them (the student is not of the Shapes world)")
    if args.prompts is None:
        prompts = [scene.caption for scene in PROMPTS]
    elif args.prompts.suffix == ".json":
        from train.evaluation.vbench import read_list

        prompts = [prompt.text for prompt in read_list(args.prompts)]
    else:
        prompts = read_prompts(args.prompts)
    return prompts[: args.limit]


def _shapes(args: argparse.Namespace, out: Path) -> None:
    from salt.pipeline.components import TINY_NAME
    from salt.spec import TINY_FOLDER
    from train.evaluation import shapebench as bench

    named_tiny = str(args.student) == TINY_NAME and not args.student.exists()
    student = TINY_FOLDER / "transformer" if named_tiny else args.student
    steps = tuple(args.steps or (2, 4, 8))
    seeds, frames = args.seeds or [bench.REPORTED_SEED], args.frames or bench.CLIP_FRAMES
    vae = args.vae or TINY_FOLDER / "vae"
    prompts = bench.PROMPTS[: args.limit]
    found = bench.evaluate(
        student, vae, out, args.teacher, steps, args.device, seeds, frames, prompts, args.first_steps
    )
    print(found)


def _defect(args: argparse.Namespace, out: Path) -> None:
    from salt.conditioning import Conditioning
    from salt.memory import MemoryPolicy
    from salt.semigroup_defect import TRIPLES, defect_table, parse_triples, steps_for
    from train.evaluation.semigroup_defect import DefectSettings, defect_rows, measure_defect

    triples = parse_triples(";".join(args.triples)) if args.triples else TRIPLES
    steps = steps_for(triples)
    pipe = open_pipeline(args)
    config, spec = pipe.transformer.config, pipe.spec
    if config.in_channels > config.out_channels:
        raise ValueError(f"{args.student}: the defect is not defined for image-to-video students")
    prompts = bench_prompts(args, pipe)
    height, width = (side // pipe.spatial_scale for side in pipe.default_size)
    settings = DefectSettings.of(
        spec,
        frames=args.frames or 21,
        height=height,
        width=width,
        policy=MemoryPolicy.parse(args.memory) if args.memory else spec.policy,
        steps=steps,
    )
    settings.check()
    text = pipe.prompt_encoder.encode(prompts).to(args.device, pipe.transformer.dtype)
    seeds = range(args.seed, args.seed + (args.samples or 1))
    found = measure_defect(
        pipe.transformer, Conditioning(text), settings, seeds, triples, batch=args.batch, progress=True
    )
    facts = {"prompts": len(prompts), "seeds": list(seeds), "frames": settings.frames, "steps": list(steps)}
    data = {"student": str(args.student), **facts, "memory": str(settings.policy), "defects": defect_rows(found)}
    _write(out, defect_table({"student": found}), data)


def _drift(args: argparse.Namespace, out: Path) -> None:
    from train.data.shards import with_progress
    from train.evaluation.drift import CLIP_FRAMES, drift_rows, drift_table, measure_drift, summarize_drift

    pipe, frames = open_pipeline(args), args.frames or CLIP_FRAMES
    check_frames(frames, pipe.spec)
    prompts = bench_prompts(args, pipe)
    groups = [prompts[i : i + args.batch] for i in range(0, len(prompts), args.batch)]
    rows, clips = {}, {}
    for steps in args.steps or [len(pipe.spec.steps)]:
        windows, name = [], f"student, {steps} steps"
        seeds = range(args.seed, args.seed + (args.samples or 1))
        batches = [(seed, group) for seed in seeds for group in groups]
        for seed, group in with_progress(batches, f"drift, {name}", "batches"):
            count = steps if args.steps else None
            windows += measure_drift(pipe, group, frames, seed, num_inference_steps=count, memory_policy=args.memory)
        rows[name], clips[name] = summarize_drift(windows), drift_rows(windows)
    data = {name: {"windows": rows[name], "clips": clips[name]} for name in rows}
    _write(out, drift_table(rows), {"student": str(args.student), **data})


def _vbench(args: argparse.Namespace, out: Path, long: bool = False) -> None:
    from train.evaluation.vbench import plan, read_list, sample_all

    prompts = read_list(args.prompts, args.extended)[: args.limit]
    samples = plan(prompts, args.seed, args.samples, long)
    steps = args.steps[0] if args.steps else None
    frames = args.frames or (120 if long else 21)

    def load() -> SaltPipeline:
        pipe = open_pipeline(args)
        check_frames(frames, pipe.spec)
        return pipe

    table = sample_all(
        load, str(args.student), samples, out, frames, num_inference_steps=steps, memory_policy=args.memory
    )
    if is_main_process():
        print(table)
        tool = "python vbench2_beta_long/eval_long.py --mode long_vbench_standard" if long else "vbench evaluate"
        print(f"score with: {tool} --videos_path {out / 'videos'} --dimension ...")


def _write(out: Path, table: str, data: dict[str, Any]) -> None:
    for suffix, text in ((".md", table), (".json", json.dumps(data))):
        write_text(out.with_name(out.name + suffix), text + "\n")
    print(table)
