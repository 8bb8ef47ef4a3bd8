"""Quality against cost: the score of each block over the time that its training takes."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure

from ctxbench.figures.costs import fewer
from ctxbench.figures.frontier import draw_frontier, pareto
from ctxbench.figures.labels import End, label_points
from ctxbench.figures.style import MOST, WIDTH, Looks, Picture, height_for, short
from ctxbench.figures.ticks import plain_numbers, titled
from ctxbench.record import Row
from ctxbench.reports.scores import SCORES, entries_of, is_sound, metric_of, title_of, training_time

SPAN = 5  # times so many times apart stand on a logarithmic axis
NOT_RANKED = "hollow: collapsed, or far from real; not ranked"


def tradeoff(rows: list[Row], number: int, look: Looks) -> Picture | None:
    """The trainings of one table; None where fewer than two blocks have a score and a time."""
    metric, (column, unit) = metric_of(rows), training_time(entries_of(rows))
    timed = [row for row in rows if row["status"] == "ok" and row[metric] is not None and row[column]]
    specs = {row["spec"] for row in timed}
    if len(specs) < 2:
        return None
    better = "lower" if SCORES[metric].lower_is_better else "higher"
    caption = (
        f"{short(title_of(rows[0]), 200)}: {SCORES[metric].name} ({better} is better) against the {unit}. "
        "Mean over the seeds, the bar their range; no block is both better and faster than one on the line"
    )
    caption += "" if all(map(is_sound, timed)) else f"; {NOT_RANKED}"
    caption += fewer(min(MOST, len(specs)), len(specs))
    return Picture(f"tradeoff-{number}", caption, partial(draw_tradeoff, rows, metric, look))


def draw_tradeoff(rows: list[Row], metric: str, look: Looks) -> Figure:
    score, (column, unit) = SCORES[metric], training_time(entries_of(rows))
    shown = [it for it in entries_of(rows) if it.values(metric) and it.middle(column)][:MOST]
    figure = Figure(figsize=(WIDTH, height_for(len(shown))))
    axes = figure.subplots()
    points: list[End] = []
    ranked: list[tuple[float, float]] = []
    for entry in shown:
        style = look[entry.spec] | {"linestyle": "none"}
        if not entry.sound:
            style |= {"fillstyle": "full", "markerfacecolor": "white"}
        x, y = entry.middle(column) or 0.0, score.scale * (entry.middle(metric) or 0.0)
        low, high = (score.scale * end for end in entry.range(metric))
        axes.vlines(x, low, high, color=style["color"], linewidth=1)
        axes.plot([x], [y], **style, markersize=7)
        points.append((x, y, entry.spec))
        if entry.sound:
            ranked.append((x, y))
    times = [x for x, _, _ in points]
    axes.set(
        xlabel=f"{unit} (s)",
        ylabel=score.title,
    )
    titled(axes, title_of(rows[0]))
    axes.margins(0.12)
    if max(times) > SPAN * min(times):
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    if ranked:
        draw_frontier(axes, pareto(ranked, not score.lower_is_better), not score.lower_is_better)
    label_points(axes, points, look)
    return figure
