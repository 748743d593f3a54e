"""Long tuning by chunks: a clip of a minute that updates continue, each on its newest latent frames.

Source: LongLive (arXiv 2509.22622) and its release, which Salt's has as well (`streaming_training`). A chunk is what
the scores see, `rollout.window` latent frames; the first chunk is new, in later ones some frames may be the chunk
before's, without loss. A later chunk begins within the clip, while the scores were trained on clips that begin with a
picture's latent: so its first latent is encoded again, as a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from salt.memory import KVMemory
from salt.models.streaming_vae import WanStreamDecoder, encode_video
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.recipe import Recipe
from train.data.batch import Batch
from train.rollout.gradient_rollout import RolloutResult, continue_with_grad
from train.rollout.random_draws import UpdateDraws, seed_for
from train.rollout.recipe_rollout import new_memory


def chunk_lengths(recipe: Recipe, sequence: int) -> list[int]:
    """New latent frames of every chunk of a sequence, drawn from the recipe's seed; the same for all its clips."""
    r = recipe.rollout
    lengths = [r.window + (1 if r.independent_first_frame else 0)]
    while options := [n for n in _new_frames(recipe) if sum(lengths) + n <= r.frames]:
        lengths.append(options[seed_for(recipe.run.seed, "chunk", sequence, len(lengths)) % len(options)])
    return lengths


def _new_frames(recipe: Recipe) -> list[int]:
    """How many frames of a later chunk may be new: whole blocks, with at most `overlap` others."""
    r = recipe.rollout
    return [r.window - n for n in range(0, min(r.overlap, r.window - 1) + 1, r.frames_per_block)]


@dataclass
class Stream:
    """The clips of one micro-batch, as far as they have come. recent: their last `window` latent frames."""

    batch: Batch
    seeds: list[int]
    memory: KVMemory | None = None
    recent: Tensor | None = None


def next_chunk(
    student: SaltTransformer3DModel,
    stream: Stream,
    frames: int,
    recipe: Recipe,
    draws: UpdateDraws,
    vae: AutoencoderKLWan,
    *,
    gradient: bool,
) -> RolloutResult:
    """Continue the stream by `frames`; returns the chunk, whose new frames carry loss.

    Counterparts in LongLive: `generate_next_chunk` and `_process_first_frame_encoding` of model/streaming_training.py.
    """
    if stream.memory is None:
        stream.memory = new_memory(student, stream.batch.conditioning, recipe)
    conditioning, before = stream.batch.conditioning, stream.recent
    result = continue_with_grad(
        student, conditioning, stream.memory, frames, recipe, draws, stream.seeds, gradient=gradient
    )
    window = recipe.rollout.window
    if before is None:
        stream.recent = result.x0.detach()[:, :, -window:]
        return result
    known = torch.cat([before, result.x0.detach()], dim=2)
    stream.recent = known[:, :, -window:]
    first = picture_latent(vae, known[:, :, : known.shape[2] - window + 1])
    chunk = torch.cat([before, result.x0], dim=2)[:, :, 1 - window :]
    return replace(result, x0=torch.cat([first, chunk], dim=2))


@torch.no_grad()
def picture_latent(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The last of the latent frames [B, C, F, H, W], decoded behind those before it, as a picture's latent."""
    decoder, rows = WanStreamDecoder(vae), []
    for clip in latents.split(1):  # a decoder's cache is as large as a clip
        decoder.reset()
        for frame in clip.split(1, dim=2):
            pixels = decoder.decode(frame)
        rows.append(encode_video(vae, pixels[:, :, -1:]))
    return torch.cat(rows).to(latents)
