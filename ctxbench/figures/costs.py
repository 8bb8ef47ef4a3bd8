"""What blocks cost: over the resolution, and latency against memory."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctxbench.figures.frontier import draw_frontier, pareto
from ctxbench.figures.inputs import Course, Group, courses, drawable, left_out, resolution, usable
from ctxbench.figures.labels import label_ends, label_points
from ctxbench.figures.style import AROUND, MOST, SMALL, WIDTH, Looks, Picture, height_for
from ctxbench.figures.ticks import heading, named_ticks, plain_numbers, titled
from ctxbench.record import METRICS, Row
from ctxbench.reports.contests import LATENCY, MEMORY

MACS = "macs_total"
WHAT = {
    LATENCY: ("latency", "Latency"),
    MEMORY: ("memory", "Predicted peak memory"),
    MACS: ("macs", "MACs"),
}
MARK, ABOVE = 7, 14  # points from one cross to the next, and above the highest


def over_resolution(group: Group, column: str, look: Looks) -> Picture | None:
    """One of the columns of `WHAT` against the number of pixels; None where no block has two sizes."""
    found = [it for it in courses(group.rows, column) if it.failed or len(it.good) > 1]
    if not any(it.good and len(it.rows) > 1 for it in found):
        return None
    stem, what = WHAT[column]
    shown = sorted(found, key=lambda it: not it.good)[:MOST]
    caption = f"{what}{spread_of(shown) if column == LATENCY else ''} ({group.about}){group.missing}"
    if column != LATENCY:
        caption += left_out(row["spec"] for row in group.rows if row[column] == 0)
    if failed := sorted({row["status"] for it in shown for row in it.failed}):
        caption += f"; x: failed ({', '.join(failed)}), on grey where the cost is not known"
    caption += fewer(len(shown), len(found))
    draw = partial(draw_over_resolution, shown, column, look, group.about)
    return Picture(f"{stem}-{group.slug}", caption, draw)


def fewer(shown: int, found: int) -> str:
    return f"; the first {shown} of {found} blocks" if shown < found else ""


def spread_of(found: list[Course]) -> str:
    """What a point and its bar mean, for one run or for several."""
    runs = sorted({row["runs"] for it in found for row in it.good})
    if runs == [1]:
        return ", median with its 95 % interval"
    return f", median and range of {' to '.join(map(str, dict.fromkeys((runs[0], runs[-1]))))} runs"


def draw_over_resolution(found: list[Course], column: str, look: Looks, about: str) -> Figure:
    """Log-log, one line per block, labelled at its end; crosses where it failed."""
    metric = METRICS[column]
    figure = Figure(figsize=(WIDTH, height_for(len(found))))
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", ylabel=metric.title, xlabel="resolution")
    titled(axes, heading(about))
    for course in found:
        style, pixels = look[course.spec], [row["pixels"] for row in course.good]
        axes.plot(pixels, [row[column] / metric.scale for row in course.good], **style)
        if column == LATENCY:
            low, high = ([row[f"latency_ms_ci_{end}"] for row in course.good] for end in ("low", "high"))
            axes.vlines(pixels, low, high, color=style["color"], linewidth=1)
    heights = {
        (course.spec, row["pixels"]): row[column] / metric.scale
        for course in found
        for row in course.rows
        if drawable(row[column])
    }
    axes.update_datalim([(pixels, height) for (_, pixels), height in heights.items()])
    heights |= at_the_top(axes, found, heights)
    for course in found:
        if course.failed:
            draw_failures(axes, course, heights, look[course.spec]["color"])
    name_failures(axes, found, heights)
    plain_numbers(axes.yaxis)
    ends = [
        (course.rows[-1]["pixels"], heights[course.spec, course.rows[-1]["pixels"]], course.spec)
        for course in found
    ]
    label_ends(axes, ends, look)
    named_ticks(axes, *sizes(found))
    return figure


Heights = dict[tuple[str, int], float]  # of what is drawn of a block at a number of pixels


def sizes(found: list[Course]) -> tuple[list[int], list[str]]:
    """Every number of pixels, and the resolution it stands for."""
    names = {row["pixels"]: resolution(row) for course in found for row in course.rows}
    return sorted(names), [names[pixels] for pixels in sorted(names)]


def at_the_top(axes: Axes, found: list[Course], heights: Heights) -> Heights:
    """Where failures are marked of which no cost is known: above all others, and above one another.

    Those of blocks that cost more, where they last did not fail, stand higher.
    """
    stacks: dict[int, list[tuple[float, str]]] = {}
    for course in found:
        last = max((heights[course.spec, row["pixels"]] for row in course.good), default=0.0)
        for row in course.failed:
            if (course.spec, row["pixels"]) not in heights:
                stacks.setdefault(row["pixels"], []).append((last, course.spec))
    if not stacks:
        return {}
    tallest = max(map(len, stacks.values()))
    points = 72 * (height_for(len(found)) - AROUND)  # of the axes, about
    step = min(MARK, 0.4 * points / tallest)
    bottom, top = axes.get_ylim()
    span = math.log(top / bottom) / (1 - (step * tallest + ABOVE) / points)
    axes.set_ylim(bottom, bottom * math.exp(span))
    axes.axhspan(top, bottom * math.exp(span), color="#f4f4f4", linewidth=0, zorder=0)
    return {
        (spec, pixels): bottom * math.exp(span * (1 - (ABOVE + step * place) / points))
        for pixels, stack in stacks.items()
        for place, (_, spec) in enumerate(sorted(stack, reverse=True))
    }


def draw_failures(axes: Axes, course: Course, heights: Heights, colour: str) -> None:
    """A cross for each, and a dotted line to them from where the block last did not fail."""
    way = [(row["pixels"], heights[course.spec, row["pixels"]]) for row in course.rows]
    failed = {row["pixels"] for row in course.failed}
    last = max((index for index, (pixels, _) in enumerate(way) if pixels not in failed), default=0)
    axes.plot(*zip(*way[last:], strict=True), ":", color=colour, linewidth=0.8)
    crosses = [it for it in way if it[0] in failed]
    axes.plot(*zip(*crosses, strict=True), "x", color=colour)


def name_failures(axes: Axes, found: list[Course], heights: Heights) -> None:
    """The statuses at a resolution, once, above the highest cross."""
    marked: dict[int, list[tuple[float, str]]] = {}
    for course in found:
        for row in course.failed:
            marked.setdefault(row["pixels"], []).append((heights[course.spec, row["pixels"]], row["status"]))
    for pixels, crosses in marked.items():
        counts = Counter(status for _, status in crosses).most_common()
        words = ", ".join(
            f"{count} {status}" if len(counts) > 1 else status for status, count in sorted(counts)
        )
        axes.annotate(
            words,
            xy=(pixels, max(crosses)[0]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color="#555555",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )


def latency_against_memory(group: Group, look: Looks) -> Picture | None:
    """Latency and memory at the largest resolution that has two blocks, with the Pareto frontier."""
    by_size: dict[int, dict[str, Row]] = {}
    for course in courses(group.rows, LATENCY):
        for row in course.good:
            if usable(row, MEMORY):
                by_size.setdefault(row["pixels"], {})[course.spec] = row
    found = by_size.get(max((pixels for pixels, rows in by_size.items() if len(rows) > 1), default=0), {})
    if not found:
        return None
    shown = list(found.values())[:MOST]
    caption = (
        f"Latency against predicted peak memory ({group.about}); of the blocks that do work, none lies "
        f"below and left of the line{group.missing}{fewer(len(shown), len(found))}"
    )
    draw = partial(draw_latency_against_memory, shown, look, group.about)
    return Picture(f"pareto-{group.slug}", caption, draw)


def draw_latency_against_memory(rows: list[Row], look: Looks, about: str) -> Figure:
    memory, latency = METRICS[MEMORY], METRICS[LATENCY]
    figure = Figure(figsize=(WIDTH, height_for(len(rows))))
    axes = figure.subplots()
    points = [(row[MEMORY] / memory.scale, row[LATENCY] / latency.scale, row["spec"]) for row in rows]
    for x, y, spec in points:
        axes.plot([x], [y], **look[spec] | {"linestyle": "none"}, markersize=7)
    axes.set(xscale="log", yscale="log", xlabel=memory.title, ylabel=latency.title)
    titled(axes, f"{heading(about)}, at {resolution(rows[0])}")
    axes.margins(0.15)
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    draw_frontier(axes, pareto([(x, y) for x, y, _ in points]))
    label_points(axes, points, look)
    return figure
