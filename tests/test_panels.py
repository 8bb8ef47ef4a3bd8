"""Sheets of predictions: written for each training, and put together on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctxbench import panels

PALETTE = np.array([(70, 70, 70), (213, 94, 0)], dtype=np.uint8)


def sample(height: int, width: int, shrink: int = 1) -> panels.Sample:
    image = np.full((height // shrink, width // shrink, 3), 9, np.uint8)
    truth = np.zeros((height, width), np.uint8)
    return image, truth, truth + 1


def test_a_sheet_has_three_columns_that_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(panels.sheet([sample(10, 300), sample(20, 280, shrink=2)], PALETTE))
    found = panels.columns(path)
    assert found is not None
    assert [column.shape for column in found] == [(20 + panels.GAP + 20, 300, 3)] * 3
    assert [tuple(column[0, 0]) for column in found] == [(9, 9, 9), (70, 70, 70), (213, 94, 0)]
    assert [tuple(column[-1, 0]) for column in found] == [(9, 9, 9), (70, 70, 70), (213, 94, 0)]
    assert tuple(found[0][-1, -1]) == (255, 255, 255), "the smaller sample lies on white"


def test_small_pictures_are_shown_larger() -> None:
    assert panels.framed(np.zeros((2, 3, 3), np.uint8), 2, 3, 2).shape == (4 + panels.GAP, 6 + panels.GAP, 3)


def test_labels_without_a_colour_are_black(tmp_path: Path) -> None:
    image, truth, _ = sample(8, 300)
    (tmp_path / "a.png").write_bytes(panels.sheet([(image, truth, truth + 255)], PALETTE))
    found = panels.columns(tmp_path / "a.png")
    assert found is not None
    assert not found[2].any()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n then not", None])
def test_what_is_no_sheet_is_left_out(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    assert panels.columns(path) is None


def test_a_picture_of_another_kind_or_too_narrow_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", "JPEG")
    assert panels.columns(tmp_path / "a.png") is None
    Image.new("RGB", (9, 64)).save(tmp_path / "b.png")
    assert panels.columns(tmp_path / "b.png") is None


def test_a_picture_that_is_far_too_tall_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (11, 3000)).save(tmp_path / "a.png")
    assert panels.columns(tmp_path / "a.png") is None


def test_a_picture_of_too_many_pixels_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "MAX_PIXELS", 100)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert panels.columns(tmp_path / "a.png") is None


def test_a_picture_that_would_fill_the_memory_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert panels.columns(tmp_path / "a.png") is None
