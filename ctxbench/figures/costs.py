"""Figures of a run: pure functions of its records."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ctxbench.figures.labels import label_ends, label_points
from ctxbench.figures.style import CONTROL, SIZE, STYLE, Picture, styles
from ctxbench.record import METRICS, Row
from ctxbench.reports.leaderboards import machine

if TYPE_CHECKING:
    import pandas as pd

COUNTED = (
    ("macs_total", "macs", "MACs"),
    ("memory_predicted_bytes", "memory", "Predicted peak memory"),
)
INPUT = ["mode", "batch", "channels", "dtype"]


def figures(frame: pd.DataFrame) -> list[Picture]:
    """All figures that the records allow.

    What is counted or predicted is the same on every machine and stands in one figure; what was
    measured has a figure for each environment.
    """
    usable = frame[frame["status"].isin(["ok", "skipped"])]
    measured = usable[usable["latency_ms_median"].notna()]
    look = styles(frame)
    found = []
    with matplotlib.rc_context(cast(Any, STYLE)):
        for _, every in usable.groupby(INPUT):
            members, missing = one_shape_each(every)
            about, name = described(first(members)), slug(first(members))
            for column, stem, what in COUNTED:
                if figure := cost_over_resolution(members, column, look, about):
                    caption = f"{what} ({about}){left_out(members[members[column] == 0])}{missing}"
                    found.append(Picture(f"{stem}-{name}", caption, figure))
        for _, every in measured.groupby([*INPUT, "compiled", "env_hash"]):
            # The control does no work: it would win every contest, and stretch the axes of what works.
            members, missing = one_shape_each(newest_code(every[every["family"] != CONTROL]))
            if members.empty:
                continue
            about, name = described(first(members), measured=True), slug(first(members), measured=True)
            missing = left_out(every[every["family"] == CONTROL]) + missing
            if figure := cost_over_resolution(members, "latency_ms_median", look, about):
                caption = f"Latency, {spread_of(members)} ({about}){missing}"
                found.append(Picture(f"latency-{name}", caption, figure))
            if figure := latency_against_memory(members, look, about):
                caption = (
                    f"Latency against predicted peak memory ({about}); of the blocks that do work, none lies "
                    f"below and left of the line{missing}"
                )
                found.append(Picture(f"pareto-{name}", caption, figure))
    return found


def one_shape_each(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of several shapes with as many pixels the squarest, the same for all blocks; and a word on the others."""
    sides = frame[["pixels", "height", "width"]].drop_duplicates()
    sides = sides.assign(length=sides["height"] + sides["width"]).sort_values(["pixels", "length", "height"])
    chosen = sides.drop_duplicates("pixels")
    others = sides.drop(chosen.index)
    named = ", ".join(map(resolution, others.to_dict("records")))
    kept = frame.merge(chosen[["height", "width"]], on=["height", "width"])
    return kept, f"; as many pixels, and not shown: {named}" if named else ""


def newest_code(frame: pd.DataFrame) -> pd.DataFrame:
    """What the latest version of the program measured of each cell; tables show the others as well."""
    return (
        frame.sort_values("created_utc")
        .drop_duplicates(["spec", "height", "width"], keep="last")
        .sort_index()
    )


def left_out(members: pd.DataFrame) -> str:
    """What a logarithmic axis, or a contest of work, has no place for."""
    names = ", ".join(dict.fromkeys(members["spec"]))
    return f"; not shown, as it does no work: {names}" if names else ""


def spread_of(members: pd.DataFrame) -> str:
    """What a point and its bar mean, for one run or for several."""
    runs = sorted(set(members["runs"]))
    if runs == [1]:
        return "median with its 95 % interval"
    return f"median and range of {' to '.join(map(str, dict.fromkeys((runs[0], runs[-1]))))} runs"


def first(members: pd.DataFrame) -> Row:
    """A row that stands for what all rows of a group share."""
    return {str(name): value for name, value in members.iloc[0].items()}


def described(row: Row, measured: bool = False) -> str:
    """The input in words and, for what was measured, the machine."""
    mode = "inference" if row["mode"] == "infer" else "training, forward and backward"
    about = f"{mode}, batch {row['batch']}, {row['channels']} channels, {row['dtype']}"
    if not measured:
        return about
    return f"{about}{', compiled' if row['compiled'] else ''}; {machine(row)}"


def slug(row: Row, measured: bool = False) -> str:
    """The same as part of a file name."""
    parts = [row["mode"], f"b{row['batch']}", f"c{row['channels']}", row["dtype"]]
    if measured:
        parts += [*(["compiled"] if row["compiled"] else []), row["env_hash"][:6]]
    return "-".join(parts)


