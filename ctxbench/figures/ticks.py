"""Axes that are read at a glance: plain numbers, resolutions, values of options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

CROWDED = 0.12  # of an axis: labels that are nearer are turned
CLASHING = 0.035  # labels that are nearer are left out


def heading(about: str) -> str:
    """The input on the first line, the machine on the second."""
    return about.replace("; ", "\n")


def named_ticks(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Ticks at rising places of the x axis, turned where they crowd and unnamed where they clash."""
    log = axes.get_xscale() == "log"
    parts = [math.log(place) if log else place for place in places]
    width = (parts[-1] - parts[0]) or 1.0
    shown, last = [], -math.inf
    for part, name in zip(parts, names, strict=True):
        clashes = part - last < CLASHING * width
        shown.append("" if clashes else name)
        last = last if clashes else part
    axes.set_xticks(places, shown, parse_math=False)
    steps = [(after - before) / width for before, after in itertools.pairwise(parts)]
    longest = max(map(len, names))
    if min(steps, default=1) < max(CROWDED, 0.02 * longest):
        axes.tick_params("x", labelrotation=35)
    axes.xaxis.set_minor_locator(NullLocator())


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis like 0.1, 10 and 1,000, not powers of ten; also 2 and 5 where there are few."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
