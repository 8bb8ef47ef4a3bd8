"""One look for every figure: colours, markers, sizes, and how a figure becomes a file."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast
from unicodedata import east_asian_width

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from ctxbench.families import families
from ctxbench.reports.contests import CONTROL
from ctxbench.tables import printable

Look = dict[str, Any]  # how a line is drawn: keywords of Axes.plot
Looks = dict[str, Look]  # of each spec

# A hue for each family (Okabe and Ito's palette, told apart by colour-blind readers), in shades that differ
# in grey print too; a marker for each block of a family; a line and a filling for each variant of a block.
HUES = {
    "decomposition": "#D55E00",
    "attention": "#0072B2",
    "linear attention": "#009E73",
    CONTROL: "#555555",
}
OTHER_HUES = ("#CC79A7", "#E69F00", "#56B4E9")
SHADES = (0.0, -0.4, 0.35)  # towards black, or towards white
MARKERS = "osD^vP*<>dph"
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)), (0, (1, 1)))
FILLINGS = ("full", "left", "bottom", "right", "top")  # a hollow marker means something of its own

WIDTH, HEIGHT = 6.4, 4.2  # inches; a figure with many names is higher
SMALL = 7  # points: no text is smaller
NAME = 8  # points, of the names of blocks
LINE = 0.15  # inches, of a line of names
AROUND = 1.0  # inches of a figure's height that are not its axes', about
MOST = 100  # blocks in a figure
LONGEST = 40  # characters of a label
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "svg.hashsalt": "ctxbench",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,  # inches; a name may be drawn wider than it is laid out
}


@dataclass(frozen=True)
class Picture:
    """A figure with its file name and its caption; drawn when it is first looked at.

    Attributes:
        wide: whether it needs the whole width of a page.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    wide: bool = False

    @cached_property
    def figure(self) -> Figure:
        """The figure with all in its place, so that each file of it need not be laid out anew."""
        with drawing():
            figure = self.draw()
            if engine := figure.get_layout_engine():
                engine.execute(figure)
                figure.set_layout_engine("none")
            return figure

    @cached_property
    def svg(self) -> str:
        """The figure as SVG, the same bytes for the same records."""
        return self._saved("svg", {"Date": None, "Creator": None}).decode()

    def png(self, dpi: int = 150) -> bytes:
        return self._saved("png", {"Software": None}, dpi=dpi)

    def pdf(self) -> bytes:
        """The figure as PDF with its fonts in it, the same bytes for the same records."""
        return self._saved("pdf", {"CreationDate": None, "Creator": None, "Producer": None})

    def _saved(self, kind: str, metadata: dict[str, None], **options: Any) -> bytes:
        file = io.BytesIO()
        figure = self.figure
        with drawing():
            figure.savefig(file, format=kind, metadata=metadata, **options)
        return file.getvalue()


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The project's style; a character that no font has is drawn as a box, without a warning."""
    with warnings.catch_warnings(), matplotlib.rc_context(cast(Any, STYLE)):
        warnings.simplefilter("ignore", UserWarning)  # a limit that is no number is left out as well
        yield


@cache
def hues() -> dict[str, str]:
    """The hue of each family of the catalogue."""
    others = sorted(set(families().values()) - set(HUES))
    return HUES | dict(zip(others, itertools.cycle(OTHER_HUES), strict=False))


@cache
def places() -> dict[str, tuple[str, int]]:
    """The hue of each block of the catalogue, and its number among the blocks of that hue."""
    found, counted = {}, Counter[str]()
    for family, name in sorted((family, name) for name, family in families().items()):
        hue = hues()[family]
        found[name] = hue, counted[hue]
        counted[hue] += 1
    return found


def look_of(spec: str, family: str, variant: int = 0) -> Look:
    """Colour, marker, line and filling of a block, the same in every figure.

    Args:
        family: gives the colour of a block that is not in the catalogue.
        variant: which of the block's specs it is among those that are drawn.
    """
    block = spec.partition("[")[0]
    hue, number = places().get(block) or (hue_of(family), stable(block))
    marker, turn = number % len(MARKERS), number // len(MARKERS)
    return {
        "color": shaded(hue, SHADES[(marker + turn) % len(SHADES)]),
        "marker": MARKERS[marker],
        "linestyle": LINES[variant % len(LINES)],
        "fillstyle": FILLINGS[variant % len(FILLINGS)],
        "markerfacecoloralt": "white",
    }


def hue_of(family: str) -> str:
    return hues().get(family) or OTHER_HUES[stable(family) % len(OTHER_HUES)]


def stable(text: str) -> int:
    """A number that hangs on the text alone."""
    return zlib.crc32(text.encode(errors="replace"))


def looks(blocks: Iterable[tuple[str, str]]) -> Looks:
    """The look of every spec, given with its family; variants of a block come in the order of their specs."""
    known = dict(sorted(set(blocks), reverse=True))
    found, variants = {}, Counter[str]()
    for spec in sorted(known):
        block = spec.partition("[")[0]
        found[spec] = look_of(spec, known[spec], variants[block])
        variants[block] += 1
    return found


def shaded(colour: str, share: float) -> str:
    """A colour mixed with white, or with black where `share` is negative."""
    target = 1.0 if share > 0 else 0.0
    red, green, blue = (part + abs(share) * (target - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


def ink(colour: str) -> str:
    """The colour dark enough for text on white (4.5:1, as WCAG asks for)."""
    while luminance(colour) > 1.05 / 4.5 - 0.05:
        colour = shaded(colour, -0.1)
    return colour


def luminance(colour: str) -> float:
    """Relative luminance, from 0 (black) to 1 (white), as WCAG defines it."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def short(text: object, most: int = LONGEST) -> str:
    """Printable text of at most so many columns, the middle left out: variants differ in their ends."""
    text = str(text)
    line = printable(text[: 10 * most] + text[10 * most :][-most:])
    if columns(line) <= most:
        return line
    start, end = first_columns(line, most - most // 3 - 1), first_columns(line[::-1], most // 3)[::-1]
    return f"{start}…{end}"


def columns(text: str) -> int:
    """How wide a text is, in letters; those of East Asia count twice."""
    return sum(2 if east_asian_width(mark) in "WF" else 1 for mark in text)


def first_columns(text: str, most: int) -> str:
    widths = itertools.accumulate(map(columns, text))
    return text[: sum(width <= most for width in widths)]


def slug(text: str) -> str:
    """Text as a part of a file name: lower-case letters, digits and "-"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:LONGEST].strip("-") or "x"


def height_for(names: int) -> float:
    """The height in inches of a figure with so many names beside it."""
    return max(HEIGHT, AROUND + LINE * (names + 1))
