"""Memories that were tried and are not in the engine, on long ShapeBench clips: prototypes over plain lists of tokens.

`python -m benchmarks.memory_trials [ROW ...] [--seeds 2000] [--nfe 2]`. Every row has salt-tiny's own positions (kept
tokens at 0 and up in their order, the block behind them) and is scored on the last 21 of 120 latent frames of 48
prompts. Without a row, all of `ROWS`. The table's last column is the mean difference of the background (of 1) from the
clip's first frames: what a memory that forgets the scene loses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.memory import KVMemory, MemoryPass, MemoryPolicy
from salt.memory.quantization import dequantise_into, quantise
from salt.models.causal_model import CausalModel
from salt.models.word_embedder import WordEmbedder
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings, rollout
from salt.rope import Rotary, cached_rotary_table, wide
from salt.schedule import Schedule
from salt.spec import TINY_FOLDER
from train.evaluation.sampling import decode_latents, load_vae
from train.evaluation.shapebench import CLIP_FRAMES, DECODER_WARMUP, PROMPTS
from train.shapes.bench import fit_background, score_clip, summarize

BLOCK, SIDE, LAYERS = 3, 8, 4
FRAMES = 120
SCORES = ("passed", "shape", "speed", "count", "sharp", "steady", "no_drift")


@dataclass
class Tokens:
    """A layer's kept tokens, oldest first: keys without RoPE and values [B, n, heads, D], frame and place [B, n]."""

    k: Tensor
    v: Tensor
    frame: Tensor
    place: Tensor

    def take(self, index: Tensor) -> Tokens:
        """Those at `index` [B, m]."""

        def taken(x: Tensor) -> Tensor:
            return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))

        return Tokens(*map(taken, (self.k, self.v, self.frame, self.place)))

    def and_then(self, other: Tokens) -> Tokens:
        names = ("k", "v", "frame", "place")
        return Tokens(*(torch.cat([getattr(self, n), getattr(other, n)], dim=1) for n in names))


# What stays after a context pass: (layer, tokens with the block's, rotated queries of the block, rotated keys, tokens
# of a frame) -> tokens.
Rule = Callable[[int, Tokens, Tensor, Tensor, int], Tokens]


def windows(by_layer: Sequence[tuple[int, int]], layer: int, kept: Tokens, q: Tensor, keys: Tensor, n: int) -> Tokens:
    """Sink and window of every layer's own."""
    sink, window = by_layer[layer]
    frame = kept.frame[0]
    stays = (frame < sink) | (frame > frame[-1] - (window - BLOCK - sink))
    return kept.take(stays.nonzero().squeeze(1).expand(len(kept.frame), -1))


def pruned(
    sink: int, window: int, recent: int, score: str, layer: int, kept: Tokens, q: Tensor, keys: Tensor, n: int
) -> Tokens:
    """Deep Forcing's participative compression (arXiv 2512.05081), at the size of a window: sink and recent frames
    stay, and of the tokens between them those that the block's queries score highest, over all heads. score: `dot` sums
    products, as published; `softmax` attention weights; `random` draws."""
    tokens, first, last = kept.k.shape[1], sink * n, recent * n
    top = (window - BLOCK) * n - first - last
    if tokens <= (window - BLOCK) * n:
        return kept
    between = slice(first, tokens - last)
    if score == "dot":
        scores = torch.einsum("bqhd,bkhd->bk", q, keys[:, between])
    elif score == "softmax":
        weights = torch.einsum("bqhd,bkhd->bhqk", q, keys) / q.shape[-1] ** 0.5
        scores = weights.softmax(-1)[..., between].sum((1, 2))
    else:
        scores = torch.rand(keys[:, between].shape[:2])
    chosen = scores.topk(top, dim=1).indices.sort(dim=1).values + first
    rows = len(chosen)
    always = [torch.arange(first).expand(rows, -1), torch.arange(tokens - last, tokens).expand(rows, -1)]
    return kept.take(torch.cat([always[0], chosen, always[1]], dim=1))


Codes = Callable[[Tensor], Tensor]  # x [B, S, heads, D], rounded


