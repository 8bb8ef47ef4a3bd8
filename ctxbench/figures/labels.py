"""Names written beside lines and points, moved apart where they crowd."""

from __future__ import annotations

import itertools
import math
from typing import Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ctxbench.figures.style import AROUND, LINE, NAME, Looks, ink, short

End = tuple[float, float, str]  # where a line ends, or a point lies, and its name
Place = tuple[float, float]  # of a name, in points to the right of what it belongs to and above it
ANGLES = (0, 180, 45, -45, 135, -135, 90, -90)  # degrees; where a name may stand, the best place first
# Points between a name and what it belongs to
RINGS = (7, 13, 20, 28, 38, 50, 64, 80, 100, 125, 150, 180, 220)
PLACES: list[Place] = [
    (round(ring * math.cos(math.radians(angle)), 1), round(ring * math.sin(math.radians(angle)), 1))
    for ring, angle in itertools.product(RINGS, ANGLES)
]
CLEAR, STEP = 4, 5  # points around a marker, and from one place on a line to the next
LEADER = {"arrowstyle": "-", "lw": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2}


def label_ends(axes: Axes, ends: list[End], look: Looks) -> None:
    """Write each line's name to the right of its end, pushed apart where ends crowd."""
    gap = LINE / (cast(Figure, axes.figure).get_figheight() - AROUND)
    axes.get_ylim()  # settles the scale
    to_parts = axes.transData + axes.transAxes.inverted()
    placed = sorted((float(to_parts.transform((x, y))[1]), name, x, y) for x, y, name in ends)
    places = within(spread([place for place, *_ in placed], gap), gap)
    for (_, name, x, y), place in zip(placed, places, strict=True):
        colour = look[name]["color"]
        axes.annotate(
            short(name),
            xy=(x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            color=ink(colour),
            fontsize=NAME,
            parse_math=False,
            arrowprops=LEADER | {"color": colour, "relpos": (0, 0.5), "patchA": None},
        )


def label_points(axes: Axes, points: list[End], look: Looks) -> None:
    """Write each point's name beside it, or as near as there is room, with a line to it.

    No name hides a marker or a line if that can be avoided; one that would hide another is left out.
    """
    laid_out(axes).set_layout_engine("none")  # what is placed now must not move
    scale = axes.figure.dpi / 72  # pixels in a point
    room = axes.get_window_extent()
    taken = [text.get_window_extent() for text in axes.texts]
    spots, strokes = drawn(axes, STEP * scale)
    for x, y, name in sorted(points, key=lambda point: (point[1], point[0], point[2])):
        colour = look[name]["color"]
        text = axes.annotate(
            short(name),
            xy=(x, y),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            color=ink(colour),
            fontsize=NAME,
            parse_math=False,
            arrowprops=LEADER | {"color": colour},
        )
        size = np.array(text.get_window_extent().size) / scale
        here = axes.transData.transform((x, y))
        boxes = {place: shifted(here, place, size, scale) for place in PLACES}
        place = min(
            PLACES,
            key=lambda it: (
                not within_room(boxes[it], room),
                boxes[it].count_overlaps(taken),
                not clear(boxes[it], spots, CLEAR * scale),
                not clear(boxes[it], strokes, 0),
            ),
        )
        if boxes[place].count_overlaps(taken):
            text.remove()
            continue
        taken.append(boxes[place])
        strokes = np.concatenate([strokes, np.linspace(here, here + scale * np.array(place), 20)])
        text.set_horizontalalignment(side(place[0]))
        text.set_position(place)
        if place in PLACES[: len(ANGLES)] and text.arrow_patch:
            text.arrow_patch.set_visible(False)


def laid_out(axes: Axes) -> Figure:
    """The figure of the axes, which then are where they will be drawn."""
    figure = cast(Figure, axes.figure)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    return figure


def drawn(axes: Axes, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Where markers lie, and places on lines and bars, in pixels: each (N, 2)."""
    spots, strokes = [np.empty((0, 2))], [np.empty((0, 2))]
    paths = [(line.get_xydata(), line.get_marker(), line.get_transform()) for line in axes.lines]
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            paths += [(bar, "None", axes.transData) for bar in bars.get_segments()]
    for path, marker, transform in paths:
        corners = transform.transform(path)
        if marker != "None":
            spots.append(corners)
        for start, end in itertools.pairwise(corners):
            count = min(int(math.dist(start, end) / step) + 2, 1000)
            strokes.append(np.linspace(start, end, count))
    return np.concatenate(spots), np.concatenate(strokes)


def clear(box: Bbox, points: np.ndarray, margin: float) -> bool:
    """Whether none of the points lies in the box or as near as the margin."""
    low, high = np.array(box.min) - margin, np.array(box.max) + margin
    return not ((points > low) & (points < high)).all(1).any()


def side(dx: float) -> Literal["left", "center", "right"]:
    """The end of a name that is turned to its point."""
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def shifted(here: np.ndarray, place: Place, size: np.ndarray, scale: float) -> Bbox:
    """Where a name would be drawn, in pixels.

    Args:
        here: its point, in pixels.
        size: of the name, in points.
    """
    width, height = size
    before = {"left": 0.0, "center": width / 2, "right": width}[side(place[0])]
    left, bottom = here + scale * np.array((place[0] - before, place[1] - height / 2))
    return Bbox.from_bounds(left, bottom, scale * width, scale * height)


def within_room(box: Bbox, room: Bbox) -> bool:
    return bool(room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1)


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


def within(places: list[float], gap: float) -> list[float]:
    """Places at least `gap` apart, moved to between 0 and 1; those that do not fit stand above."""
    last = len(places) - 1
    below = [min(place, 1 - gap * (last - index)) for index, place in enumerate(places)]
    return [max(place, gap * index) for index, place in enumerate(below)]
