"""ShapeBench: deterministic pixel detectors that score a clip against its caption.

The background is a plane per colour channel, fitted robustly to each frame; pixels that differ from it are the object.
Its hue, its outline (compared with the outlines that the world renders), its centre on the torus over time, the
sharpness of its edge and the steadiness of its appearance give one verdict each. No detector is learned.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import hypot

import torch
from torch import Tensor

from train.shapes.world import COLORS, DIRECTIONS, SHAPES, SIZE, SPEEDS, Scene, coverage, parse_caption, torus_delta

SOFT = 0.12  # minimum difference of an object from the background (of 1)
MIN_AREA = 40  # pixels of an object
SPEED_TOLERANCE = 0.25  # of the named speed
SHARP = 0.55  # of the edge contrast of rendered clips
STEADY = 0.08  # frame-to-frame change of colour and of relative area that counts as flicker
MAX_DRIFT = 0.15  # change of colour (of 1) and of relative area from the first to the last fifth


@dataclass(frozen=True)
class ClipScore:
    """Verdicts (True is right) and the measurements behind them. `passed` combines those on content."""

    caption: str
    color: bool
    shape: bool
    direction: bool
    speed: bool
    count: bool
    sharp: bool
    steady: bool
    no_drift: bool
    found_color: str
    found_shape: str
    found_direction: str
    pixels_per_frame: float
    objects: float  # mean over frames
    sharpness: float  # 1 = as drawn
    flicker: float
    drift: float

    @property
    def passed(self) -> bool:
        """The clip shows what its caption says: one object of that colour, shape, direction and speed."""
        return self.color and self.shape and self.direction and self.speed and self.count


VERDICTS = ("color", "shape", "direction", "speed", "count", "sharp", "steady", "no_drift", "passed")


@dataclass
class Tracks:
    """Segmentation of a clip: alpha_THW, the object's share of each pixel, and measurements per frame."""

    alpha_THW: Tensor
    color_T3: Tensor  # mean colour of the object's core, NaN where there is none
    area_T: Tensor
    center_T2: Tensor  # (x, y) on the torus, NaN where there is none
    objects_T: Tensor


