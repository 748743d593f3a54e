"""`python -m train precompute`: prompt embeddings, start images and clips, computed once before a run.

Resumable: files that exist are kept. Several processes share the work:
`torchrun --nproc_per_node 8 -m train precompute ...`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from salt.cli.option_types import file_path
from salt.errors import InputError
from train.command_line import DEVICE, DEVICE_HELP


def precompute(arguments: argparse.Namespace) -> None:
    """Precompute prompt embeddings, start images, a teacher's trajectories or encoded videos for a run."""
    from salt.io.launcher import is_main_process
    from salt.io.prompt_files import read_prompts
    from train.config.loader import load_recipe
    from train.config.validation import check_prompt_file
    from train.next_commands import before_distill

    source: Path = arguments.source
    of_prompts = source.suffix.lower() == ".txt"
    for name in ("overrides", "images", "videos") if of_prompts else ("text", "out"):
        if value := getattr(arguments, name):
            what = "a prompt file" if of_prompts else "a recipe, whose models.text and data.embeddings it reads"
            field = value[0] if name == "overrides" else name
            raise InputError(field, f"has no effect on {what}")
    if of_prompts:
        out = arguments.out or "data/embeddings"
        check_prompt_file(source)
        prompts = read_prompts(source)

        from train.data.precompute import precompute_embeddings

        new = precompute_embeddings(prompts, arguments.text, out, arguments.device)
        print(f"{out}: {new} of {len(prompts)} prompts embedded")
        if is_main_process():
            print(before_distill("RECIPE", f"data.prompts={source}", f"data.embeddings={out}"))
        return
    recipe = load_recipe(source, arguments.overrides)  # a mistake in it is said before the slow import below

    from train.data.precompute import precompute_recipe

    for line in precompute_recipe(recipe, arguments.images, arguments.videos, arguments.device):
        print(line)
    if is_main_process():
        print(before_distill(source, *arguments.overrides))


def add_precompute(commands: argparse._SubParsersAction) -> None:
    """Add the command to `python -m train`."""
    command = commands.add_parser("precompute", help=precompute.__doc__, description=__doc__)
    command.add_argument("source", type=Path, help="a prompt file (.txt), or a recipe whose data is computed")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for a recipe, as distill takes them")
    command.add_argument("--text", default="", help="folder with text_encoder/ and tokenizer/, for a prompt file")
    command.add_argument("--out", default="", help="folder of a prompt file's embeddings (default: data/embeddings)")
    command.add_argument("--images", type=file_path, help="folder of pictures named by prompt line, for an I2V recipe")
    command.add_argument(
        "--videos",
        type=file_path,
        help="folder of videos, NAME.mp4 and its caption in NAME.txt, for stages cd and tf and loss.adversarial",
    )
    command.add_argument("--device", default=DEVICE, help=DEVICE_HELP)
    command.set_defaults(run=precompute)
