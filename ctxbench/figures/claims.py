"""Published numbers beside those found here: by how many per cent they differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ctxbench.figures.style import LINE, MOST, NAME, SMALL, WIDTH, Picture, short

AGREES, DIFFERS = "#0072B2", "#D55E00"
BAND = 1  # per cent: what agrees lies within
FAR = 100  # per cent: what lies beyond is marked by an arrow


class Compared(Protocol):
    """A published number and the one found here, in the same unit, if there is one."""

    @property
    def method(self) -> str: ...
    @property
    def spec(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def published(self) -> float: ...
    @property
    def found(self) -> float | None: ...
    @property
    def agrees(self) -> bool: ...


def differences(comparisons: Sequence[Compared], name: str = "published") -> Picture | None:
    """The relative difference of each, by quantity; None where there is nothing to compare."""
    compared = [it for it in comparisons if it.found is not None]
    if not compared:
        return None
    shown = sorted(compared, key=lambda it: (it.label, it.method, it.spec, it.published, percent(it)))
    agreeing = sum(it.agrees for it in compared)
    caption = (
        f"What was found here relative to what was published: {agreeing} of {len(compared)} agree. Grey: within "
        f"{BAND} %; filled: reproduced; hollow: not; an arrow: by more than {FAR} %"
    )
    if len(shown) > MOST:
        caption += f"; the first {MOST} of {len(shown)}"
    return Picture(name, caption, partial(draw_differences, shown[:MOST]))


def percent(claim: Compared) -> float:
    """How far the number found is from the published one: infinite where that is 0 and it is not."""
    if claim.found is None:
        return math.nan
    if not claim.published:
        return math.copysign(math.inf, claim.found) if claim.found else 0.0
    return 100 * (claim.found - claim.published) / abs(claim.published)


def draw_differences(claims: list[Compared]) -> Figure:
    """A line each from 0 to the difference, under the name of its quantity; what is far away at the edge."""
    names: list[str] = []
    places: list[tuple[int, Compared]] = []
    headings: list[int] = []
    for label, members in itertools.groupby(claims, key=lambda it: it.label):
        headings.append(len(names))
        names.append(short(label))
        for claim in members:
            places.append((len(names), claim))
            names.append(
                short(claim.method if claim.method == claim.spec else f"{claim.method}, {claim.spec}")
            )
    figure = Figure(figsize=(WIDTH, 0.8 + LINE * 1.2 * len(names)))
    axes = figure.subplots()
    axes.axvspan(-BAND, BAND, color="#dddddd", linewidth=0, zorder=0)
    axes.axvline(0, color="#999999", linewidth=1)
    for place, claim in places:
        draw_difference(axes, place, percent(claim), claim.agrees)
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=NAME)
    for place in headings:
        axes.get_yticklabels()[place].set_fontweight("bold")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params("y", length=0)
    axes.grid(axis="y", visible=False)
    found = [max(-FAR, min(percent(it), FAR)) for it in claims]
    low, high = min(*found, -2 * BAND), max(*found, 2 * BAND)
    room = 1.2
    if max(-low, high) > 10 * BAND:
        room = 2
        axes.set_xscale("symlog", linthresh=BAND)
        axes.set_xticks([-100, -10, -1, 0, 1, 10, 100], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_xlim(low * room, high * room)
    axes.set_xlabel("difference from the published number (%)")
    return figure


def draw_difference(axes: Axes, place: int, difference: float, agrees: bool) -> None:
    colour = AGREES if agrees else DIFFERS
    far = abs(difference) > FAR
    x = math.copysign(min(abs(difference), FAR), difference)
    marker = (">" if x > 0 else "<") if far else "o"
    axes.plot([0, x], [place, place], color=colour, linewidth=1)
    axes.plot([x], [place], marker, color=colour, markerfacecolor=colour if agrees else "white")
    if far:
        axes.annotate(
            written(difference),
            xy=(x, place),
            xytext=(-math.copysign(8, x), 0),
            textcoords="offset points",
            ha="right" if x > 0 else "left",
            va="center",
            fontsize=SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )


def written(difference: float) -> str:
    if math.isinf(difference):
        return "published: 0"
    return f"{difference:+,.0f} %" if abs(difference) < 1e6 else f"{difference:+.0e} %"