def fit_background(frames_T3HW: Tensor, rounds: int = 8) -> Tensor:
    """A plane a + b x + c y per frame and channel by reweighted least squares: the background without the object."""
    axis = torch.linspace(-1, 1, SIZE, device=frames_T3HW.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    basis_P3 = torch.stack([torch.ones_like(x), x, y], dim=-1).flatten(0, 1)
    values_TPC = frames_T3HW.flatten(2).transpose(1, 2)
    weight_TP = torch.ones(values_TPC.shape[:2], device=frames_T3HW.device)
    plane_TPC = values_TPC
    for _ in range(rounds):
        weighted = basis_P3 * weight_TP.unsqueeze(-1)
        normal = weighted.mT @ basis_P3 + 1e-6 * torch.eye(3, device=weighted.device)
        plane_TPC = basis_P3 @ torch.linalg.solve(normal, weighted.mT @ values_TPC)
        departure = (values_TPC - plane_TPC).abs().amax(-1)
        spread = departure.median(dim=1, keepdim=True).values.clamp_min(0.01)
        weight_TP = (1 + (departure / (2 * spread)).square()).reciprocal().square()
    return plane_TPC.transpose(1, 2).unflatten(2, (SIZE, SIZE))


def _torus_center(weight_THW: Tensor) -> Tensor:
    """Circular mean position (x, y) in pixels, [T, 2]."""
    angle = (torch.arange(SIZE, device=weight_THW.device) + 0.5) * (2 * torch.pi / SIZE)
    centers = []
    for profile in (weight_THW.sum(1), weight_THW.sum(2)):
        phase = torch.atan2((profile * angle.sin()).sum(1), (profile * angle.cos()).sum(1))
        centers.append(phase % (2 * torch.pi) * (SIZE / (2 * torch.pi)))
    return torch.stack(centers, dim=1)


def count_objects(solid_THW: Tensor) -> Tensor:
    """Connected groups of at least MIN_AREA pixels on the torus, per frame: labels spread until they converge."""
    frames = solid_THW.shape[0]
    numbers = torch.arange(1, SIZE * SIZE + 1, device=solid_THW.device).view(1, SIZE, SIZE)
    labels = torch.where(solid_THW, numbers, 0)
    while True:
        wider = torch.maximum(torch.maximum(labels, labels.roll(1, 1)), labels.roll(-1, 1))
        wider = torch.maximum(torch.maximum(wider, wider.roll(1, 2)), wider.roll(-1, 2))
        wider = torch.where(solid_THW, wider, 0)
        if torch.equal(wider, labels):
            break
        labels = wider
    sizes = torch.zeros(frames, SIZE * SIZE + 1, dtype=torch.long, device=labels.device)
    flat = labels.flatten(1)
    sizes.scatter_add_(1, flat, (flat > 0).long())
    return (sizes >= MIN_AREA).sum(1)


def track(pixels_3THW: Tensor) -> Tracks:
    """Segment a clip in [-1, 1] and measure its object in every frame."""
    frames = (pixels_3THW.float().clamp(-1, 1).transpose(0, 1) + 1) / 2
    background = fit_background(frames)
    departure_THW = (frames - background).abs().amax(1)
    solid = departure_THW > SOFT
    contrast = torch.where(solid, departure_THW, torch.nan).flatten(1).nanquantile(0.7, dim=1).nan_to_num(1.0)
    alpha = (departure_THW / contrast.view(-1, 1, 1)).clamp(0, 1) * (departure_THW > SOFT / 2)
    core = alpha > 0.85
    weight = core.unsqueeze(1)
    color = (frames * weight).sum((2, 3)) / weight.sum((2, 3))
    half = alpha > 0.5
    area = half.sum((1, 2)).float()
    center = _torus_center(alpha * half)
    center[area < MIN_AREA] = torch.nan
    return Tracks(alpha, color, area, center, count_objects(half))


def _hue(rgb: Tensor) -> float:
    """Hue in degrees of one RGB colour in [0, 1]; NaN for (nearly) grey."""
    high, low = rgb.max(), rgb.min()
    if not bool(high - low > 0.25):
        return float("nan")
    r, g, b = ((rgb - low) / (high - low)).tolist()
    return float(torch.rad2deg(torch.atan2(torch.tensor(3**0.5 * (g - b)), torch.tensor(2 * r - g - b)))) % 360


def name_color(rgb: Tensor) -> str:
    """The nearest of the world's colours by hue, or 'none' for grey or for a hue more than 25 degrees from all."""
    hue = _hue(rgb)
    distances = {name: abs((hue - _hue(torch.tensor(value)) + 180) % 360 - 180) for name, value in COLORS.items()}
    best = min(distances, key=lambda name: distances[name])
    return best if distances[best] < 25 else "none"


def name_shapes(tracks: Tracks) -> list[str]:
    """Per frame the outline with the largest overlap (intersection over union), 'none' below 0.75."""
    axis = torch.arange(SIZE, device=tracks.alpha_THW.device) + 0.5
    scores = []
    for shape in SHAPES:
        best = torch.zeros(len(tracks.area_T), device=axis.device)
        # The centroid of a wrapped or slightly deformed outline is a pixel off at times: look around it.
        for nudge in (-1.0, 0.0, 1.0):
            dx = torus_delta(axis - tracks.center_T2[:, 0:1]).unsqueeze(1)
            dy = torus_delta(axis - tracks.center_T2[:, 1:2] + nudge).unsqueeze(2)
            outline = coverage(shape, dx, dy)
            both = torch.minimum(outline, tracks.alpha_THW).sum((1, 2))
            either = torch.maximum(outline, tracks.alpha_THW).sum((1, 2))
            best = torch.maximum(best, (both / either).nan_to_num(0.0))
        scores.append(best)
    value, index = torch.stack(scores).max(0)
    return [SHAPES[i] if v > 0.75 else "none" for v, i in zip(value.tolist(), index.tolist(), strict=True)]


def _majority(names: Sequence[str]) -> str:
    """The name that more than half agree on, or 'none'."""
    best = max(set(names), key=names.count)
    return best if names.count(best) > len(names) / 2 else "none"


def _motion(tracks: Tracks) -> tuple[str, float]:
    """Direction of the mean step and its length in pixels per frame; 'none' when still, oblique or mostly lost."""
    step_S2 = torus_delta(tracks.center_T2.diff(dim=0))
    step_S2 = step_S2[~step_S2.isnan().any(1)]
    if len(step_S2) < len(tracks.area_T) / 2:
        return "none", 0.0
    x, y = step_S2.mean(0).tolist()
    speed = hypot(x, y)
    along = {name: (x * dx + y * dy) / max(speed, 1e-6) for name, (dx, dy) in DIRECTIONS.items()}
    best = max(along, key=lambda name: along[name])
    return (best if along[best] > 0.94 and speed > 0.15 else "none"), speed  # within 20 degrees


def _sharpness(alpha_THW: Tensor) -> float:
    """How fast the object's edge rises, 1 = as rendered: mean squared gradient per edge length."""
    dx, dy = alpha_THW.diff(dim=2)[:, :-1], alpha_THW.diff(dim=1)[:, :, :-1]
    slope = (dx.square() + dy.square()).sqrt()
    steepness = slope.square().sum((1, 2)) / slope.sum((1, 2)).clamp_min(1e-6)
    return float(steepness.mean()) / 0.52


def _steadiness(tracks: Tracks) -> tuple[float, float]:
    """(flicker, drift): mean change between neighbouring frames, and change between the first and last fifths."""
    typical = tracks.area_T.median().clamp_min(1.0)
    relative = (tracks.area_T / typical).clamp_max(2.0)  # twice as large is already as wrong as can be
    look = torch.cat([tracks.color_T3, relative.unsqueeze(1)], dim=1)  # [T, 4]
    look = look.nan_to_num(0.0)  # a frame without an object is a change as large as can be
    flicker = float(look.diff(dim=0).abs().amax(1).mean())
    fifth = max(len(look) // 5, 1)
    drift = float((look[:fifth].mean(0) - look[-fifth:].mean(0)).abs().max())
    return flicker, drift


def score_clip(pixels_3THW: Tensor, caption: str | Scene) -> ClipScore:
    """Score one clip, [3, T, 64, 64] in [-1, 1], against a caption of the shapes world.

    Raises ValueError for another caption or shape.
    """
    scene = caption if isinstance(caption, Scene) else parse_caption(caption)
    if pixels_3THW.ndim != 4 or pixels_3THW.shape[0] != 3 or pixels_3THW.shape[2:] != (SIZE, SIZE):
        raise ValueError(f"clip: found shape {tuple(pixels_3THW.shape)}, expected [3, T, {SIZE}, {SIZE}]")
    tracks = track(pixels_3THW)
    color = _majority([name_color(rgb) for rgb in tracks.color_T3])
    shape = _majority(name_shapes(tracks))
    direction, speed = _motion(tracks)
    sharpness = _sharpness(tracks.alpha_THW)
    flicker, drift = _steadiness(tracks)
    single = float((tracks.objects_T == 1).float().mean())
    wanted_speed = SPEEDS[scene.speed]
    return ClipScore(
        caption=scene.caption,
        color=color == scene.color,
        shape=shape == scene.shape,
        direction=direction == scene.direction,
        speed=abs(speed - wanted_speed) <= SPEED_TOLERANCE * wanted_speed,
        count=single >= 0.9,
        sharp=sharpness >= SHARP,
        steady=flicker <= STEADY,
        no_drift=drift <= MAX_DRIFT,
        found_color=color,
        found_shape=shape,
        found_direction=direction,
        pixels_per_frame=speed,
        objects=float(tracks.objects_T.float().mean()),
        sharpness=sharpness,
        flicker=flicker,
        drift=drift,
    )


def summarize(scores: Sequence[ClipScore]) -> dict[str, float]:
    """Share of clips that pass each verdict, and the mean of each measurement."""
    table = {name: sum(getattr(s, name) for s in scores) / len(scores) for name in VERDICTS}
    for name in ("pixels_per_frame", "objects", "sharpness", "flicker", "drift"):
        table[name] = sum(getattr(s, name) for s in scores) / len(scores)
    return table


def score_table(rows: dict[str, Sequence[ClipScore]]) -> str:
    """A markdown table, one line per named set of scores: percentages per verdict, then mean flicker and drift."""
    head = "| | " + " | ".join(name.replace("_", " ") for name in VERDICTS) + " | flicker | drift |"
    lines = [head, "|" + "---|" * (len(VERDICTS) + 3)]
    for name, scores in rows.items():
        summary = summarize(scores)
        cells = [f"{100 * summary[verdict]:.0f} %" for verdict in VERDICTS]
        lines.append(f"| {name} | {' | '.join(cells)} | {summary['flicker']:.3f} | {summary['drift']:.3f} |")
    return "\n".join(lines)


def as_rows(scores: Sequence[ClipScore]) -> list[dict]:
    """Plain dictionaries for JSON, `passed` included."""
    return [{**asdict(score), "passed": score.passed} for score in scores]
