"""Axes that are read at a glance: plain numbers, resolutions, values of options."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ctxbench.figures.labels import laid_out
from ctxbench.figures.style import LINE, columns, short


def titled(axes: Axes, title: str) -> None:
    axes.set_title(wrapped(title), parse_math=False)


def wrapped(title: str, most: int = 84) -> str:
    """A title in lines of so many letters; of each of its own lines two at most."""
    lines = []
    for line in title.split("\n"):
        kept = short(line, 2 * most - 10)
        lines += textwrap.wrap(kept, most if columns(kept) == len(kept) else most // 2)
    return "\n".join(lines)


def heading(about: str) -> str:
    """The input on the first line, the machine on the second."""
    return about.replace("; ", "\n")


def named_ticks(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Ticks at rising places of the x axis, turned where names crowd and without those that clash even so."""
    axes.set_xticks(places, names, parse_math=False)
    axes.xaxis.set_minor_locator(NullLocator())
    figure = laid_out(axes)
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    if any(before.x1 > after.x0 for before, after in itertools.pairwise(boxes)):
        shown, free = [], -math.inf
        for box, name in zip(boxes, names, strict=True):
            middle = (box.x0 + box.x1) / 2
            shown.append(name if middle >= free else "")
            free = free if middle < free else middle + LINE * figure.dpi
        axes.set_xticks(places, shown, parse_math=False, rotation=35, ha="right", rotation_mode="anchor")


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis like 0.1, 10 and 1,000, not powers of ten; the more the less it spans."""
    low, high = axis.get_view_interval()
    if high < 5 * low:
        axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())
    else:
        span = high / low
        axis.set_major_locator(
            LogLocator(subs=(1, 2, 3, 5) if span < 20 else (1, 2, 5) if span < 1000 else (1,))
        )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
