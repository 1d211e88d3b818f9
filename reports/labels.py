"""Where the names of points and curves go, in pixels, so that they do not lie on top of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_CHARACTER, _LINE = 6.0, 14.0  # pixels, of 12-pixel sans-serif text


def spread(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours keep `gap`, as little as that takes, within `low..high` if they fit."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    clusters: list[tuple[float, list[int]]] = []  # the centre and the members of runs that touch
    for index in order:
        centre, members = positions[index], [index]
        while clusters:
            before, others = clusters[-1]
            if centre - before >= gap * (len(members) + len(others)) / 2:
                break
            clusters.pop()
            members = [*others, *members]
            centre = sum(positions[i] for i in members) / len(members)
            half = gap * (len(members) - 1) / 2
            centre = max(low + half, min(high - half, centre))
        clusters.append((centre, members))
    result = list(positions)
    for centre, members in clusters:
        for rank, index in enumerate(members):
            result[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return result


@dataclass(frozen=True)
class Placement:
    """Offset of a label from its point, and which of its ends lies there."""

    dx: float
    dy: float
    align: Literal["left", "right"]


def beside_points(
    points: list[tuple[float, float]],
    texts: list[str],
    radii: list[float],
    width: float,
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> list[Placement]:
    """For every point the first of some places around it where its label covers no point, line or earlier label.

    points: x to the right and y downwards; radii: of their marks. width: of the plot; labels that would leave it go to
    the left. lines: from point to point. All in pixels.
    """
    steps = [0.0] + [sign * _LINE * n for n in range(1, 7) for sign in (-1, 1)]
    boxes = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(points, radii)]
    boxes += [box for line in lines for box in _boxes_along(*line)]
    placements = []
    for number, ((x, y), text) in enumerate(zip(points, texts)):
        reach = radii[number] + 4
        size = len(text) * _CHARACTER
        candidates = [Placement(reach, dy, "left") for dy in steps] + [Placement(-reach, dy, "right") for dy in steps]
        if x + reach + size > width:
            candidates = candidates[len(steps) :] + candidates[: len(steps)]
        others = np.array(boxes[:number] + boxes[number + 1 :]).reshape(-1, 4)
        lefts = [x + p.dx if p.align == "left" else x + p.dx - size for p in candidates]
        tops = [y + p.dy - _LINE / 2 for p in candidates]
        own = np.array([(left, top, left + size, top + _LINE) for left, top in zip(lefts, tops)])
        best = candidates[int(_overlaps(own, others).argmin())]
        placements.append(best)
        left = x + best.dx if best.align == "left" else x + best.dx - size
        boxes.append((left, y + best.dy - _LINE / 2, left + size, y + best.dy + _LINE / 2))
    return placements


def _boxes_along(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float, float, float]]:
    """Small boxes that cover a line."""
    steps = max(1, round(math.dist(start, end) / _CHARACTER))
    middles = [tuple(a + (b - a) * i / steps for a, b in zip(start, end)) for i in range(steps + 1)]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in middles]


def _overlaps(own: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area of each box of `own` that lies under `others`, [own]; boxes are left, top, right, bottom."""
    low = np.maximum(own[:, None, :2], others[None, :, :2])
    high = np.minimum(own[:, None, 2:], others[None, :, 2:])
    return np.maximum(high - low, 0).prod(-1).sum(-1)
