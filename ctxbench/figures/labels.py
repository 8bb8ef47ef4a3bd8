"""Names written beside lines and points, moved apart where they crowd."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes


def label_ends(
    axes: Axes, ends: list[tuple[float, float, str]], look: dict[str, dict[str, Any]], log: bool = True
) -> None:
    """Write each line's name to the right of its end, pushed apart where ends crowd; `log`: the y axis is."""
    axes.figure.canvas.draw()
    bottom, top = axes.get_ylim()
    gap = 0.048  # a line of text, in parts of the axes' height
    ends = sorted(ends, key=lambda end: (end[1], end[2]))
    if log:
        wanted = [math.log(y / bottom) / math.log(top / bottom) for _, y, _ in ends]
    else:
        wanted = [(y - bottom) / (top - bottom) for _, y, _ in ends]
    room = [min(place, 1 - gap * below) for below, place in enumerate(reversed(wanted))]
    places = spread(room[::-1], gap)  # none above the axes
    for (x, y, spec), place in zip(ends, places, strict=True):
        axes.annotate(
            spec,
            xy=(x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            color=look[spec]["color"],
            fontsize=8,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": look[spec]["color"], "lw": 0.5, "alpha": 0.6},
        )


def label_points(axes: Axes, points: list[tuple[float, float, str]], look: dict[str, dict[str, Any]]) -> None:
    """Write each point's name beside it: names of points of nearly equal height move apart."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    span = math.log(top / bottom)
    aside = (right / left) ** 0.016
    points = sorted(points, key=lambda point: (point[1], point[2]))
    places = spread([math.log(y / bottom) / span for _, y, _ in points], 0.045)
    for (x, y, spec), place in zip(points, places, strict=True):
        moved = bottom * math.exp(span * place)
        axes.annotate(
            spec,
            xy=(x, y),
            xytext=(x * aside, moved),
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            fontsize=8,
            parse_math=False,
            color=look[spec]["color"],
        )


def spread(wanted: list[float], gap: float) -> list[float]:
    """Places as near as can be to the wanted ones (rising), at least `gap` apart.

    Crowded neighbours become a block around their mean; blocks that meet are joined.
    """
    blocks: list[list[float]] = []  # each: the wanted places of its members
    for place in wanted:
        blocks.append([place])
        while len(blocks) > 1 and start(blocks[-1], gap) < start(blocks[-2], gap) + gap * len(blocks[-2]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [start(members, gap) + gap * index for members in blocks for index in range(len(members))]


def start(members: list[float], gap: float) -> float:
    """Where a block of names begins so that its middle is the mean of the wanted places."""
    return sum(members) / len(members) - gap * (len(members) - 1) / 2
