"""Figures of trained networks: scores with their seeds, and how they hang on the size of the cue."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ctxbench.figures.labels import label_ends
from ctxbench.figures.style import SIZE, STYLE, Picture, styles
from ctxbench.panels import columns, path_of, small
from ctxbench.record import Row
from ctxbench.reports.scores import (
    CHANCE,
    SCORES,
    SEGMENTED,
    SHARED,
    Entry,
    entries_of,
    groups_of,
    is_sound,
    metric_of,
    title_of,
)

if TYPE_CHECKING:
    import pandas as pd

CUE = re.compile(r"legend-\d{1,2}(\.\d)?")  # a data set that differs from its like in the cue's share alone
ACROSS, SAMPLES_ACROSS = 8, 4  # columns of a figure of predictions, and of sheets of samples


def figures(rows: list[Row], frame: pd.DataFrame, folders: Mapping[str, Path]) -> list[Picture]:
    """Scores and predictions for each table of scores, and a figure for networks trained on several cues.

    Args:
        folders: of the runs, by `run_id`, where the sheets of predictions lie.
    """
    look = styles(frame)
    found = []
    with matplotlib.rc_context(cast(Any, STYLE)):
        for number, members in enumerate(groups_of(rows)):
            metric = metric_of(members)
            entries = [it for it in entries_of(members) if it.values(metric)]
            if len(entries) > 1:
                caption = f"{title_of(members[0])}: every seed, and the mean"
                found.append(Picture(f"scores-{number}", caption, scores(entries, metric, look)))
            read = columns if metric in SEGMENTED else small
            sheets = [(row, sheet) for row, sheet in sheets_of(entries, folders, read) if sheet is not None]
            if sheets:
                made = "what is predicted" if metric in SEGMENTED else "what is generated, a class a row"
                caption = f"{title_of(members[0])}: {made}, with the {SCORES[metric].title}, seed {sheets[0][0]['seed']}"
                found.append(Picture(f"predictions-{number}", caption, pictures(sheets, metric)))
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
        values = [SCORES[metric].scale * value for value in entry.values(metric)]
        for row, value in zip(entry.scored(metric), values, strict=True):
            fill = colour if is_sound(row) else "white"
            axes.plot(value, place, "o", color=colour, markersize=4, alpha=0.7, markerfacecolor=fill)
        axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color=colour)
    axes.set_yticks(range(len(entries)), [entry.spec for entry in reversed(entries)], parse_math=False)
    axes.set(xlabel=SCORES[metric].title, ylim=(-0.6, len(entries) - 0.4))
    if metric == "context_iou":
        axes.axvline(100 * CHANCE, color="#999999", linewidth=1, linestyle=":")
        axes.set_title("dotted: chance, with perfect borders")
    if metric == "agreement":
        axes.set_xlim(-0.1, 1.05)
        axes.axvline(0, color="#999999", linewidth=1, linestyle=":")
        axes.set_title("dotted: chance")
    if not all(entry.sound for entry in entries):
        axes.set_title("hollow: collapsed, or far from real; not ranked")
    return figure


def sheets_of(
    entries: list[Entry], folders: Mapping[str, Path], read: Callable[[Path], Any]
) -> Iterator[tuple[Row, Any]]:
    """Of each block the sheet of the first seed that all were trained from, or of its own first."""
    common = (
        set.intersection(*({row["seed"] for row in entry.done} for entry in entries)) if entries else set()
    )
    for entry in entries:
        row = min(entry.done, key=lambda row: (row["seed"] not in common, row["seed"]))
        folder = folders.get(row["run_id"])
        yield row, read(path_of(folder, row["cell_id"])) if folder else None


def pictures(sheets: list[tuple[Row, Any]], metric: str) -> Figure:
    """What each block's network predicts or generates; of predictions also images and truth, the same for all."""
    titled: list[tuple[str, np.ndarray]] = []
    if metric in SEGMENTED:
        image, truth, _ = sheets[0][1]
        titled = [("image", image), ("truth", truth)]
        sheets = [(row, sheet[2]) for row, sheet in sheets]
    titled += [(f"{row['spec']}\n{scored(row, metric)}", sheet) for row, sheet in sheets]
    most = ACROSS if metric in SEGMENTED else SAMPLES_ACROSS
    down = -(-len(titled) // most)
    across = -(-len(titled) // down)
    height, width = titled[0][1].shape[:2]
    tall = SIZE[0] * 1.6 / across * height / width
    figure = Figure(figsize=(SIZE[0] * 1.6, (tall + 0.35) * down))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (title, picture) in zip(grid, titled, strict=False):
        axes.set_title(title, fontsize=7, parse_math=False)
        axes.imshow(picture, interpolation="nearest")
    return figure


def scored(row: Row, metric: str) -> str:
    """The score of one seed, and whether it ranks nothing."""
    doubt = row["collapsed"].partition(":")[0] if row["collapsed"] else ""
    name = "" if metric in SEGMENTED else f"{SCORES[metric].name} "
    return name + SCORES[metric].with_unit(row[metric]) + (f", {doubt}" if doubt else "")


def over_cues(rows: list[Row]) -> list[list[Row]]:
    """Rows of one protocol whose data differ in the cue alone, where there are several cues."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["context_iou"] is not None and CUE.fullmatch(row["dataset"] or ""):
            stages = str(json.loads(row["protocol_json"]).get("stages"))
            key = *(row[name] for name in SHARED if name not in ("dataset", "protocol_json")), stages
            found.setdefault(key, []).append(row)
    return [members for members in found.values() if len({row["dataset"] for row in members}) > 1]


def cue_of(row: Row) -> float:
    """The cue's share of the image in per cent, as the data set's name has it."""
    return float(row["dataset"].rpartition("-")[2])


def cues(rows: list[Row], look: dict[str, dict[str, Any]]) -> Figure:
    """Mean score over the cue's share, a line per block that saw several, and a dot for each seed."""
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    ends = []
    for spec in dict.fromkeys(row["spec"] for row in sorted(rows, key=lambda row: row["spec"])):
        own = [row for row in rows if row["spec"] == spec]
        shares = sorted({cue_of(row) for row in own})
        if len(shares) < 2:
            continue
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
    axes.set(xscale="log", xlabel="cue (% of the image)", ylabel=SCORES["context_iou"].title)
    axes.set_xticks(every, [f"{share:g}" for share in every])
    axes.minorticks_off()
    axes.axhline(100 * CHANCE, color="#999999", linewidth=1, linestyle=":")
    axes.set_title("dotted: chance, with perfect borders")
    label_ends(axes, ends, look, log=False)
    return figure
