"""The legend diagnostic asks what it says it asks: a class that only a far cue tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import legend
from tasks.legend import CUES, MARGIN, SIDE, Recipe, draw, generate

SEEDS = range(40)


def scene(seed: int, cue: str = "14", white: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
    return draw(np.random.default_rng(seed), cue, white)


def legend_of(labels: np.ndarray) -> np.ndarray:
    return labels >= legend.BLACK_LEGEND


def shade(image: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the legend is white."""
    return bool(image[legend_of(labels)].mean() > 128)


@pytest.mark.parametrize("cue", CUES)
def test_a_discs_class_is_its_colour_xor_the_legends_shade(cue: str) -> None:
    for seed in SEEDS:
        image, labels = scene(seed, cue)
        for label in legend.CONTEXT:
            colours = image[labels == label].astype(int)
            greener = colours[:, 1] > colours[:, 0]
            expected = (label == 2) != shade(image, labels)
            assert (greener == expected).mean() > 0.99 if len(colours) else True


def test_neither_colour_nor_legend_alone_tells_the_class() -> None:
    counts = np.zeros((2, 2, 2))
    for seed in range(400):
        image, labels = scene(seed)
        for label in legend.CONTEXT:
            colours = image[labels == label].astype(int)
            for green in (0, 1):
                counts[green, int(shade(image, labels)), label - 1] += (
                    (colours[:, 1] > colours[:, 0]) == green
                ).sum()
    for axis in (0, 1):  # sum out one of the two: what is left is even
        share = counts.sum(axis)[:, 0] / counts.sum(axis).sum(1)
        assert np.abs(share - 0.5).max() < 0.06


@pytest.mark.parametrize("cue", CUES)
def test_the_legend_covers_what_its_name_says_and_lies_far_from_the_discs(cue: str) -> None:
    for seed in SEEDS:
        _, labels = scene(seed, cue)
        assert 100 * legend_of(labels).mean() == pytest.approx(CUES[cue].share)
        assert CUES[cue].share == pytest.approx(float(cue.removesuffix("-corners")), abs=0.5)
        rows, columns = np.nonzero(np.isin(labels, legend.CONTEXT))
        for places in (rows, columns):
            assert MARGIN <= places.min() <= places.max() < SIDE - MARGIN
    assert MARGIN - max(it.depth for it in CUES.values()) > 7 + 8, (
        "a local network's field, and its interpolation"
    )


@pytest.mark.parametrize("cue", [name for name in CUES if not CUES[name].corner])
def test_edges_hold_the_cue_in_the_row_or_column_of_every_disc(cue: str) -> None:
    for seed in SEEDS:
        _, labels = scene(seed, cue)
        rows, columns = np.nonzero(np.isin(labels, legend.CONTEXT))
        crossing = legend_of(labels[rows]).any(1) | legend_of(labels[:, columns]).any(0)
        assert crossing.all()


def test_corners_hold_it_in_no_row_or_column_of_a_disc() -> None:
    for seed in SEEDS:
        _, labels = scene(seed, "14-corners")
        rows, columns = np.nonzero(np.isin(labels, legend.CONTEXT))
        assert not legend_of(labels[rows]).any()
        assert not legend_of(labels[:, columns]).any()


def test_inverting_the_legend_inverts_the_classes_and_changes_no_other_pixel() -> None:
    for seed in SEEDS:
        (image, labels), (other, inverted) = scene(seed, white=True), scene(seed, white=False)
        patches = legend_of(labels)
        assert np.array_equal(patches, legend_of(inverted))
        assert np.array_equal(image[~patches], other[~patches])
        assert set(labels[patches]) | set(inverted[patches]) == {4, 5}
        discs = np.isin(labels, legend.CONTEXT)
        assert np.array_equal(3 - labels[discs], inverted[discs])


def test_images_have_five_discs_and_one_square_as_a_rule() -> None:
    found = [set(np.unique(scene(seed)[1])) for seed in SEEDS]
    assert all({0, 3} <= classes for classes in found)
    assert all(len({4, 5} & classes) == 1 for classes in found)
    assert np.mean([bool(classes & {1, 2}) for classes in found]) == 1
    assert np.mean([{1, 2} <= classes for classes in found]) > 0.8


def test_equal_recipes_give_equal_files_in_the_layout_of_voc(tmp_path: Path) -> None:
    recipe = Recipe(train=4, val=2)
    for name in ("a", "b"):
        assert generate(tmp_path / name, recipe) == tmp_path / name
    files = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    again = {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}
    assert files == again
    names = (tmp_path / "a/ImageSets/Segmentation/train.txt").read_text().split()
    assert len(names) == 4
    for name in names:
        with Image.open(tmp_path / f"a/JPEGImages/{name}.png") as image:
            assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
        with Image.open(tmp_path / f"a/SegmentationClass/{name}.png") as mask:
            assert (mask.mode, mask.size) == ("P", (SIDE, SIDE))
            assert set(np.unique(np.asarray(mask))) <= set(range(len(legend.CLASSES)))


def test_training_and_validation_share_no_image(tmp_path: Path) -> None:
    generate(tmp_path, Recipe(train=5, val=5))
    contents = [path.read_bytes() for path in (tmp_path / "JPEGImages").iterdir()]
    assert len(set(contents)) == 10


def test_what_is_there_is_kept_and_what_is_incomplete_is_made_anew(tmp_path: Path) -> None:
    recipe = Recipe(train=2, val=1)
    generate(tmp_path, recipe)
    image = tmp_path / "JPEGImages/train_0000.png"
    before = image.stat().st_mtime_ns
    generate(tmp_path, recipe)
    assert image.stat().st_mtime_ns == before
    (tmp_path / "recipe.json").unlink()
    generate(tmp_path, recipe)
    assert image.stat().st_mtime_ns > before
    (tmp_path / "recipe.json").write_text('{"cue": "14", "seed": 0, "train": 2, "val": 1}')  # an older design
    before = image.stat().st_mtime_ns
    generate(tmp_path, recipe)
    assert image.stat().st_mtime_ns > before
    text = image.read_bytes()
    generate(tmp_path, Recipe(train=2, val=1, seed=1))
    assert image.read_bytes() != text
