"""The Pareto frontier: what nothing else beats in both coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes

Point = tuple[float, float]


def pareto(points: Sequence[Point], higher: bool = False) -> list[Point]:
    """The points that no other beats in both coordinates, from left to right.

    Args:
        higher: whether a higher second coordinate is better; of the first the lower always is.
    """
    sign = -1 if higher else 1
    best, frontier = math.inf, []
    for x, y in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if sign * y < best:
            best = sign * y
            frontier.append((x, y))
    return frontier


def draw_frontier(axes: Axes, frontier: list[Point], higher: bool = False) -> None:
    """Join the frontier by steps, and carry it on to the edges of the axes."""
    right, worst = axes.get_xlim()[1], axes.get_ylim()[0 if higher else 1]
    axes.autoscale(False)
    corners = [(frontier[0][0], worst), frontier[0]]
    for (_, y), point in itertools.pairwise([*frontier, (right, frontier[-1][1])]):
        corners += [(point[0], y), point]
    axes.plot(*zip(*corners, strict=True), color="#999999", linewidth=1, zorder=0)