def staged(
    recent: int, of_keys: Codes, of_values: Codes, layer: int, kept: Tokens, q: Tensor, keys: Tensor, n: int
) -> Tokens:
    """Sink 3 and window 12 in few bits, but for the newest `recent` frames, which stay exact until they are older."""
    entering = kept.frame[0] > kept.frame[0, -1] - recent - BLOCK  # those before them have been rounded already
    entering &= kept.frame[0] <= kept.frame[0, -1] - recent
    if entering.any():
        kept.k[:, entering], kept.v[:, entering] = of_keys(kept.k[:, entering]), of_values(kept.v[:, entering])
    return windows([(3, 12)] * LAYERS, layer, kept, q, keys, n)


def int2_by_channel(x: Tensor) -> Tensor:
    """Each channel has a scale over the tokens of three frames: 48, about as many as would share one at true size."""
    return four_levels(x, 1)


def int2_by_token(x: Tensor) -> Tensor:
    """Each token has a scale over 32 channels."""
    return four_levels(x.unflatten(-1, (-1, 32)), -1).flatten(-2)


def int4(x: Tensor) -> Tensor:
    """The engine's int4."""
    dequantise_into(made := torch.empty_like(x), *quantise(x, "int4"), "int4")
    return made


def four_levels(x: Tensor, dim: int) -> Tensor:
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    step = ((high - low) / 3).half().float()
    low = low.half().float()
    return ((x - low) / torch.where(step == 0, 1, step)).round().clamp(0, 3) * step + low


def same(sink: int, window: int) -> Rule:
    return partial(windows, [(sink, window)] * LAYERS)


ROWS: dict[str, Rule] = {
    "sink 3 + window 12": same(3, 12),
    "sink 3 + window 9": same(3, 9),
    "sink 1 + window 6": same(1, 6),
    "pruned, 6 frames: sink 1, recent 1": partial(pruned, 1, 6, 1, "dot"),
    "the same, attention weights": partial(pruned, 1, 6, 1, "softmax"),
    "the same, random tokens": partial(pruned, 1, 6, 1, "random"),
    "pruned, 6 frames: sink 1, nothing recent": partial(pruned, 1, 6, 0, "dot"),
    "pruned, 9 frames: sink 3, recent 1, attention weights": partial(pruned, 3, 9, 1, "softmax"),
    "windows 9, 5, 5, 5": partial(windows, [(1, 9), (1, 5), (1, 5), (1, 5)]),
    "windows 5, 9, 5, 5": partial(windows, [(1, 5), (1, 9), (1, 5), (1, 5)]),
    "windows 5, 5, 9, 5": partial(windows, [(1, 5), (1, 5), (1, 9), (1, 5)]),
    "windows 5, 5, 5, 9": partial(windows, [(1, 5), (1, 5), (1, 5), (1, 9)]),
    "windows 6, 6, 12, 12": partial(windows, [(1, 6), (1, 6), (3, 12), (3, 12)]),
    "sink 1 in the first and last layer": partial(windows, [(1, 6), (0, 5), (0, 5), (1, 6)]),
    "int4": partial(staged, 0, int4, int4),
    "int2 by channel": partial(staged, 0, int2_by_channel, int2_by_channel),
    "int2 by channel, newest 3 frames exact": partial(staged, 3, int2_by_channel, int2_by_channel),
    "int2 by token": partial(staged, 0, int2_by_token, int2_by_token),
    "keys int2 by channel, values int4": partial(staged, 0, int2_by_channel, int4),
}


class TrialMemory(KVMemory):
    """A memory of tokens, kept by a rule."""

    rule: Rule

    def __init__(self, rule: Rule, like: KVMemory) -> None:
        super().__init__(like.policy, like.geometry, like.dtype, like.device, None, like.fingerprint)
        self.rule = rule
        self.kept_tokens: list[Tokens | None] = [None] * like.geometry.layers

    def open(self, write: int | Sequence[int] = (), read: int = 0, start: int | None = None) -> TrialPass:
        return TrialPass(self, write if isinstance(write, int) else read, isinstance(write, int))

    def commit(self, memory_pass: MemoryPass, context_sigma: float = 0.0) -> None:
        assert isinstance(memory_pass, TrialPass)
        if memory_pass.writes:
            self.kept_tokens = memory_pass.after
            self.next_frame += memory_pass.frames


