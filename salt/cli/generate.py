"""Make videos from prompts: one, or a file of them, on one device or many."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.launcher import check_launcher, is_main_process, process_count
from ..io.printable import printable
from .convert import add_lora_argument, loras_of, split_loras
from .option_types import file_name, file_path

if TYPE_CHECKING:
    from ..pipeline.from_options import PipelineOptions


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", nargs="?", help="what to show")
    command.add_argument("--prompts", type=file_path, metavar="FILE", help="prompts, one a line; -o is a folder then")
    command.add_argument(
        "-o",
        "--out",
        type=file_path,
        default=Path("salt.mp4"),
        help="video to write (salt.mp4; an existing file is replaced), or folder (--prompts)",
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--parallel",
        choices=("heads",),
        help="one clip over the processes of torchrun or accelerate launch, attention and memory split by heads",
    )
    add_model_arguments(command)
    clip = command.add_argument_group("the clip")
    clip.add_argument(
        "--seconds",
        type=float,
        help="length at the model's rate (16 frames a second, LongLive 2.0: 24), a start counts; rounded up to whole "
        "blocks (5)",
    )
    clip.add_argument("--frames", type=int, help="length in frames, an exact number of blocks")
    clip.add_argument("--width", type=int)
    clip.add_argument("--height", type=int)
    clip.add_argument("--image", type=file_path, help="picture (or mp4) that the clip starts from")
    clip.add_argument("--video", type=file_path, help="video (mp4, ...) that is changed; the clip is as long")
    add_encoder_argument(clip)
    clip.add_argument(
        "--strength", type=float, help="how far --video may be changed: 0 (not at all) to 1 (nothing of it is left)"
    )
    clip.add_argument(
        "--prompt-at",
        nargs=2,
        action="append",
        default=[],
        metavar=("SECONDS", "TEXT"),
        help="another prompt from then on; may be given again",
    )
    clip.add_argument(
        "--switch",
        choices=("keep", "recache", "cut", "shot", "recache-sink"),
        help="what --prompt-at does to the memory (recache); recache-sink keeps the sink",
    )
    steps = command.add_argument_group("steps and memory")
    steps.add_argument("--nfe", type=int, help="model evaluations per block (2, 4, 8, ...; default: the student's)")
    steps.add_argument("--first-nfe", type=int, metavar="N", help="of the clip's first block (default: the student's)")
    steps.add_argument("--steps", type=_numbers, metavar="LIST", help="the steps themselves, falling: 1000,750,500,250")
    steps.add_argument("--shift", type=float)
    steps.add_argument("--stepping", choices=("sde", "ode", "unipc"))
    steps.add_argument("--guidance", type=float, default=1.0)
    steps.add_argument("--negative", default="", help="negative prompt, with --guidance")
    steps.add_argument(
        "--memory",
        metavar="POLICY",
        help="full, window:W, sink:S,window:W, relative:S,window:W, cyclic:W, blended:S,window:W, "
        "overwrite:S,window:W, shots:S,window:W,offset:N; then ,int8 ,fp8 ,int4 ,cpu",
    )
    steps.add_argument("--fuse", action="store_true", help="one forward for context pass and next first step")
    steps.add_argument(
        "--extend", type=file_path, metavar="MEMORY", help="go on from a saved memory; writes the new part"
    )
    steps.add_argument(
        "--save-memory", type=file_path, metavar="MEMORY", help="NAME.safetensors, to extend the clip later"
    )


def add_encoder_argument(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--encoder",
        type=file_name,
        default="wan",
        help="of --video: wan, or the path of taew2_1 (TAEHV): cheaper, less faithful",
    )


def add_model_arguments(command: argparse.ArgumentParser, named_loras: bool = False) -> None:
    model = command.add_argument_group("the model")
    model.add_argument(
        "--model", type=file_name, default="salt-tiny", help="pipeline folder, or a checkpoint (default: salt-tiny)"
    )
    model.add_argument(
        "--parts",
        type=file_path,
        help="folder with vae/, text_encoder/, tokenizer/, or salt-tiny (default: the pulled)",
    )
    model.add_argument("--weights", default="auto", choices=("auto", "ema", "regular"))
    model.add_argument(
        "--student",
        metavar="NAME",
        help="whose settings a checkpoint has, where its file does not tell: self-forcing, longlive, longlive2, "
        "longlive2-s2, krea, sdv2, sdv2-14b, wan22 (plain TI2V 5B)",
    )
    add_lora_argument(model, named_loras)
    model.add_argument(
        "--decoder", type=file_name, default="wan", help="wan, or the path of taew2_1 (TAEHV): cheaper, a little softer"
    )
    model.add_argument("--tiles", action="store_true", help="decode with Wan's VAE in tiles, where frames do not fit")
    model.add_argument("--device", help="default: CUDA where there is one")
    model.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: bfloat16 on CUDA")
    model.add_argument("--vae-dtype", choices=("float32", "bfloat16"), help="of Wan's VAE; default: bfloat16 on CUDA")
    model.add_argument(
        "--prefer", default="exact",
        choices=("exact", "fast", "fastest", "low memory", "lowest memory", "layer by layer"),
        help="fast: compiled, the same numbers up to rounding; fastest: and float8, on GPUs that have it; "
        "low memory: int8 memory, decoding in tiles; lowest memory: int4 memory, weights stored in float8; "
        "layer by layer: int4 memory, weights in main memory (salt plan shows what fits)",
    )  # fmt: skip
    model.add_argument(
        "--attention", default="auto", choices=("auto", "fa3", "cudnn", "sage", "fa2", "sdpa"),
        help="which kernel computes attention (auto: the fastest that works here; sage is not exact)",
    )  # fmt: skip
    model.add_argument(
        "--kernels", default="auto", choices=("auto", "off"),
        help="fused Triton kernels (auto: with every --prefer but exact, those that pass a trial on the GPU)",
    )  # fmt: skip
    model.add_argument("--text-precision", default="bf16", choices=("bf16", "int8"), help="int8 needs torchao")
    model.add_argument("--text-cache", type=file_path, metavar="FOLDER", help="keeps prompt embeddings")


def pipeline_options(arguments: argparse.Namespace, named_loras: bool = False) -> PipelineOptions:
    """What the options of `add_model_arguments` say."""
    from ..pipeline.from_options import PipelineOptions

    merged, named = split_loras(arguments) if named_loras else (loras_of(arguments), ())
    return PipelineOptions(
        model=arguments.model, parts=arguments.parts, weights=arguments.weights, lora=merged,
        named_loras=named, student=arguments.student,
        decoder=arguments.decoder, tiles=arguments.tiles, device=arguments.device, dtype=arguments.dtype,
        vae_dtype=arguments.vae_dtype,
        text_precision=arguments.text_precision, text_cache=arguments.text_cache, prefer=arguments.prefer,
        attention=arguments.attention, kernels=arguments.kernels,
    )  # fmt: skip


def _numbers(text: str) -> list[float]:
    try:
        return [float(x) for x in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers with commas, as 1000,500") from None


# The options of the fields that errors of the library are about; a memory policy's own fields come after its option.
OPTIONS = {
    "num_frames": "--frames",
    "num_inference_steps": "--nfe",
    "nfe": "--nfe",
    "num_first_steps": "--first-nfe",
    "first_steps": "--first-nfe",
    "prompt_schedule": "--prompt-at",
    "memory_policy": "--memory",
    "policy": "--memory",
    "guidance": "--guidance",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative",
    "memory": "--extend",
    "save_memory": "--save-memory",
    "text_cache": "--text-cache",
    "vae_dtype": "--vae-dtype",
    "text_precision": "--text-precision",
    **{
        name: f"--{name}"
        for name in (
            *("seconds", "width", "height", "image", "video", "strength", "steps", "shift", "stepping", "seed"),
            *("host", "port", "token", "size", "lead", "pace", "record", "parallel"),
            *(
                "model",
                "student",
                "vram",
                "weights",
                "prefer",
                "attention",
                "parts",
                "tiles",
                "decoder",
                "encoder",
                "device",
                "dtype",
                "lora",
            ),
        )
    },
    **{name: f"--memory: {name}" for name in ("window", "sink", "blend", "refresh", "reset")},
}


def inputs_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `SaltPipeline.stream` (see `salt.pipeline.PipelineInputs`) that the command line has."""
    values = {
        "seconds": arguments.seconds,
        "num_frames": arguments.frames,
        "width": arguments.width,
        "height": arguments.height,
        "image": arguments.image,
        "video": arguments.video,
        "strength": arguments.strength,
        "num_inference_steps": arguments.nfe,
        "num_first_steps": arguments.first_nfe,
        "steps": arguments.steps,
        "shift": arguments.shift,
        "stepping": arguments.stepping,
        "memory_policy": arguments.memory,
    }
    inputs = {key: value for key, value in values.items() if value is not None}
    if arguments.guidance != 1.0:
        inputs |= {"guidance_scale": arguments.guidance, "negative_prompt": arguments.negative}
    elif arguments.negative:
        raise ValueError("--negative has no effect without --guidance, which is 1")
    if arguments.prompt_at:
        from ..conditioning import SWITCHES_BY_WORD

        switch, keep_sink = SWITCHES_BY_WORD[arguments.switch or "recache"]
        inputs["prompt_schedule"] = [(_seconds(at), text, switch, keep_sink) for at, text in arguments.prompt_at]
    elif arguments.switch:
        raise ValueError("--switch has no effect without --prompt-at")
    return inputs | ({"fuse": True} if arguments.fuse else {})


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--prompt-at: found {text!r}, expected seconds, then the prompt") from None


