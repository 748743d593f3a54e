"""Drift over time: measurements of a long clip, window by window, relative to its first window.

A clip is cut into windows of 21 latent frames (81 pixel frames, the length that students are trained on; 84 after the
first), measured as its blocks are decoded, so that at most one window is held. Per window, on luma Y (BT.709) and RGB
in [0, 1]:
  luma        mean of Y
  contrast    standard deviation of Y over a frame, mean over frames
  saturation  largest minus smallest of R, G, B, mean over pixels (0 = grey)
  sharpness   mean |4 Y - its four neighbours|
  motion      mean |Y_t+1 - Y_t|
No value is right or wrong by itself, only a change is, so tables show ratios to the first window. For prompts of the
Shapes world ShapeBench also scores each window as a clip of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from salt.errors import InputError
from salt.pipeline import SaltPipeline
from train.rollout.random_draws import seed_for
from train.shapes.bench import VERDICTS, ClipScore, as_rows, score_clip, summarize
from train.shapes.world import SIZE, parse_caption

WINDOW_FRAMES = 21  # latent
CLIP_FRAMES = 120
MEASURES = ("luma", "contrast", "saturation", "sharpness", "motion")


@dataclass(frozen=True)
class Window:
    """One window of one clip. first, last: latent frames, from 0, last one exclusive. score: in the Shapes world."""

    prompt: str
    seed: int
    first: int
    last: int
    measures: dict[str, float]
    score: ClipScore | None = None


def measure_frames(pixels_3THW: Tensor) -> dict[str, float]:
    """The measures of a stretch of video in [-1, 1], of at least two frames."""
    rgb = (pixels_3THW.float().clamp(-1, 1) + 1) / 2
    luma_THW = 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]
    inner = luma_THW[:, 1:-1, 1:-1]
    neighbours = (
        luma_THW[:, :-2, 1:-1] + luma_THW[:, 2:, 1:-1] + luma_THW[:, 1:-1, :-2] + luma_THW[:, 1:-1, 2:]
    )  # fmt: skip
    return {
        "luma": luma_THW.mean().item(),
        "contrast": luma_THW.flatten(1).std(dim=1, correction=0).mean().item(),
        "saturation": (rgb.amax(0) - rgb.amin(0)).mean().item(),
        "sharpness": (4 * inner - neighbours).abs().mean().item(),
        "motion": luma_THW.diff(dim=0).abs().mean().item(),
    }


def cut_windows(
    pieces: Iterable[Tensor], frames: int, window: int = WINDOW_FRAMES, temporal_scale: int = 4
) -> Iterator[tuple[int, int, Tensor]]:
    """Pixels [B, 3, T, H, W], piece by piece -> (first, last, pixels) of every window of `window` latent frames.

    The pieces are those of a decoded clip of `frames` latent frames, of which the first is one pixel frame and each
    later one `temporal_scale`; a last window may be shorter. Raises ValueError where the pieces end too early.
    """
    bounds = [*range(0, frames, window), frames]
    held: list[Tensor] = []
    source = iter(pieces)
    for first, last in pairwise(bounds):
        needed = (last - first) * temporal_scale - (temporal_scale - 1 if first == 0 else 0)
        while (have := sum(piece.shape[2] for piece in held)) < needed:
            piece = next(source, None)
            if piece is None:
                raise ValueError(f"frames {first} to {last}: found {have} pixel frames, expected {needed}")
            held.append(piece)
        pixels = torch.cat(held, dim=2)
        held = [pixels[:, :, needed:]]
        yield first, last, pixels[:, :, :needed]


def measure_drift(
    pipe: SaltPipeline,
    prompts: Sequence[str],
    frames: int = CLIP_FRAMES,
    seed: int = 0,
    window: int = WINDOW_FRAMES,
    *,
    num_inference_steps: int | None = None,
    memory_policy: str | None = None,
) -> list[Window]:
    """Sample one clip of `frames` latent frames per prompt, all in one batch, and measure its windows.

    num_inference_steps, memory_policy: None for the student's own. The noise of a prompt depends on `seed` and the
    prompt alone. Raises InputError for a single frame, and what `SaltPipeline.stream` raises.
    """
    if frames < 2:
        raise InputError("frames", f"found {frames}, expected 2 or more latent frames")
    seeds = [seed_for("drift", seed, prompt) for prompt in prompts]
    scale = pipe.temporal_scale
    pixels = frames * scale - (scale - 1)
    options = {"num_inference_steps": num_inference_steps, "memory_policy": memory_policy}
    chunks = pipe.stream(list(prompts), num_frames=pixels, seed=seeds, **options)
    shapes_world = pipe.default_size == (SIZE, SIZE) and all(_is_scene(prompt) for prompt in prompts)
    windows = []
    for first, last, clips in cut_windows((chunk.pixels.cpu() for chunk in chunks), frames, window, scale):
        for prompt, own, clip in zip(prompts, seeds, clips, strict=True):
            score = score_clip(clip, prompt) if shapes_world else None
            windows.append(Window(prompt, own, first, last, measure_frames(clip), score))
    return windows


def _is_scene(prompt: str) -> bool:
    try:
        parse_caption(prompt)
    except ValueError:
        return False
    return True


def summarize_drift(windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Per window, over all clips: the mean of each measure, its ratio to the first window's, and ShapeBench's shares.

    The ratio is that of the means, so that a clip with little motion does not dominate; None over a mean of 0.
    """
    rows: list[dict[str, Any]] = []
    for first, last in dict.fromkeys((w.first, w.last) for w in windows):
        here = [w for w in windows if w.first == first]
        means = {name: sum(w.measures[name] for w in here) / len(here) for name in MEASURES}
        initial = rows[0]["mean"] if rows else means
        relative = {name: means[name] / initial[name] if initial[name] else None for name in MEASURES}
        row: dict[str, Any] = {"first": first, "last": last, "clips": len(here), "mean": means, "relative": relative}
        scores = [w.score for w in here if w.score is not None]
        if scores:
            row["shapes"] = summarize(scores)
        rows.append(row)
    return rows


def drift_table(rows: dict[str, Sequence[dict[str, Any]]]) -> str:
    """A markdown table: a line per name and window, measures as ratios to the first window, verdicts in per cent."""
    scored = any("shapes" in row for group in rows.values() for row in group)
    verdicts = VERDICTS if scored else ()
    titles = [*(f"{name} /1st" for name in MEASURES), *(verdict.replace("_", " ") for verdict in verdicts)]
    lines = ["| | latent frames | " + " | ".join(titles) + " |", "|" + "---|" * (len(titles) + 2)]
    for name, group in rows.items():
        for row in group:
            ratios = [row["relative"][measure] for measure in MEASURES]
            cells = ["" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
            cells += [f"{100 * row['shapes'][v]:.0f} %" if "shapes" in row else "" for v in verdicts]
            lines.append(f"| {name} | {row['first']}-{row['last'] - 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def drift_rows(windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Every window of every clip as plain dictionaries for JSON."""
    rows = []
    for w in windows:
        row = {"prompt": w.prompt, "seed": w.seed, "first": w.first, "last": w.last, **w.measures}
        rows.append({**row, "shapes": as_rows([w.score])[0]} if w.score else row)
    return rows
