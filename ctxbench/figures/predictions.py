"""What trained networks predict or generate, side by side."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ctxbench.figures.style import SMALL, WIDTH, Picture, short
from ctxbench.panels import GAP, MAX_BYTES, MAX_PIXELS, TALLEST, columns, path_of, small
from ctxbench.record import Row
from ctxbench.reports.scores import SCORES, SEGMENTED, entries_of, metric_of, title_of
from tasks.legend import CLASSES, PALETTE

ACROSS, SAMPLES_ACROSS = 7, 4  # columns of a figure of predictions, and of sheets of samples
MOST_SHEETS = 60
LETTER, TITLE, SPACE, KEY = 0.065, 0.13, 0.06, 0.25  # inches: of a title's letter and line, between pictures

Sheet = tuple[Row, Path]
Tile = tuple[str, str, np.ndarray]  # name, score, picture


def predictions(rows: list[Row], number: int, folders: Mapping[str, Path]) -> Picture | None:
    """The sheets of the trainings of one table; None where there are none.

    Args:
        folders: of the runs, by `run_id`, where the sheets lie.
    """
    if not any(row["run_id"] in folders for row in rows):
        return None
    metric = metric_of(rows)
    parts = 3 if metric in SEGMENTED else 1
    sheets = [(row, path) for row, path in sheets_of(rows, metric, folders) if is_sheet(path, parts)]
    if not sheets:
        return None
    made = "what is predicted" if metric in SEGMENTED else "what is generated, a class a row"
    caption = f"{short(title_of(rows[0]), 200)}: {made}, with the {SCORES[metric].title}, seed {sheets[0][0]['seed']}"
    if len(sheets) > MOST_SHEETS:
        caption += f"; the best {MOST_SHEETS} of {len(sheets)} blocks"
    draw = partial(draw_predictions, sheets[:MOST_SHEETS], metric)
    return Picture(f"predictions-{number}", caption, draw, wide=True)


def sheets_of(rows: list[Row], metric: str, folders: Mapping[str, Path]) -> list[Sheet]:
    """Of each block the sheet of the first seed that all were trained from, or of its own first."""
    entries = [it for it in entries_of(rows) if it.values(metric)]
    if not entries:
        return []
    common = set.intersection(*({row["seed"] for row in it.done} for it in entries))
    chosen = [min(it.done, key=lambda row: (row["seed"] not in common, row["seed"])) for it in entries]
    return [
        (row, path_of(folders[row["run_id"]], row["cell_id"])) for row in chosen if row["run_id"] in folders
    ]


def is_sheet(path: Path, parts: int) -> bool:
    """Whether a file begins as a sheet of so many columns does; the rest of it is not read."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                width, height = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False
    each = (width - (parts - 1) * GAP) // parts
    return width * height <= MAX_PIXELS and each > 0 and height <= TALLEST * each


def draw_predictions(sheets: list[Sheet], metric: str) -> Figure:
    """What each block's network predicts or generates; of predictions also images and truth, the same for all."""
    tiles: list[Tile] = []
    if metric in SEGMENTED:
        read = [(row, parts) for row, path in sheets if (parts := columns(path)) is not None]
        if read:
            image, truth, _ = read[0][1]
            tiles = [("image", "", image), ("truth", "", truth)]
        tiles += [(row["spec"], scored(row, metric), predicted) for row, (_, _, predicted) in read]
    else:
        made = [(row, sheet) for row, path in sheets if (sheet := small(path)) is not None]
        tiles = [(row["spec"], scored(row, metric), sheet) for row, sheet in made]
    known = metric in SEGMENTED and str(sheets[0][0]["dataset"]).startswith("legend-")
    figure = grid_of(tiles, ACROSS if metric in SEGMENTED else SAMPLES_ACROSS, KEY if known else 0)
    if known:
        key = [
            Patch(facecolor=(red / 255, green / 255, blue / 255), label=name)
            for name, (red, green, blue) in zip(CLASSES, PALETTE, strict=True)
        ]
        figure.legend(handles=key, loc="lower left", ncols=len(key), fontsize=SMALL, frameon=False)
    return figure


def grid_of(tiles: list[Tile], most: int, below: float) -> Figure:
    """Titled pictures of one shape in rows of at most so many.

    Args:
        below: the height that is kept for what stands below them, in inches.
    """
    down = max(-(-len(tiles) // most), 1)
    across = max(-(-len(tiles) // down), 1)
    width = WIDTH / across
    titles = [[*folded(name, int(width / LETTER)), score] for name, score, _ in tiles]
    rows = [range(start, min(start + across, len(tiles))) for start in range(0, len(tiles), across)]
    above = [TITLE * (0.5 + max(len(titles[index]) for index in row)) for row in rows]
    shape = tiles[0][2].shape if tiles else (1, 4)
    tall = (width - SPACE) * shape[0] / shape[1]
    height = sum(above) + down * (tall + SPACE) + below
    figure = Figure(figsize=(WIDTH, height))
    figure.set_layout_engine("none")
    top = height
    for row, titled in zip(rows, above, strict=True):
        top -= titled + tall
        for column, index in enumerate(row):
            size = ((width - SPACE) / WIDTH, tall / height)
            axes = figure.add_axes(((column * width + SPACE / 2) / WIDTH, top / height, *size))
            axes.set_axis_off()
            axes.set_title("\n".join(filter(None, titles[index])), fontsize=SMALL, pad=3, parse_math=False)
            axes.imshow(tiles[index][2], interpolation="nearest")
        top -= SPACE
    if not tiles:
        figure.text(0, 0, "no sheet can be read")
    return figure


def folded(name: str, letters: int) -> list[str]:
    """A name in lines of so many characters, broken before its options and after their commas."""
    lines = [""]
    for part in re.split(r"(?=\[)|(?<=,)", short(name)):
        for piece in textwrap.wrap(part, letters):
            if len(lines[-1]) + len(piece) > letters:
                lines.append("")
            lines[-1] += piece
    return lines


def scored(row: Row, metric: str) -> str:
    """The score of one seed, and whether it ranks nothing."""
    doubt = row["collapsed"].partition(":")[0] if row["collapsed"] else ""
    name = "" if metric in SEGMENTED else f"{SCORES[metric].name} "
    return short(name + SCORES[metric].with_unit(row[metric]) + (f", {doubt}" if doubt else ""))