def check_processes(arguments: argparse.Namespace) -> None:
    """Raise ValueError where the launcher's processes and the command do not go together."""
    count = process_count()
    if arguments.parallel and arguments.prompts:
        raise ValueError("--parallel is for one clip; the processes share the prompts of --prompts without it")
    if arguments.parallel and arguments.device not in (None, "cpu"):
        raise ValueError(f"--device: found {arguments.device}, expected none: every process takes its own card")
    if arguments.parallel and count < 2:
        raise ValueError(
            "--parallel: found one process, expected several (torchrun --nproc_per_node N -m salt.cli generate ...)"
        )
    if not arguments.parallel and arguments.prompts is None and count > 1:
        raise ValueError(
            f"prompt: found {count} processes for one clip, expected one (or --prompts FILE, or --parallel heads)"
        )


def run(arguments: argparse.Namespace) -> None:
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise ValueError("prompt: expected one prompt, or --prompts FILE")
    if arguments.prompts and (arguments.extend or arguments.save_memory):
        raise ValueError("--extend and --save-memory are not supported with --prompts")
    check_launcher("salt.cli")
    check_processes(arguments)
    from .generation import GenerationOptions, generate_many, generate_one, generate_together

    if arguments.encoder != "wan" and arguments.video is None:
        raise ValueError("--encoder has no effect without --video; a start image is encoded by Wan's VAE")
    pipeline = replace(pipeline_options(arguments), encoder=arguments.encoder)
    options = GenerationOptions(pipeline, arguments.seed, inputs_of(arguments))
    if arguments.prompts:
        generate_many(arguments.prompts, arguments.out, options)
        return
    if arguments.parallel:
        stats = generate_together(arguments.prompt, arguments.out, options, arguments.extend, arguments.save_memory)
    else:
        stats = generate_one(arguments.prompt, arguments.out, options, arguments.extend, arguments.save_memory)
    if is_main_process():
        print(f"{printable(arguments.out)}: {stats}")
