"""What a block does to a map: its energy accumulates in as many directions as it has."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ctxbench import inspection
from ctxbench.inspection import View, accumulated, rank_of, watched


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_map_of_low_rank_has_its_energy_in_so_many_directions(rank: int) -> None:
    torch.manual_seed(0)
    low = torch.linalg.qr(torch.randn(8, rank))[0] @ torch.linalg.qr(torch.randn(30, rank))[0].T
    shares = accumulated(low.reshape(8, 5, 6))
    assert shares.shape == (8,)
    assert torch.allclose(shares[:rank], torch.arange(1, rank + 1).double() / rank)
    assert rank_of(shares, 0.99) == rank


def test_a_map_of_zeros_has_no_energy() -> None:
    assert accumulated(torch.zeros(4, 3, 3)).tolist() == [0.0] * 4


def test_what_goes_in_and_comes_out_is_seen_and_nothing_stays_behind() -> None:
    block = nn.Conv2d(2, 2, 1)
    x = torch.randn(1, 2, 4, 4)
    with watched(block) as seen:
        y = block(x)
    block(x)
    ((before, after),) = seen
    assert torch.equal(before, x)
    assert torch.equal(after, y.detach())


class Trained:
    """A network whose block doubles, and images that go through it."""

    def __init__(self) -> None:
        self.network = nn.Module()
        self.network.decode_head = nn.Module()
        self.network.decode_head.context = nn.Upsample(scale_factor=1)

    def samples(self, count: int) -> Any:
        for _ in range(count):
            self.network.decode_head.context(torch.rand(1, 4, 6, 6))  # type: ignore[operator, union-attr]
            yield np.zeros((12, 12, 3), np.uint8), np.zeros((12, 12)), np.zeros((12, 12))


def test_the_views_are_written_as_picture_and_table(tmp_path: Path) -> None:
    path = inspection.inspect(Trained(), tmp_path, "mine", r"a title with $\frac{$ and <b>")
    with Image.open(path) as picture:
        assert picture.width > 500
    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert len(rows) == inspection.SHOWN * 2 * 4
    assert {row["place"] for row in rows} == {"before", "after"}
    assert float(rows[3]["accumulated_energy"]) == pytest.approx(1)


def test_equal_views_give_equal_bytes() -> None:
    torch.manual_seed(0)
    view = View(np.zeros((8, 8, 3), np.uint8), torch.rand(4, 3, 3), torch.rand(4, 3, 3))
    assert inspection.picture([view], "t") == inspection.picture([view], "t")
