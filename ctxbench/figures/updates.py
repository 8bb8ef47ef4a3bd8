"""How long one update of a GAN takes with each block."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure

from ctxbench.figures.costs import fewer
from ctxbench.figures.style import AROUND, LINE, MOST, NAME, WIDTH, Looks, Picture, short
from ctxbench.figures.ticks import wrapped
from ctxbench.record import METRICS, Row
from ctxbench.reports.contests import LATENCY
from ctxbench.reports.inputs import group_title, machine
from ctxbench.reports.leaderboards import leaderboard_key


def updates(rows: list[Row], look: Looks) -> list[Picture]:
    """A figure for each leaderboard of updates; the largest first.

    Args:
        rows: one for each cell.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row[LATENCY] is not None:
            groups.setdefault(str(leaderboard_key(row)), []).append(row)
    numbered = enumerate(members for _, members in sorted(groups.items()))
    return [update(members, number, look) for number, members in sorted(numbered, key=lambda it: -len(it[1]))]


def update(rows: list[Row], number: int, look: Looks) -> Picture:
    """The blocks of one leaderboard, the fastest on top."""
    newest = {row["spec"]: row for row in sorted(rows, key=lambda row: row["created_utc"])}
    found = sorted(newest.values(), key=lambda row: (row[LATENCY], row["spec"]))
    shown = found[:MOST]
    several = any(row["runs"] > 1 for row in shown)
    spread = "median and range of several runs" if several else "median with its 95 % interval"
    caption = f"{short(group_title(rows[0]), 200)}: {spread}{fewer(len(shown), len(found))}"
    return Picture(f"updates-{number}", caption, partial(draw_update, shown, look))


def draw_update(rows: list[Row], look: Looks) -> Figure:
    what = group_title(rows[0]).removesuffix(f", {machine(rows[0])}")
    title = wrapped(f"{what}\n{machine(rows[0])}")
    lines = 1.6 * len(rows) + title.count("\n")
    figure = Figure(figsize=(WIDTH, AROUND + LINE * lines))
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=NAME, parse_math=False)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        style = look[row["spec"]]
        axes.hlines(
            place, row["latency_ms_ci_low"], row["latency_ms_ci_high"], color=style["color"], linewidth=1
        )
        axes.plot([row[LATENCY]], [place], **style)
    axes.set_yticks(range(len(rows)), [short(row["spec"]) for row in rows], parse_math=False, fontsize=NAME)
    axes.set(xlabel=METRICS[LATENCY].title, ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlim(left=0)
    return figure
