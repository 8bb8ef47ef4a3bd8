"""Folders of images: what is read, what is refused, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.generation.data import DataError, Images, Listing, digits


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 0) -> Path:
    """An image (width, height) of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


def test_class_folders_give_the_classes(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.JPG", "dog/deep/down/c.png", "cat/.hidden.png", "cat/notes.txt"):
        picture(tmp_path / name) if name.lower().endswith(("png", "jpg")) else (tmp_path / name).touch()
    listing = Listing.of(tmp_path)
    assert listing.classes == ["cat", "dog"]
    assert list(zip(map(str, listing.paths), listing.labels, strict=True)) == [
        ("cat/a.JPG", 0),
        ("dog/b.png", 1),
        ("dog/deep/down/c.png", 1),
    ]


def test_a_flat_folder_is_one_class(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    listing = Listing.of(tmp_path)
    assert (listing.classes, listing.labels) == ([""], [0, 0, 0])


def nothing(folder: Path) -> None: ...


def empty(folder: Path) -> None:
    folder.mkdir()


def a_file(folder: Path) -> None:
    folder.touch()


def text_only(folder: Path) -> None:
    folder.mkdir()
    (folder / "readme.txt").write_text("no image")


def mixed(folder: Path) -> None:
    picture(folder / "one.png")
    picture(folder / "cat" / "two.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "is no folder"),
        (empty, "holds no images"),
        (a_file, "is no folder"),
        (text_only, "holds no images"),
        (mixed, "holds 1 images beside the folder cat"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "images")
    with pytest.raises(DataError, match=words):
        Listing.of(tmp_path / "images")


def test_images_of_any_kind_become_rgb_of_one_size(tmp_path: Path) -> None:
    kinds = (("L", (20, 20)), ("RGB", (50, 20)), ("RGBA", (8, 64)))
    for number, (mode, size) in enumerate(kinds):
        picture(tmp_path / "in" / f"{number}.png", size, mode)
    found = Listing.of(tmp_path / "in").load((16, 16), tmp_path / "cache")
    assert found.images.shape == (3, 3, 16, 16)
    assert torch.equal(found.images[0][0], found.images[0][2]), "grey stays grey"


def test_the_middle_is_what_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(picture(tmp_path / "in" / "one.png"))
    found = Listing.of(tmp_path / "in").load((10, 10), tmp_path / "cache")
    assert (found.images == 200).all()


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in" / "one.png")
    first = Listing.of(tmp_path / "in").load((8, 8), tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        again = Listing.of(tmp_path / "in").load((8, 8), tmp_path / "cache")
    assert torch.equal(first.images, again.images)
    picture(tmp_path / "in" / "one.png", seed=1)
    changed = Listing.of(tmp_path / "in").load((8, 8), tmp_path / "cache")
    assert not torch.equal(first.images, changed.images), "a file that changed is read again"
    assert first.digest != changed.digest


def test_what_is_kept_of_images_is_not_changed_by_who_uses_it(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "one.png")
    listing = Listing.of(tmp_path / "in")
    before = listing.load((8, 8), tmp_path / "cache").images
    kept = before.clone()
    before.zero_()
    assert torch.equal(listing.load((8, 8), tmp_path / "cache").images, kept)


def text(path: Path) -> None:
    path.write_text("this is no image")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def nothing_in_it(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [text, truncated, nothing_in_it])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    for number in range(4):
        picture(tmp_path / "in" / f"{number}.png")
    spoil(tmp_path / "in" / "2.png")
    listing = Listing.of(tmp_path / "in")
    with pytest.raises(DataError, match=r"1 of 4 images cannot be read: 2\.png"):
        listing.load((8, 8), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy*")), "nothing half done is kept"
    with pytest.raises(DataError, match=r"2\.png cannot be read as an image"):
        list(listing.pictures())


def test_digits_are_told_apart_by_their_digest() -> None:
    data = digits(16)
    assert data.images.shape == (1797, 1, 16, 16)
    assert data.digest != digits(32).digest
    swapped = Images.of(data.images, data.labels.flip(0))
    assert data.digest not in (swapped.digest, "")


def test_kept_images_that_are_damaged_are_decoded_again(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "one.png")
    listing = Listing.of(tmp_path / "in")
    first = listing.load((8, 8), tmp_path / "cache").images.clone()
    (kept,) = (tmp_path / "cache").glob("*.npy")
    for damaged in (b"", kept.read_bytes()[:-9], b"no array"):
        kept.write_bytes(damaged)
        assert torch.equal(listing.load((8, 8), tmp_path / "cache").images, first)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "one.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "in")
    listing = Listing.of(tmp_path / "in")
    assert (listing.classes, list(map(str, listing.paths))) == (["cat"], ["cat/one.png"])


def test_images_of_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((8, 8), 128 * 256 + 5, np.uint16)).save(tmp_path / "in" / "deep.png")
    assert (Listing.of(tmp_path / "in").load((8, 8), tmp_path / "cache").images == 128).all()


def test_other_formats_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "one.png", format="EPS")
    with pytest.raises(DataError, match=r"one\.png"):
        Listing.of(tmp_path / "in").load((8, 8), tmp_path / "cache")
