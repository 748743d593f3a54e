"""Video to video on the shapes world: a moving object gets another colour, and its path is to stay.

    python -m train.evaluation.recolour [--clips 24] [--noises 2] [--seed 0] [--row STEPS STRENGTH GUIDANCE]

Rendered clips of one colour are given with a prompt of another; with guidance the negative prompt is the source's own
caption, so that the two differ in the colour only. ShapeBench looks for the colour and the direction, and the centre of
the object is compared with that of the source, frame by frame. Without a row, the table of docs/video_in.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salt.pipeline import SaltPipeline
from salt.schedule import STEP_LISTS
from train.shapes.bench import score_clip, track
from train.shapes.world import COLORS, SCENES, Clips, random_scenes, render, torus_delta

# Steps, strength, guidance: the rows of docs/video_in.md.
ROWS: tuple[tuple[tuple[float, ...], float, float], ...] = (
    ((350, 175), 0.35, 1),
    ((350, 175), 0.35, 2),
    ((300, 150), 0.3, 3),
    (STEP_LISTS[4], 0.25, 3),
)
COLUMNS = "| steps | strength | guidance | NFE | colour | direction | path | all | distance (pixels) |"
HEAD = COLUMNS + "\n" + "|---" * 9 + "|"
SAME_PATH = 6.0  # pixels of 64: the median distance up to which an object is on the source's path
FRAMES = 45


@dataclass(frozen=True)
class Recolour:
    """Shares of clips with the wanted colour, the source's direction, its path, and all of these; mean distance.

    by_seed: the last share for every noise seed. error: its standard error in sources, of which each counts once
    however many noise seeds it has (an upper bound).
    """

    color: float
    direction: float
    path: float
    all: float
    pixels: float
    nfe: int
    by_seed: tuple[float, ...]
    error: float

    def __str__(self) -> str:
        shares = " | ".join(f"{100 * x:.0f} %" for x in (self.color, self.direction, self.path))
        spread = ", ".join(f"{100 * x:.0f}" for x in self.by_seed)
        return f"{self.nfe} | {shares} | {100 * self.all:.0f} ± {100 * self.error:.0f} % ({spread}) | {self.pixels:.1f}"


def sources(count: int, seed: int) -> tuple[Clips, list[str]]:
    """Rendered clips, and prompts that differ from them in the colour only."""
    generator = torch.Generator().manual_seed(seed)
    clips = render(random_scenes(count, generator, SCENES), FRAMES, generator)
    colors = list(COLORS)
    shifts = torch.randint(1, len(colors), (count,), generator=generator).tolist()
    wanted = [
        colors[(colors.index(s.color) + shift) % len(colors)] for s, shift in zip(clips.scenes, shifts, strict=True)
    ]
    return clips, [replace(s, color=color).caption for s, color in zip(clips.scenes, wanted, strict=True)]


def path_distance(pixels_3THW: Tensor, centers_T2: Tensor) -> float:
    """Median distance in pixels from the object of a clip to given centres, on the torus; inf without an object."""
    found = track(pixels_3THW).center_T2
    distance = torus_delta(found - centers_T2).norm(dim=-1)
    return float(distance.nan_to_num(torch.inf).median())


def measure(
    pipe: SaltPipeline,
    steps: Sequence[float],
    strength: float,
    clips: int,
    seed: int,
    guidance: float = 1.0,
    noises: int = 1,
) -> Recolour:
    """steps: of the schedule. seed: of the sources; every one is changed with `noises` seeds of the noise.

    guidance: other than 1, away from the source's own caption; it doubles the model's evaluations.
    """
    source, prompts = sources(clips, seed)
    seen: list[int] = []
    made: list[Tensor] = []
    for noise in range(noises):
        chunks = pipe.stream(
            prompts, video=source.pixels, strength=strength, steps=steps, seed=seed + noise * clips,
            guidance_scale=guidance, on_step=lambda step: seen.append(step.steps),
            negative_prompt=[scene.caption for scene in source.scenes] if guidance != 1 else None,
        )  # fmt: skip
        made += torch.cat([chunk.pixels for chunk in chunks], dim=2)
    scores = [score_clip(pixels, prompt) for pixels, prompt in zip(made, prompts * noises, strict=True)]
    distances = [path_distance(x, source.centers[i % clips, : x.shape[1]]) for i, x in enumerate(made)]
    stays = [d <= SAME_PATH for d in distances]
    passed = [s.color and s.direction and stay for s, stay in zip(scores, stays, strict=True)]
    finite = [d for d in distances if d != float("inf")]
    share = _share(passed)
    return Recolour(
        _share([s.color for s in scores]), _share([s.direction for s in scores]), _share(stays), share,
        sum(finite) / max(len(finite), 1), max(seen) * (1 if guidance == 1 else 2),
        tuple(_share(passed[i * clips : (i + 1) * clips]) for i in range(noises)),
        (share * (1 - share) / clips) ** 0.5,
    )  # fmt: skip


def _share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="salt-tiny")
    parser.add_argument("--row", nargs=3, action="append", metavar=("STEPS", "STRENGTH", "GUIDANCE"),
                        help="instead of the table, as 300,150 0.3 3; repeatable")  # fmt: skip
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noises", type=int, default=2, help="noise seeds for every clip (%(default)s)")
    arguments = parser.parse_args()
    rows = [(tuple(map(float, a.split(","))), float(b), float(c)) for a, b, c in arguments.row or ()] or ROWS
    pipe = SaltPipeline.from_pretrained(arguments.model)
    print(HEAD)
    for steps, strength, guidance in rows:
        found = measure(pipe, steps, strength, arguments.clips, arguments.seed, guidance, arguments.noises)
        print(f"| {', '.join(f'{s:g}' for s in steps)} | {strength:g} | {guidance:g} | {found} |", flush=True)
    print(f"\n{len(rows)} settings, {arguments.clips} clips with {arguments.noises} noise seeds each.")


if __name__ == "__main__":
    main()
