"""What a memory is rebuilt from after it was rewound: the clean latents of its clip, given again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..errors import InputError
from .cache import KVMemory
from .clean_latents import CleanLatents, Reencode

# Latent frames that a decoder must have seen to go on without a visible seam (error 3e-5 with random weights).
DECODER_WARM_UP = 30


def latents_to_rebuild(
    memory: KVMemory, history: Tensor | None, lengths: Sequence[int], reencode: Reencode | None
) -> CleanLatents:
    """What a memory is rebuilt from that was rewound, or whose rebuild was interrupted.

    history: clean latents [B, C, F, H, W] of its scene up to `memory.next_frame`, with the lengths of their blocks.
    Raises InputError about `history_latents` where they are needed and missing.
    """
    if not memory.needs_history:
        return memory.clean
    policy, frames = memory.policy, memory.next_frame - memory.origin
    known = 0 if history is None else history.shape[2]
    if history is None or known < min(policy.window or 0, frames):
        raise InputError(
            "history_latents",
            f"found {known} latent frames, expected the clip's up to latent frame {memory.next_frame}: the memory was "
            "rewound there, and is rebuilt from them",
        )
    clean, given = CleanLatents(memory.clean.first), max(memory.clean.given - (frames - known), 0)
    at = 0
    for latents in history.to(memory.device).split(list(lengths), dim=2):
        at += latents.shape[2]
        # Decoded frames are needed of the last blocks alone, by a decoder that has seen some blocks before them.
        encoded = reencode if known - at <= DECODER_WARM_UP + (policy.window or 0) else lambda x: x[:, :, :1]
        clean = clean.with_block(latents, policy, at <= given, encoded)
    return replace(clean, given=min(memory.clean.given, frames))
