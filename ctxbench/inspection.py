"""What a trained block does to the map that goes through it: singular values, and the maps themselves.

The views of the Hamburger paper's figures: a block that models global context leaves a map whose
energy lies in few directions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctxbench.store import write_atomically

SHOWN = 4  # images
SHARES = (0.5, 0.9, 0.99)  # of the energy, whose number of directions is told


@dataclass(frozen=True)
class View:
    """One image's map before and after the block, (C, H, W)."""

    image: np.ndarray
    before: Tensor
    after: Tensor


def accumulated(feature: Tensor) -> Tensor:
    """(C, H, W) -> shares of the energy in the first 1, 2, ... singular directions of its (C, H W) matrix."""
    energy = torch.linalg.svdvals(feature.flatten(1).double()).square()
    total = energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return energy.cumsum(0) / total


def rank_of(shares: Tensor, share: float) -> int:
    """How many directions hold this share of the energy."""
    return min(int((shares < share).sum()) + 1, len(shares))


@contextmanager
def watched(block: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects what goes into the block and comes out of it."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].detach().cpu().float(), output.detach().cpu().float()))

    handle = block.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def views(trained: Any, count: int = SHOWN) -> list[View]:
    """The maps of a few images, spread over the data."""
    with watched(trained.network.decode_head.context) as seen:
        images = [image for image, _, _ in trained.samples(count)]
    return [View(image, before[0], after[0]) for image, (before, after) in zip(images, seen, strict=True)]


def table(found: list[View]) -> str:
    """CSV: image, place (before, after), direction, share of the energy in it and all before."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("image", "place", "direction", "accumulated_energy"))
    for number, view in enumerate(found):
        for place, feature in (("before", view.before), ("after", view.after)):
            shares = enumerate(accumulated(feature).tolist(), 1)
            writer.writerows((number, place, direction, f"{share:.6f}") for direction, share in shares)
    return file.getvalue()


def picture(found: list[View], title: str) -> bytes:
    """PNG: the images, the strength of their maps before and after, and how their energy accumulates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.3 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 4, squeeze=False, width_ratios=(1, 1, 1, 1.6))
    for row, view in zip(grid, found, strict=True):
        strengths = [feature.norm(dim=0).numpy() for feature in (view.before, view.after)]
        row[0].imshow(view.image)
        for axes, strength in zip(row[1:3], strengths, strict=True):
            axes.imshow(strength, cmap="viridis")
        for axes in row[:3]:
            axes.set_axis_off()
        for place, feature, colour in (("before", view.before, "#555555"), ("after", view.after, "#D55E00")):
            shares = accumulated(feature)
            ranks = ", ".join(str(rank_of(shares, share)) for share in SHARES)
            row[3].plot(range(1, len(shares) + 1), shares, color=colour, label=f"{place} ({ranks})")
        row[3].set(xscale="log", ylim=(0, 1.02))
        row[3].legend(fontsize=7, loc="lower right")
    for axes, text in zip(grid[0], ("image", "before the block", "after the block"), strict=False):
        axes.set_title(text, fontsize=8)
    percents = ", ".join(f"{share:.0%}" for share in SHARES)
    grid[0][3].set_title(f"accumulated energy (directions for {percents})", fontsize=8)
    grid[-1][3].set_xlabel("singular direction", fontsize=8)
    figure.suptitle(title, fontsize=9, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def inspect(trained: Any, folder: Path, name: str, title: str) -> Path:
    """Write `inspect/<name>.png` and `.csv` into the folder; returns the picture's path."""
    found = views(trained)
    (folder / "inspect").mkdir(parents=True, exist_ok=True)
    path = folder / "inspect" / f"{name}.png"
    write_atomically(path, picture(found, title))
    write_atomically(path.with_suffix(".csv"), table(found))
    return path
