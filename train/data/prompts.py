"""Prompts by sample index, with their embeddings and start images."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from salt.conditioning import Conditioning
from salt.io.prompt_files import read_prompts
from salt.models.text_encoder import CachedTextEncoder, TextEncoder, UMT5TextEncoder, umt5_key, umt5_width
from salt.models.word_embedder import WordEmbedder
from train.config.recipe import Recipe, RecipeError
from train.data.batch import Batch
from train.data.start_images import StartImages, start_captions
from train.rollout.random_draws import generator_for
from train.shapes.world import random_scenes

EMBEDDINGS_KEY = "umt5-bfloat16"  # in the names of cached embeddings: what computed them


def text_encoder(recipe: Recipe) -> TextEncoder:
    """The recipe's text encoder; with `data.embeddings`, UMT5 is loaded only for prompts that are not cached there."""
    if recipe.models.text == "words":
        return WordEmbedder()
    if recipe.data.embeddings:
        return embeddings_cache(partial(umt5, recipe), recipe.data.embeddings, recipe.models.text)
    return umt5(recipe)


def embeddings_cache(load: Callable[[], TextEncoder], folder: str, text: str) -> CachedTextEncoder:
    """Embeddings in `folder`, made by the text encoder of the folder `text`, which need not be there any more."""
    known = Path(text or "/nonexistent").is_dir()
    content, width = (umt5_key(text), umt5_width(text)) if known else ("", None)
    return CachedTextEncoder(load, folder, EMBEDDINGS_KEY, content, width)


def umt5(recipe: Recipe) -> TextEncoder:
    """The UMT5 of `models.text`. Raises RecipeError where there is none."""
    if not Path(recipe.models.text).is_dir():
        raise RecipeError(
            "models.text", f"found no such folder {recipe.models.text!r}, and a prompt's embedding is not precomputed"
        )
    return UMT5TextEncoder.from_pretrained(recipe.models.text)


class Prompts:
    """Prompt and conditioning of every sample of every update: one shuffled pass over the list after another.

    The order is a function of the seed alone, so a resumed run needs the update's number and nothing else.
    channels: of the condition beside the latents, 0 for text-to-video. lines: a list in place of the recipe's prompts.
    """

    def __init__(self, recipe: Recipe, device: torch.device, channels: int = 0, lines: list[str] | None = None) -> None:
        self.recipe, self.device = recipe, device
        self.encoder = text_encoder(recipe)
        self.lines = lines if lines is not None else _listed(recipe)
        self.channels = channels
        self.start_images = StartImages(recipe, device, self.lines) if channels or recipe.data.images else None
        self.negative = self.encoder.encode([recipe.data.negative])
        self._orders: dict[tuple[str, int], list[int]] = {}

    def under(self, recipe: Recipe) -> Prompts:
        """The same prompts in the order of another recipe's seed."""
        other = copy(self)
        other.recipe, other._orders = recipe, {}
        return other

    def prompt(self, update: int, sample: int, role: str) -> str:
        if not self.lines:
            return random_scenes(1, generator_for(self.recipe.run.seed, role, update, sample, "prompt"))[0].caption
        return self.lines[self.line(update, sample, role)]

    def line(self, update: int, sample: int, role: str) -> int:
        """The prompt's index in the list."""
        position = update * self.recipe.optimisation.batch + sample
        epoch, place = divmod(position, len(self.lines))
        if (role, epoch) not in self._orders:
            order = torch.randperm(len(self.lines), generator=generator_for(self.recipe.run.seed, role, epoch, "order"))
            self._orders[role, epoch] = order.tolist()
            self._orders.pop((role, epoch - 2), None)
        return self._orders[role, epoch][place]

    def first(self, count: int) -> tuple[list[str], list[int]]:
        """The first prompts of the list and their lines; for the Shapes world, captions drawn from the seed."""
        if not self.lines:
            return [self.prompt(0, i, "samples") for i in range(count)], []
        lines = list(range(min(count, len(self.lines))))
        return [self.lines[i] for i in lines], lines

    def batch(self, update: int, samples: range, role: str) -> Batch:
        prompts = [self.prompt(update, i, role) for i in samples]
        lines = [self.line(update, i, role) for i in samples] if self.start_images else []
        return Batch(samples, *self.conditioning(prompts, lines), tuple(prompts), self.first_latents(lines))

    def conditioning(self, prompts: list[str], lines: list[int] | None = None) -> tuple[Conditioning, Conditioning]:
        """Conditionings of the prompts and of the negative prompt, with the start images of the list's `lines`."""
        text = self.encoder.encode(prompts).to(self.device)
        negative = self.negative.expand(len(prompts), -1, -1).to(self.device)
        image = channels = None
        if self.start_images is not None and self.channels:
            image, channels = self.start_images(lines or [])
        return Conditioning(text.float(), image, channels), Conditioning(negative.float(), image, channels)

    def first_latents(self, lines: list[int]) -> Tensor | None:
        """The first latent frames [B, C, 1, H, W] of a text-to-video student's clips, where the recipe has pictures."""
        return self.start_images.latents(lines) if self.start_images is not None and not self.channels else None


def _listed(recipe: Recipe) -> list[str]:
    """The prompts of `data.prompts`; none for the Shapes world, whose captions are drawn, or come with its pictures."""
    if recipe.data.prompts != "shapes":
        return read_prompts(Path(recipe.data.prompts))
    return start_captions(recipe) if recipe.data.images else []
