"""Scores of trained networks with their seeds, and how they hang on the size of the cue."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from ctxbench.figures.costs import fewer
from ctxbench.figures.labels import End, label_ends
from ctxbench.figures.style import MOST, NAME, WIDTH, Looks, Picture, height_for, short
from ctxbench.figures.ticks import named_ticks
from ctxbench.figures.tradeoffs import NOT_RANKED
from ctxbench.record import Row
from ctxbench.reports.scores import CHANCE, SCORES, SHARED, entries_of, is_sound, metric_of, title_of

CUE = re.compile(r"legend-\d{1,2}(\.\d)?")  # a data set that differs from its like in the cue's share alone
CHANCES = {"context_iou": (100 * CHANCE, "chance, with perfect borders"), "agreement": (0.0, "chance")}


def scores(rows: list[Row], number: int, look: Looks) -> Picture | None:
    """The trainings of one table; None where only one block has a score."""
    metric = metric_of(rows)
    specs = {row["spec"] for row in rows if row["status"] == "ok" and row[metric] is not None}
    if len(specs) < 2:
        return None
    caption = (
        f"{short(title_of(rows[0]), 200)}: every seed, and the mean{fewer(min(MOST, len(specs)), len(specs))}"
    )
    return Picture(f"scores-{number}", caption, partial(draw_scores, rows, metric, look))


def draw_scores(rows: list[Row], metric: str, look: Looks) -> Figure:
    """One line per block, best on top: a dot for each seed, a bar for the mean."""
    entries = [it for it in entries_of(rows) if it.values(metric)][:MOST]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.22 * len(entries)))
    axes = figure.subplots()
    words = []
    if metric in CHANCES:
        chance, meaning = CHANCES[metric]
        axes.axvline(chance, color="#999999", linewidth=1, linestyle=":")
        words.append(f"dotted: {meaning}")
    for place, entry in enumerate(entries):
        colour = look[entry.spec]["color"]
        values = [SCORES[metric].scale * value for value in entry.values(metric)]
        for row, value in zip(entry.scored(metric), values, strict=True):
            fill = colour if is_sound(row) else "white"
            axes.plot(value, place, "o", color=colour, markersize=4, alpha=0.7, markerfacecolor=fill)
        axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color=colour)
    axes.set_yticks(range(len(entries)), [short(it.spec) for it in entries], parse_math=False, fontsize=NAME)
    axes.set(xlabel=SCORES[metric].title, ylim=(len(entries) - 0.4, -0.6))
    if metric == "agreement":
        lowest = min(min(it.values(metric)) for it in entries)
        axes.set_xlim(min(-0.1, 1.1 * lowest), 1.05)
    if not all(entry.sound for entry in entries):
        words.append(NOT_RANKED)
    axes.set_title("; ".join(words))
    return figure


def cues(rows: list[Row], look: Looks) -> list[Picture]:
    """A figure for each protocol in which a block was trained on several cues."""
    caption = "Context IoU over the cue's share of the image: every seed, and the mean"
    groups = sorted(enumerate(over_cues(rows)), key=lambda it: -len(it[1]))
    return [
        Picture(f"cues-{number}", caption, partial(draw_cues, members, look)) for number, members in groups
    ]


def over_cues(rows: list[Row]) -> list[list[Row]]:
    """Rows of one protocol whose data differ in the cue alone, of blocks that saw several cues."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["context_iou"] is not None and CUE.fullmatch(row["dataset"] or ""):
            stages = str(json.loads(row["protocol_json"]).get("stages"))
            key = *(row[name] for name in SHARED if name not in ("dataset", "protocol_json")), stages
            found.setdefault(key, []).append(row)
    several = []
    for members in found.values():
        seen = {(row["spec"], row["dataset"]) for row in members}
        counts = Counter(spec for spec, _ in seen)
        several.append([row for row in members if counts[row["spec"]] > 1])
    return [members for members in several if members]


def cue_of(row: Row) -> float:
    """The cue's share of the image in per cent, as the data set's name has it."""
    return float(row["dataset"].rpartition("-")[2])


def draw_cues(rows: list[Row], look: Looks) -> Figure:
    """Mean score over the cue's share, a line per block, and a dot for each seed."""
    specs = sorted({row["spec"] for row in rows})[:MOST]
    figure = Figure(figsize=(WIDTH, height_for(len(specs))))
    axes = figure.subplots()
    ends: list[End] = []
    for spec in specs:
        scored: dict[float, list[float]] = {}
        for row in rows:
            if row["spec"] == spec:
                scored.setdefault(cue_of(row), []).append(100 * row["context_iou"])
        shares = sorted(scored)
        means = [sum(scored[share]) / len(scored[share]) for share in shares]
        axes.plot(shares, means, **look[spec])
        for share in shares:
            places = [share] * len(scored[share])
            axes.scatter(places, scored[share], s=9, color=look[spec]["color"], alpha=0.5, linewidths=0)
        ends.append((shares[-1], means[-1], spec))
    axes.set(xscale="log", xlabel="cue (% of the image)", ylabel=SCORES["context_iou"].title)
    chance, meaning = CHANCES["context_iou"]
    axes.axhline(chance, color="#999999", linewidth=1, linestyle=":")
    axes.set_title(f"dotted: {meaning}")
    label_ends(axes, ends, look)
    every = sorted({cue_of(row) for row in rows})
    named_ticks(axes, every, [f"{share:g}" for share in every])
    return figure
