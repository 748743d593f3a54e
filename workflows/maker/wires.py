"""Paths of wires around nodes, by ComfyUI's own reroute points.

The front end draws a wire as a Bezier curve behind everything. A wire that would run behind a node goes through two
points in a free row instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

Point = tuple[float, float]

CLEARANCE = 10  # pixels between a row of wires and a node, or another such row
ROWS = 5  # rows of wires tried above and below each node
EXITS = (22, 32, 42)  # pixels from a socket to the point where its wire turns
MAX_HANDLE, LEAST_HANDLE = 80, 30  # of the curves, as LiteGraph has them
BEND = 24  # pixels of height between a socket and the bend of its wire
SAMPLES = 24  # points of a curve that are checked


@dataclass(frozen=True)
class Box:
    """A node with its title, as wires must not cross it."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, point: Point) -> bool:
        x, y = point
        return self.left < x < self.right and self.top < y < self.bottom

    def cut_by(self, a: Point, b: Point) -> bool:
        """Whether a straight line runs through it."""
        first, last = 0.0, 1.0  # how far along the line it is inside
        for at, by, least, most in (
            (a[0], b[0] - a[0], self.left, self.right),
            (a[1], b[1] - a[1], self.top, self.bottom),
        ):
            if not by:
                if not least < at < most:
                    return False
                continue
            near, far = sorted(((least - at) / by, (most - at) / by))
            first, last = max(first, near), min(last, far)
        return first < last


def curve(points: list[Point]) -> Iterator[Point]:
    """Points on the wire through `points`, from an output to an input, as LiteGraph draws it."""
    leaving: Point | None = None  # the handle with which the next piece begins
    for i, (start, end) in enumerate(zip(points, points[1:], strict=False)):
        length = math.dist(start, end)
        handle = max(LEAST_HANDLE, length / 4)
        first = leaving or (handle, 0.0)
        last = (-handle, 0.0)
        if i + 2 < len(points):
            turn = _direction(start, end, points[i + 2])
            back = min(MAX_HANDLE, length / 4)
            last = (-back * turn[0], -back * turn[1])
            ahead = min(MAX_HANDLE, math.dist(end, points[i + 2]) / 4)
            leaving = (ahead * turn[0], ahead * turn[1])
        yield from _bezier(start, (start[0] + first[0], start[1] + first[1]), (end[0] + last[0], end[1] + last[1]), end)


def _direction(before: Point, point: Point, after: Point) -> Point:
    """The direction of a wire at a reroute point: halfway between those of its two pieces."""
    to = math.atan2(after[1] - point[1], after[0] - point[0])
    come = math.atan2(point[1] - before[1], point[0] - before[0])
    half = (come - to) / 2
    if abs(half) > math.pi / 2:
        half += math.pi
    return math.cos(come - half), math.sin(come - half)


def _bezier(a: Point, b: Point, c: Point, d: Point) -> Iterator[Point]:
    for step in range(SAMPLES + 1):
        t = step / SAMPLES
        weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t * t, t**3)
        yield (
            sum(w * p[0] for w, p in zip(weights, (a, b, c, d), strict=True)),
            sum(w * p[1] for w, p in zip(weights, (a, b, c, d), strict=True)),
        )


def route(start: Point, end: Point, boxes: list[Box], taken: list[tuple[Point, Point]]) -> list[Point]:
    """The reroute points of a wire; none where it runs freely by itself. taken: rows of earlier wires.

    Raises ValueError where nothing free was found.
    """
    if _free([start, end], boxes):
        return []
    edges = {edge for box in boxes for edge in (box.top, box.bottom)}
    rows = {edge + side * CLEARANCE * n for edge in edges for side in (-1, 1) for n in range(1, ROWS + 1)}
    tries = [
        points
        for y in rows
        for out in EXITS
        for into in EXITS
        if not any(box.cut_by((start[0] + out, y), (end[0] - into, y)) for box in boxes)
        for points in _ways(start, end, (start[0] + out, y), (end[0] - into, y))
    ]
    tries.sort(key=lambda points: (len(points), _length([start, *points, end]), points))
    for points in tries:
        if not _near_another(points, taken) and _free([start, *points, end], boxes):
            return points
    raise ValueError(f"found no free way for a wire from {start} to {end}")


def _ways(start: Point, end: Point, first: Point, last: Point) -> Iterator[list[Point]]:
    """Through both ends of a row; where that is far above or below a socket, with a bend near the socket as well."""
    down = math.copysign(BEND, first[1] - start[1])
    up = math.copysign(BEND, last[1] - end[1])
    leaving, arriving = (first[0], start[1] + down), (last[0], end[1] + up)
    yield [first, last]
    yield [leaving, first, last]
    yield [first, last, arriving]
    yield [leaving, first, last, arriving]


def _free(points: list[Point], boxes: list[Box]) -> bool:
    """Whether a wire misses all boxes, both as a curve and as the straight lines that longer pieces come close to."""
    if len(points) > 2:
        if any(box.cut_by(a, b) for a, b in zip(points, points[1:], strict=False) for box in boxes):
            return False
    return not any(box.holds(point) for point in curve(points) for box in boxes)


def _length(points: list[Point]) -> float:
    return sum(math.dist(a, b) for a, b in zip(points, points[1:], strict=False))


def _near_another(points: list[Point], taken: list[tuple[Point, Point]]) -> bool:
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    levels = {y for _, y in points}
    return any(
        abs(a[1] - y) < CLEARANCE and min(a[0], b[0]) < right and left < max(a[0], b[0])
        for a, b in taken
        for y in levels
    )
