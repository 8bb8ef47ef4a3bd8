"""How much of what the machine can do a block achieves, over the work it does for a byte."""

from __future__ import annotations

from functools import partial
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctxbench.figures.costs import fewer
from ctxbench.figures.inputs import Course, Group, courses
from ctxbench.figures.labels import End, label_points
from ctxbench.figures.style import MOST, SMALL, WIDTH, Looks, Picture, height_for
from ctxbench.figures.ticks import heading, plain_numbers, titled
from ctxbench.record import Row
from ctxbench.reports.contests import LATENCY
from ctxbench.tables import number

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def roofline(group: Group, look: Looks) -> Picture | None:
    """Achieved speed against arithmetic intensity, a line per block; None where no block does counted work."""
    found = [
        Course(it.spec, [row for row in it.good if counted(row)], []) for it in courses(group.rows, LATENCY)
    ]
    found = [it for it in found if it.good]
    if not found:
        return None
    shown = found[:MOST]
    threaded = group.rows[0]["device_type"] == "cpu" and group.rows[0]["threads"] > 1
    passes = "forward and backward" if group.rows[0]["mode"] == "train" else "forward"
    caption = (
        f"Achieved speed against arithmetic intensity ({group.about}). Up: counted floating-point operations, two "
        f"for each MAC of {passes}, over the median latency. To the right: the same over the bytes of input, "
        "output and parameters, each touched once. A line joins the resolutions of a block, named at the largest. "
        f"The ceiling is a large matrix product on the same machine{', timed on one thread, times the threads' if threaded else ''}; "
        "no roof of the memory is drawn, as its "
        f"bandwidth was not measured{group.missing}{fewer(len(shown), len(found))}"
    )
    return Picture(f"roofline-{group.slug}", caption, partial(draw_roofline, shown, look, group.about))


def counted(row: Row) -> bool:
    """Whether the work of every pass is known, and is some."""
    return bool(row["macs_total"])


def gflops(row: Row) -> float:
    """Billions of counted floating-point operations a second."""
    return 2 * float(row["macs_total"]) / row[LATENCY] / 1e6


def intensity(row: Row) -> float:
    """Floating-point operations for each byte of input, output and parameters."""
    pixels = row["batch"] * row["channels"] * row["pixels"]
    return 2 * float(row["macs_total"]) / (BYTES[row["dtype"]] * (2 * pixels + (row["params"] or 0)))


def ceiling(row: Row) -> float | None:
    """What a large matrix product achieves; on a CPU it was measured in CPU time, so of one thread."""
    threads = row["threads"] if row["device_type"] == "cpu" else 1
    return row["reference_gflops"] and threads * row["reference_gflops"]


def draw_roofline(found: list[Course], look: Looks, about: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height_for(len(found))))
    axes = figure.subplots()
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="arithmetic intensity (FLOP per byte)",
        ylabel="achieved (GFLOP/s)",
    )
    titled(axes, heading(about))
    ends: list[End] = []
    for course in found:
        points = [(intensity(row), gflops(row), course.spec) for row in course.good]
        x, y, _ = zip(*points, strict=True)
        axes.plot(x, y, **look[course.spec], linewidth=1)
        ends.append(points[-1])
    axes.margins(0.15, 0.12)
    if ceilings := [it for course in found for row in course.good if (it := ceiling(row))]:
        draw_ceiling(axes, ceilings)
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    label_points(axes, ends, look)
    return figure


def draw_ceiling(axes: Axes, ceilings: list[float]) -> None:
    """The median, and a band from the lowest to the highest."""
    top = median(ceilings)
    axes.axhline(top, color="#333333", linewidth=1)
    axes.axhspan(min(ceilings), max(ceilings), color="#333333", alpha=0.12, linewidth=0)
    axes.annotate(
        f"matrix product: {number(top, 3)} GFLOP/s",
        xy=(0, top),
        xycoords=axes.get_yaxis_transform(),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=SMALL,
        color="#333333",
    )
