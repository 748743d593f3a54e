"""Shapes world: 64x64, 16 fps clips of one coloured shape on a muted background, fully described by their captions.

A clip is one object moving at constant velocity on a torus: what leaves on the right comes back on the left, so
direction and speed mean the same after 81 frames and after 477. There are 6 colours x 3 shapes x 4 directions x
2 speeds = 144 captions; 24 of them, fixed by a rule, are never trained on. Every word of those 24 is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

SIZE = 64  # pixels, both ways
SPEEDS = {"slow": 0.5, "fast": 1.5}  # pixels per frame
COLORS = {  # RGB in [0, 1]; saturated and 60 degrees of hue apart, which no background is
    "red": (0.92, 0.12, 0.12),
    "yellow": (0.92, 0.88, 0.10),
    "green": (0.10, 0.78, 0.16),
    "cyan": (0.08, 0.80, 0.88),
    "blue": (0.14, 0.20, 0.95),
    "purple": (0.82, 0.14, 0.88),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"right": (1.0, 0.0), "down": (0.0, 1.0), "left": (-1.0, 0.0), "up": (0.0, -1.0)}  # (x, y), y downwards
WORDS = ("a", "moving", *SPEEDS, *COLORS, *SHAPES, *DIRECTIONS)

CIRCLE_RADIUS = 10.0
SQUARE_HALF = 9.0
TRIANGLE_INRADIUS = 7.0
EDGE = 1.5  # width in pixels over which an object's edge fades into the background


@dataclass(frozen=True)
class Scene:
    """The content of a caption."""

    speed: str
    color: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        return f"a {self.speed} {self.color} {self.shape} moving {self.direction}"

    @property
    def velocity(self) -> tuple[float, float]:
        """Pixels per frame, (x, y)."""
        x, y = DIRECTIONS[self.direction]
        return x * SPEEDS[self.speed], y * SPEEDS[self.speed]

    @property
    def held_out(self) -> bool:
        """True for the 24 scenes kept out of training: for each shape, direction and speed, one colour."""
        c, s = list(COLORS).index(self.color), SHAPES.index(self.shape)
        d, v = list(DIRECTIONS).index(self.direction), list(SPEEDS).index(self.speed)
        return (c + 2 * s + d + 3 * v) % len(COLORS) == 0


SCENES = tuple(Scene(v, c, s, d) for c, s, d, v in product(COLORS, SHAPES, DIRECTIONS, SPEEDS))
TRAIN_SCENES = tuple(scene for scene in SCENES if not scene.held_out)
HELD_OUT_SCENES = tuple(scene for scene in SCENES if scene.held_out)
_BY_CAPTION = {scene.caption: scene for scene in SCENES}


def parse_caption(caption: str) -> Scene:
    """The scene of a caption. Raises ValueError for any but the 144 captions."""
    scene = _BY_CAPTION.get(" ".join(caption.lower().split()).rstrip("."))
    if scene is None:
        raise ValueError(f"not a shapes-world caption: {caption!r}; expected one like {SCENES[0].caption!r}")
    return scene


def torus_delta(delta: Tensor) -> Tensor:
    """The shortest signed distance on the torus, in pixels: values in [-SIZE/2, SIZE/2)."""
    return (delta + SIZE / 2) % SIZE - SIZE / 2


def coverage(shape: str, dx: Tensor, dy: Tensor) -> Tensor:
    """How much of each pixel `shape` covers, in [0, 1]; dx and dy are offsets from its centroid in pixels."""
    if shape == "circle":
        distance = (dx.square() + dy.square()).sqrt() - CIRCLE_RADIUS
    elif shape == "square":
        distance = torch.maximum(dx.abs(), dy.abs()) - SQUARE_HALF
    else:  # an upright equilateral triangle: three half planes at the inradius
        sides = torch.maximum(dy, 0.8660254 * dx.abs() - 0.5 * dy)
        distance = sides - TRIANGLE_INRADIUS
    return (0.5 - distance / EDGE).clamp(0, 1)


def random_backgrounds(count: int, generator: torch.Generator) -> Tensor:
    """`count` linear gradients of muted colour, [count, 3, SIZE, SIZE] in [0, 1]."""
    grey = 0.22 + 0.36 * torch.rand(count, 1, 1, 1, generator=generator)
    tint = 0.10 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    slope = 0.14 * (torch.rand(2, count, 3, 1, 1, generator=generator) - 0.5)
    slope = slope + 0.16 * (torch.rand(2, count, 1, 1, 1, generator=generator) - 0.5)
    axis = torch.linspace(-0.5, 0.5, SIZE)
    return grey + tint + slope[0] * axis.view(1, 1, 1, -1) + slope[1] * axis.view(1, 1, -1, 1)


@dataclass
class Clips:
    """Rendered clips. pixels_B3THW in [-1, 1]; mask_B1THW in [0, 1], the object; centers_BT2 (x, y), unwrapped."""

    pixels: Tensor
    mask: Tensor
    centers: Tensor
    scenes: list[Scene]


def render(scenes: Sequence[Scene], frames: int, generator: torch.Generator) -> Clips:
    """Render one clip per scene, `frames` pixel frames each, with a random start and background."""
    count = len(scenes)
    start_B12 = SIZE * torch.rand(count, 1, 2, generator=generator)
    background_B3HW = random_backgrounds(count, generator)
    velocity_B12 = torch.tensor([scene.velocity for scene in scenes]).view(count, 1, 2)
    time_1T1 = torch.arange(frames, dtype=torch.float32).view(1, frames, 1)
    centers_BT2 = start_B12 + velocity_B12 * time_1T1
    axis = torch.arange(SIZE, dtype=torch.float32) + 0.5
    dx = torus_delta(axis - centers_BT2[..., 0:1]).unsqueeze(2)  # [B, T, 1, W]
    dy = torus_delta(axis - centers_BT2[..., 1:2]).unsqueeze(3)  # [B, T, H, 1]
    mask_BTHW = torch.stack([coverage(scene.shape, dx[i], dy[i]) for i, scene in enumerate(scenes)])
    mask_B1THW = mask_BTHW.unsqueeze(1)
    color_B3111 = torch.tensor([COLORS[scene.color] for scene in scenes]).view(count, 3, 1, 1, 1)
    background = background_B3HW.unsqueeze(2)
    pixels = background + mask_B1THW * (color_B3111 - background)
    return Clips(pixels.mul_(2).sub_(1), mask_B1THW, centers_BT2, list(scenes))


def random_scenes(count: int, generator: torch.Generator, pool: Sequence[Scene] = TRAIN_SCENES) -> list[Scene]:
    """`count` scenes drawn uniformly from `pool` (default: the 120 training scenes)."""
    return [pool[i] for i in torch.randint(len(pool), (count,), generator=generator).tolist()]
