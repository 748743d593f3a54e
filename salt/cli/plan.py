"""Show what a clip needs of a GPU's memory, what fits a card, and the cheapest settings that do."""

from __future__ import annotations

import argparse

from .option_types import file_name, pixel_size

DEFAULT_VRAM = 8.0  # where there is no GPU


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", type=file_name, default="1.3B",
        help="1.3B, 14B, 14B-I2V, salt-tiny, or a checkpoint or pipeline folder, whose header is read (1.3B)",
    )  # fmt: skip
    command.add_argument("--size", type=pixel_size, default="832x480", metavar="WIDTHxHEIGHT", help="pixels (832x480)")
    command.add_argument("--seconds", type=float, default=5.0)
    command.add_argument("--vram", type=float, metavar="GB", help="of the card (default: this machine's GPU, or 8)")
    command.add_argument("--memory", metavar="POLICY", help="as of salt generate (default: the student's)")
    command.add_argument("--guidance", action="store_true", help="two branches, as with --guidance of salt generate")
    command.add_argument(
        "--text", default="layers", choices=("device", "layers", "visit", "cpu", "int8 alone", "none"),
        help="where the text encoder is: on the device, there block by block (as salt generate does), there as a whole "
        "while it encodes, on the CPU, in int8 with the student off the device, or in another process",
    )  # fmt: skip
    command.add_argument("--decoder", default="whole", choices=("whole", "tiles", "taehv", "none"))
    command.add_argument("--vae", default="bf16", choices=("bf16", "float32"), help="precision of Wan's VAE")
    command.add_argument("--weights", default="bf16", choices=("float32", "bf16", "fp8", "layers"))
    command.add_argument("--cards", action="store_true", help="one table of the usual sizes of cards instead")


def run(arguments: argparse.Namespace) -> None:
    from ..io.pixel_sizes import check_multiple
    from ..memory import MemoryPolicy
    from ..planning import PlanSettings, planned_model
    from ..planning.report import card_table, plan_report, vram_bytes

    width, height = arguments.size
    settings = PlanSettings(
        height=height, width=width, seconds=arguments.seconds,
        policy=MemoryPolicy.parse(arguments.memory) if arguments.memory else None,
        weights=arguments.weights, text=arguments.text, decoder=arguments.decoder, vae=arguments.vae,
        guided=arguments.guidance,
    )  # fmt: skip
    model = planned_model(arguments.model)
    for side, pixels in (("width", width), ("height", height)):
        check_multiple("size", pixels, model.token_pixels, f"a {side} of ")
    if arguments.cards:
        print(card_table(model, settings))
        return
    vram = device_bytes() if arguments.vram is None else vram_bytes(arguments.vram)
    print(plan_report(model, settings, vram))


def device_bytes() -> int:
    """Bytes of the first CUDA device's memory; those of a small card where there is none."""
    import torch

    from ..acceleration.free_memory import total_bytes
    from ..planning.report import vram_bytes

    return total_bytes(torch.device("cuda:0")) if torch.cuda.is_available() else vram_bytes(DEFAULT_VRAM)
