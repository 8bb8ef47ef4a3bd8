"""Figures of trained networks: scores with their seeds, and how they hang on the size of the cue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import matplotlib
from matplotlib.figure import Figure

from ctxbench.labels import label_ends
from ctxbench.plots import SIZE, STYLE, Picture, styles
from ctxbench.record import Row
from ctxbench.scores import CHANCE, METRICS, SHARED, Entry, entries_of, groups_of, metric_of, title_of

if TYPE_CHECKING:
    import pandas as pd


def figures(rows: list[Row], frame: pd.DataFrame) -> list[Picture]:
    """A figure for each table of scores, and one for each network that was trained on several cues."""
    look = styles(frame)
    found = []
    with matplotlib.rc_context(cast(Any, STYLE)):
        for number, members in enumerate(groups_of(rows)):
            entries, metric = [it for it in entries_of(members) if it.done], metric_of(members)
            if len(entries) > 1:
                caption = f"{title_of(members[0])}: every seed, and the mean"
                found.append(Picture(f"scores-{number}", caption, scores(entries, metric, look)))
        for number, members in enumerate(over_cues(rows)):
            caption = "Context IoU over the cue's share of the image: every seed, and the mean"
            found.append(Picture(f"cues-{number}", caption, cues(members, look)))
    return found


def scores(entries: list[Entry], metric: str, look: dict[str, dict[str, Any]]) -> Figure:
    """One line per block, best on top: a dot for each seed, a bar for the mean."""
    figure = Figure(figsize=(SIZE[0], 0.8 + 0.28 * len(entries)))
    axes = figure.subplots()
    for place, entry in enumerate(reversed(entries)):
        colour = look[entry.spec]["color"]
        values = [100 * value for value in entry.values(metric)]
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.7)
        axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color=colour)
    axes.set_yticks(range(len(entries)), [entry.spec for entry in reversed(entries)], parse_math=False)
    axes.set(xlabel=METRICS[metric], ylim=(-0.6, len(entries) - 0.4))
    if metric == "context_iou":
        axes.axvline(100 * CHANCE, color="#999999", linewidth=1, linestyle=":")
        axes.set_title("dotted: chance, with perfect borders")
    return figure


def over_cues(rows: list[Row]) -> list[list[Row]]:
    """Rows of one protocol whose data differ in the cue alone, where there are several cues."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["context_iou"] is not None:
            key = tuple(row[name] for name in (it for it in SHARED if it != "dataset"))
            found.setdefault(key, []).append(row)
    return [members for members in found.values() if len({row["dataset"] for row in members}) > 1]


def cue_of(row: Row) -> float:
    """The cue's share of the image in per cent, as the data set's name has it."""
    return float(row["dataset"].rpartition("-")[2])


def cues(rows: list[Row], look: dict[str, dict[str, Any]]) -> Figure:
    """Mean score over the cue's share, a line per block, and a dot for each seed."""
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    ends = []
    for spec in dict.fromkeys(row["spec"] for row in sorted(rows, key=lambda row: row["spec"])):
        own = [row for row in rows if row["spec"] == spec]
        shares = sorted({cue_of(row) for row in own})
        means = []
        for share in shares:
            values = [100 * row["context_iou"] for row in own if cue_of(row) == share]
            means.append(sum(values) / len(values))
        axes.plot(shares, means, **look[spec])
        seeds = [100 * row["context_iou"] for row in own]
        axes.scatter(
            [cue_of(row) for row in own], seeds, s=9, color=look[spec]["color"], alpha=0.5, linewidths=0
        )
        ends.append((shares[-1], means[-1], spec))
    every = sorted({cue_of(row) for row in rows})
    axes.set(xscale="log", xlabel="cue (% of the image)", ylabel=METRICS["context_iou"])
    axes.set_xticks(every, [f"{share:g}" for share in every])
    axes.minorticks_off()
    axes.axhline(100 * CHANCE, color="#999999", linewidth=1, linestyle=":")
    axes.set_title("dotted: chance, with perfect borders")
    label_ends(axes, ends, look, log=False)
    return figure
