"""One look for every figure: colours, markers, sizes, and how a figure becomes a file."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd

# One hue per family (Okabe and Ito's palette, told apart by colour-blind readers), one marker and
# line style per block of a family, so that a block looks the same in every figure.
CONTROL = "control"
FAMILY_COLOURS = {
    "decomposition": "#D55E00",
    "attention": "#0072B2",
    "linear attention": "#009E73",
    CONTROL: "#555555",
}
OTHER_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*<>hp"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))

SIZE = (6.4, 4.2)  # inches
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.hashsalt": "ctxbench",
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}


def styles(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of every spec in the frame, from the sorted names of its family."""
    extra = itertools.cycle(OTHER_COLOURS)
    found = {}
    for family, members in frame.sort_values("spec").groupby("family"):
        colour = FAMILY_COLOURS.get(str(family)) or next(extra)
        for index, spec in enumerate(members["spec"].unique()):
            found[spec] = {
                "color": colour,
                "marker": MARKERS[index % len(MARKERS)],
                "linestyle": LINES[index % len(LINES)],
            }
    return found


@dataclass(frozen=True)
class Picture:
    """A figure with its file name and its caption."""

    name: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """The figure as SVG, the same bytes for the same records."""
        buffer = io.StringIO()
        with matplotlib.rc_context(cast(Any, STYLE)):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.rc_context(cast(Any, STYLE)):
            self.figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()
