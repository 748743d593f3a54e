"""What a run would otherwise compute again and again, made once: prompt embeddings, start images, clips.

Everything is resumable: what is there already is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import track
from torch import nn

from salt.io.atomic import write_tensors
from salt.io.prompt_files import read_prompts
from salt.models.text_encoder import CachedTextEncoder, UMT5TextEncoder
from salt.pipeline.components import load_components
from salt.pipeline.start_image import IMAGE_SUFFIXES, image_channels, image_embeddings, start_pixels
from train.config.recipe import Recipe, RecipeError, load_recipe
from train.config.validation import check_settings, prompt_complaints
from train.data.batch import CACHE_KEY
from train.data.clip_dataset import make_clips
from train.data.encode_videos import encode_footage

BATCH = 8


def embeddings(prompts: list[str], text: str, out: str, device: str) -> int:
    """Embed prompts that `out` does not hold yet; returns how many those were."""
    if not Path(text or "/nonexistent").is_dir():
        raise RecipeError(f"--text: found no such folder {text!r}, expected text_encoder/ and tokenizer/ in it")
    encoder = CachedTextEncoder(lambda: UMT5TextEncoder.from_pretrained(text, device=device), out, CACHE_KEY)
    new = [p for p in dict.fromkeys(prompts) if not encoder.path(p).exists()]
    for at in track(range(0, len(new), BATCH), "embeddings", disable=not new):
        encoder.encode(new[at : at + BATCH])
    return len(new)


def starts(recipe: Recipe, pictures: Path, device: str) -> int:
    """Write the start of every prompt line that `data.images` lacks, from a folder of pictures; returns how many.

    The picture of line N is named N (with or without leading zeros), with any suffix that the engine reads.
    Raises RecipeError naming the line that has none, before anything is computed.
    """
    lines = read_prompts(Path(recipe.data.prompts))
    named = {
        int(p.stem): p for p in sorted(pictures.iterdir()) if p.stem.isdigit() and p.suffix.lower() in IMAGE_SUFFIXES
    }
    without = [i for i in range(len(lines)) if i not in named]
    if without:
        raise RecipeError(f"--images: {pictures}: found no picture for prompt line {without[0]}, expected one a line")
    out, r = Path(recipe.data.images), recipe.rollout
    new = [i for i in range(len(lines)) if not (out / f"{i:06d}.safetensors").exists()]
    if not new:
        return 0
    parts = load_components(recipe.models.text)
    if parts.image_encoder is None:
        raise RecipeError(f"models.text: found no image_encoder/ in {recipe.models.text!r}, expected Wan I2V's folder")
    for model in (parts.vae, parts.image_encoder):
        nn.Module.to(model, torch.device(device))
    scale = int(parts.vae.config["scale_factor_spatial"])
    for line in track(new, "start images"):
        pixels = start_pixels(named[line], (r.height * scale, r.width * scale), 1)
        pixels = pixels.to(torch.device(device))
        tensors = {
            "image": image_embeddings(parts.image_encoder, parts.image_processor, pixels)[0],
            "channels": image_channels(parts.vae, pixels, r.frames)[0],
        }
        write_tensors(out / f"{line:06d}.safetensors", {name: x.bfloat16() for name, x in tensors.items()})
    return len(new)


def from_recipe(recipe: Recipe, pictures: Path | None, videos: Path | None, device: str) -> list[str]:
    """Everything that the recipe names and that can be made: a line for each, saying what was new."""
    done, data = [], recipe.data
    if data.embeddings:
        for line in prompt_complaints(Path(data.prompts)):
            raise RecipeError(line)
        prompts = [*read_prompts(Path(data.prompts)), data.negative]
        done.append(f"{data.embeddings}: {embeddings(prompts, recipe.models.text, data.embeddings, device)} embedded")
    if data.images:
        if pictures is None:
            raise RecipeError(f"--images: found none, expected a folder of pictures to make {data.images} from")
        done.append(f"{data.images}: {starts(recipe, pictures, device)} start images")
    if recipe.stage != "distill":
        check_settings(recipe)

        def tell(count: int) -> None:
            print(f"{data.clips}: clip {count}", flush=True)

        there = torch.device(device)
        made = make_clips(recipe, there, tell) if recipe.stage == "ode" else encode_footage(recipe, videos, there, tell)
        done.append(f"{data.clips}: {made} clips")
    if not done:
        raise RecipeError(
            f"{recipe.name}: found nothing to precompute, expected data.embeddings, data.images or data.clips"
        )
    return done


def run(arguments: argparse.Namespace) -> None:
    """Make prompt embeddings, start images, a teacher's trajectories or encoded videos before a run."""
    source: Path = arguments.source
    if source.suffix == ".txt":
        for line in prompt_complaints(source):
            raise RecipeError(line)
        prompts = read_prompts(source)
        new = embeddings(prompts, arguments.text, arguments.out, arguments.device)
        print(f"{arguments.out}: {new} of {len(prompts)} prompts embedded, the others were there")
        return
    recipe = load_recipe(source, arguments.overrides)
    for line in from_recipe(recipe, arguments.images, arguments.videos, arguments.device):
        print(line)


def add_precompute(commands: argparse._SubParsersAction) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = commands.add_parser("precompute", help=run.__doc__, description=__doc__)
    command.add_argument("source", type=Path, help="a prompt file (.txt), or a recipe whose data is to be made")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for a recipe, as distill takes them")
    command.add_argument("--text", default="", help="folder with text_encoder/ and tokenizer/, for a prompt file")
    command.add_argument("--out", default="data/embeddings", help="where a prompt file's embeddings go")
    command.add_argument("--images", type=Path, help="folder of pictures named by prompt line, for an I2V recipe")
    command.add_argument("--videos", type=Path, help="folder of NAME.mp4 and NAME.txt (caption), for the stage tf")
    command.add_argument("--device", default=device)
    command.set_defaults(run=run)
