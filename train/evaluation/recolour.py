"""Video to video on the shapes world: a moving object gets another colour, and its path is to stay.

    python -m train.evaluation.recolour --steps 1000 750 500 250 --strengths 0.25 0.5 0.75 1 --clips 24

Rendered clips of one colour are given with a prompt of another. ShapeBench looks for the colour and the direction, and
the centre of the object is compared with that of the source, frame by frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salt.pipeline import SaltPipeline
from salt.schedule import Stepping
from train.shapes.bench import score_clip, track
from train.shapes.world import COLORS, SCENES, Clips, random_scenes, render, torus_delta

SAME_PATH = 6.0  # pixels of 64: the median distance up to which an object is on the source's path
FRAMES = 45


@dataclass(frozen=True)
class Recolour:
    """Shares of clips with the wanted colour, the source's direction, its path, and all of these; mean distance."""

    strength: float
    color: float
    direction: float
    path: float
    all: float
    pixels: float
    nfe: int

    def __str__(self) -> str:
        shares = " | ".join(f"{100 * x:.0f} %" for x in (self.color, self.direction, self.path, self.all))
        return f"| {self.strength:g} | {self.nfe} | {shares} | {self.pixels:.1f} |"


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
    pipe: SaltPipeline, strength: float, steps: Sequence[float], clips: int, seed: int, stepping: Stepping = "sde"
) -> Recolour:
    source, prompts = sources(clips, seed)
    seen: list[int] = []
    made = []
    for i, prompt in enumerate(prompts):
        chunks = list(
            pipe.stream(
                prompt, video=source.pixels[i], strength=strength, steps=steps, seed=seed + i,
                stepping=stepping, on_step=lambda step: seen.append(step.steps),
            )
        )  # fmt: skip
        made.append(torch.cat([chunk.pixels[0] for chunk in chunks], dim=1))
    scores = [score_clip(pixels, prompt) for pixels, prompt in zip(made, prompts, strict=True)]
    distances = [path_distance(x, source.centers[i, : x.shape[1]]) for i, x in enumerate(made)]
    stays = [d <= SAME_PATH for d in distances]
    passed = [s.color and s.direction and stay for s, stay in zip(scores, stays, strict=True)]
    finite = [d for d in distances if d != float("inf")]
    return Recolour(
        strength, _share([s.color for s in scores]), _share([s.direction for s in scores]), _share(stays),
        _share(passed), sum(finite) / max(len(finite), 1), max(seen),
    )  # fmt: skip


def _share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="salt-tiny")
    parser.add_argument("--steps", type=float, nargs="+", default=[1000, 750, 500, 250])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--stepping", default="sde", choices=("sde", "ode"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipe = SaltPipeline.from_pretrained(arguments.model)
    print("| strength | NFE | colour | direction | path | all | distance (pixels) |\n|---|---|---|---|---|---|---|")
    for strength in arguments.strengths:
        print(measure(pipe, strength, arguments.steps, arguments.clips, arguments.seed, arguments.stepping), flush=True)


if __name__ == "__main__":
    main()