def cost_over_resolution(
    frame: pd.DataFrame, column: str, look: dict[str, dict[str, Any]], about: str
) -> Figure | None:
    """One column against the number of pixels, log-log, one line per spec, labelled at its end."""
    data = frame[drawable(frame[column])]
    data = data[data.groupby("spec")["pixels"].transform("nunique") > 1]
    if data.empty:
        return None
    metric = METRICS[column]
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    ends = []
    for name, members in data.groupby("spec", sort=False):
        spec = str(name)
        # An estimate and a measurement of the same cell agree in cost; the measured row is kept.
        rows = members.sort_values(["pixels", "estimated"]).drop_duplicates("pixels")
        y = rows[column] / metric.scale
        axes.plot(rows["pixels"], y, **look[spec], markeredgecolor="white", markeredgewidth=0.5)
        if column == "latency_ms_median":
            low, high = rows["latency_ms_ci_low"], rows["latency_ms_ci_high"]
            axes.vlines(rows["pixels"], low, high, color=look[spec]["color"], linewidth=1)
        ends.append((float(rows["pixels"].iloc[-1]), float(y.iloc[-1]), spec))
    axes.set(xscale="log", yscale="log", ylabel=metric.title, xlabel="resolution")
    axes.set_title(heading(about), parse_math=False)
    resolution_ticks(axes, data)
    plain_numbers(axes)
    label_ends(axes, ends, look)
    return figure


def drawable(values: pd.Series[float]) -> pd.Series[bool]:
    """What a logarithmic axis can show; beyond these bounds lies no measurement."""
    return (values > 1e-9) & (values < 1e24)


def latency_against_memory(frame: pd.DataFrame, look: dict[str, dict[str, Any]], about: str) -> Figure | None:
    """Latency and memory at the largest measured resolution, with the Pareto frontier."""
    data = frame[drawable(frame["memory_predicted_bytes"]) & drawable(frame["latency_ms_median"])]
    data = data[data["pixels"] == data["pixels"].max()].drop_duplicates("spec")
    if len(data) < 2:
        return None
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    points = []
    for row in data.to_dict("records"):
        x, y = (
            row["memory_predicted_bytes"] / METRICS["memory_predicted_bytes"].scale,
            row["latency_ms_median"],
        )
        points.append((x, y, row["spec"]))
        style = look[row["spec"]] | {"linestyle": "none"}
        axes.plot([x], [y], **style, markersize=8, markeredgecolor="white")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=METRICS["memory_predicted_bytes"].title,
        ylabel=METRICS["latency_ms_median"].title,
    )
    axes.set_title(heading(f"{about}, at {resolution(data.iloc[0])}"), parse_math=False)
    axes.margins(0.15)
    plain_numbers(axes, both=True)
    draw_frontier(axes, pareto([(x, y) for x, y, _ in points]))
    label_points(axes, points, look)
    return figure


def draw_frontier(axes: Axes, frontier: list[tuple[float, float]]) -> None:
    """Join the frontier by steps, and carry it on to the edges of the axes."""
    axes.autoscale(False)
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    x, y = zip(*frontier, strict=True)
    axes.step([x[0], *x, right], [top, *y, y[-1]], where="post", color="#999999", linewidth=1, zorder=0)


def heading(about: str) -> str:
    """The input on the first line, the machine on the second."""
    return about.replace("; ", "\n")


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates (lower is better), from left to right."""
    best, frontier = math.inf, []
    for x, y in sorted(points):
        if y < best:
            best = y
            frontier.append((x, y))
    return frontier


def resolution(row: Any) -> str:
    return f"{int(row['height'])}x{int(row['width'])}"


def resolution_ticks(axes: Axes, data: pd.DataFrame) -> None:
    shown = data.drop_duplicates("pixels").sort_values("pixels")
    axes.set_xticks(shown["pixels"], [resolution(row) for row in shown.to_dict("records")])
    places = [math.log(pixels) for pixels in shown["pixels"]]
    steps = [after - before for before, after in itertools.pairwise(places)]
    if min(steps, default=1) < 0.12 * (places[-1] - places[0]):
        axes.tick_params("x", labelrotation=35)
    axes.xaxis.set_minor_locator(NullLocator())


def plain_numbers(axes: Axes, both: bool = False) -> None:
    """Ticks like 0.1, 10 and 1,000 instead of powers of ten; also 2 and 5 where there are few."""
    for axis in (axes.yaxis, axes.xaxis) if both else (axes.yaxis,):
        low, high = axis.get_view_interval()
        steps = (1, 2, 5) if high < 1000 * low else (1,)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())