class TrialPass(MemoryPass):
    def __init__(self, memory: TrialMemory, frames: int, writes: bool) -> None:
        super().__init__(memory.policy, memory.geometry, memory.allocated(1), [])
        self.memory, self.block, self.writes = memory, frames, writes
        self.after: list[Tokens | None] = list(memory.kept_tokens)

    @property
    def start_frame(self) -> int:
        return self.memory.next_frame

    @property
    def frames(self) -> int:
        return self.block

    def attend(self, layer, q, k, v, attention, norm=None):
        g, n, batch = self.geometry, self.geometry.tokens, len(q)
        frame = torch.arange(self.start_frame, self.start_frame + self.block).repeat_interleave(n).expand(batch, -1)
        new = Tokens(k, v, frame, torch.arange(n).repeat(self.block).expand(batch, -1))
        kept = self.memory.kept_tokens[layer]
        joined = new if kept is None else kept.and_then(new)
        tokens = joined.k.shape[1]
        first = -(-(tokens - q.shape[1]) // n)  # position of the block
        table = cached_rotary_table(tuple(range(first + self.block)), g.height, g.width, g.head_dim, "cpu")
        position = torch.arange(tokens) // n
        position[tokens - q.shape[1] :] = torch.arange(first, first + self.block).repeat_interleave(n)
        place = position * n + joined.place
        keys, queries = rotated(joined.k, table, place), rotated(q, table, place[:, -q.shape[1] :])
        found = attention(queries, keys, joined.v)
        if self.writes:
            self.after[layer] = self.memory.rule(layer, joined, queries, keys, n)
        return found


def rotated(x: Tensor, table: Rotary, place: Tensor) -> Tensor:
    """x [B, S, heads, D] turned by the table's rows at `place` [B, S]."""
    turns = torch.complex(table.cos[place], table.sin[place])[:, :, None]
    pairs = torch.view_as_complex(wide(x).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


@torch.no_grad()
def scored(rule: Rule, seed: int, nfe: int) -> dict[str, float]:
    student = load_student(TINY_FOLDER / "transformer", dtype=torch.float32)
    vae = load_vae(TINY_FOLDER / "vae", dtype=torch.bfloat16)
    scenes = PROMPTS
    text = Conditioning(WordEmbedder().encode([scene.caption for scene in scenes]))
    policy = MemoryPolicy("relative", window=12)
    memory = TrialMemory(rule, student.new_memory(policy, len(scenes), SIDE, SIDE))
    noise = SeededNoise(seed, len(scenes), 16, SIDE, SIDE)
    settings = RolloutSettings(Schedule.of(nfe, 3.0), frames_per_block=BLOCK)
    blocks = rollout(CausalModel(student), text, memory, noise, FRAMES, settings)
    latents = torch.cat([block.latents for block in blocks], dim=2)
    start = decode_latents(vae, latents[:, :, :BLOCK])
    end = decode_latents(vae, latents[:, :, -CLIP_FRAMES - DECODER_WARMUP :])[:, :, 4 * DECODER_WARMUP :]
    summary = summarize([score_clip(clip, scene) for clip, scene in zip(end, scenes, strict=True)])
    lost = [background(a) - background(b[:, ::8]) for a, b in zip(start, end, strict=True)]
    return {name: summary[name] for name in SCORES} | {"background": float(torch.stack(lost).abs().mean())}


def background(pixels_3THW: Tensor) -> Tensor:
    """The mean background of a clip, values 0 to 1."""
    return fit_background(pixels_3THW.transpose(0, 1).add(1) / 2).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_trials", description=(__doc__ or "")[:106])
    parser.add_argument("rows", nargs="*", default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2000])
    parser.add_argument("--nfe", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| memory, seed | {' | '.join(SCORES)} | background |\n{'|---' * (len(SCORES) + 2)}|")
    for name in arguments.rows:
        for seed in arguments.seeds:
            found = scored(ROWS[name], seed, arguments.nfe)
            cells = [f"{found[score]:.1%}" for score in SCORES]
            print(f"| {name}, {seed} | {' | '.join(cells)} | {found['background']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
