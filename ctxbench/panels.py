"""Sheets of each training: images, truth and prediction as columns, or what a generator makes as tiles."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

GAP = 4  # pixels between tiles
SMALL, LARGER = 256, 2  # tiles below this width are shown so many times larger
MAX_BYTES, MAX_PIXELS = 50_000_000, 12_000_000
TALLEST = 16  # times the width of a column
MOST = 2000

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def sheet(samples: Iterable[Sample], palette: np.ndarray) -> bytes:
    """PNG of equal tiles, a row for each sample.

    Args:
        samples: image (h, w, 3), RGB, labels (H, W) and predicted labels (H, W).
        palette: colours of the classes (classes, 3); labels beyond are black.
    """
    shades = np.zeros((256, 3), dtype=np.uint8)
    shades[: len(palette)] = palette
    rows = [
        [
            np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(truth.shape[::-1])),
            shades[truth],
            shades[predicted],
        ]
        for image, truth, predicted in samples
    ]
    height, width = (max(row[0].shape[axis] for row in rows) for axis in (0, 1))
    larger = LARGER if width < SMALL else 1
    lines = [np.hstack([framed(tile, height, width, larger) for tile in row]) for row in rows]
    joined = np.vstack(lines)[:-GAP, :-GAP]
    file = io.BytesIO()
    Image.fromarray(joined).save(file, "PNG")
    return file.getvalue()


def framed(tile: np.ndarray, height: int, width: int, larger: int) -> np.ndarray:
    """The tile on white of this size, with a gap to its right and below."""
    rest = ((0, height - tile.shape[0]), (0, width - tile.shape[1]), (0, 0))
    padded = np.pad(tile, rest, constant_values=255).repeat(larger, 0).repeat(larger, 1)
    return np.pad(padded, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def tiles(images: np.ndarray, across: int) -> bytes:
    """PNG of equal images in rows of so many.

    Args:
        images: (N, C, H, W), uint8, grey or RGB.
    """
    count, _, height, width = images.shape
    rgb = np.broadcast_to(images, (count, 3, height, width)).transpose(0, 2, 3, 1)
    larger = max(2 * SMALL // (across * width), 1)
    shown = [framed(image, height, width, larger) for image in rgb]
    rows = [np.hstack(shown[start : start + across]) for start in range(0, len(shown), across)]
    file = io.BytesIO()
    Image.fromarray(np.vstack(rows)[:-GAP, :-GAP]).save(file, "PNG")
    return file.getvalue()


def path_of(folder: Path, cell_id: str) -> Path:
    """Where a run's folder keeps the sheet of a cell."""
    return folder / "panels" / f"{cell_id}.png"


def small(path: Path) -> np.ndarray | None:
    """A sheet of samples, of at most MOST pixels a side; None if there is none, or it cannot be one."""
    sheet = whole(path)
    if sheet is None or max(sheet.shape[:2]) > TALLEST * min(sheet.shape[:2]):
        return None
    picture = Image.fromarray(sheet)
    picture.thumbnail((MOST, MOST))
    return np.asarray(picture)


def whole(path: Path) -> np.ndarray | None:
    """A sheet that was written, (h, w, 3); None if there is none, or it cannot be one."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            found = np.asarray(picture.convert("RGB"))
    except Exception:  # a damaged file makes Pillow raise nearly anything
        return None
    return found


def columns(path: Path) -> Sample | None:
    """The three columns of a sheet of predictions; None if there is none, or it is no sheet."""
    sheet = whole(path)
    if sheet is None:
        return None
    height, width = sheet.shape[0], (sheet.shape[1] - 2 * GAP) // 3
    if width < 1 or height > TALLEST * width:
        return None
    first, second, third = (
        sheet[:, start : start + width] for start in range(0, 3 * (width + GAP), width + GAP)
    )
    return first, second, third
