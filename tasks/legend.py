"""The legend diagnostic: images whose classes can be told only with the help of a far cue.

On a grey field lie red and green discs. Which of two classes a disc has depends on its colour and on
whether the patches at the border, the legend, are white or black: class = colour XOR legend. Neither
alone says anything, and a network whose receptive field does not reach from a disc to a patch can do
no better than chance. The yellow square and the legend, white or black, are classes that a local network
finds: what the cue says is learned in any case, and what remains is to bring it to the discs. Patches
lie at the middles of the edges, in the rows or columns of the discs, or in the corners.

The images are written in the layout of PASCAL VOC: `JPEGImages/*.png` (no lossy coding),
`SegmentationClass/*.png` with a palette, `ImageSets/Segmentation/{train,val}.txt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 128
MARGIN = 44  # discs lie wholly within the square this far from every edge
DISCS = 5
RADII = (4, 8)
SQUARE = (8, 12)
NOISE = 12.0
DONE = "recipe.json"
CLASSES = ("background", "disc a", "disc b", "plain", "black legend", "white legend")
CONTEXT = (1, 2)  # the classes that need the cue
BLACK_LEGEND = 4  # and 5, the white one
PALETTE = ((70, 70, 70), (213, 94, 0), (0, 114, 178), (240, 228, 66), (140, 60, 110), (225, 160, 200))
RED, GREEN, YELLOW = (200, 40, 40), (40, 170, 60), (230, 210, 40)
WHITE, BLACK = 235, 20
DESIGN = 2  # changes with what is drawn
DEFAULT_CUE = "14"


@dataclass(frozen=True)
class Cue:
    """The legend's patches.

    Attributes:
        count: how many of the four edges or corners carry one.
        depth, width: of a patch in pixels, across its edge and along it.
        corner: whether it lies in a corner instead of the middle of an edge.
    """

    count: int
    depth: int
    width: int
    corner: bool = False

    @property
    def share(self) -> float:
        """Of the image in per cent."""
        return 100 * self.count * self.depth * self.width / SIDE**2

    def patches(self, random: np.random.Generator) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each patch, its side drawn."""
        near, far = slice(0, self.depth), slice(SIDE - self.depth, SIDE)
        middle = slice((SIDE - self.width) // 2, (SIDE + self.width) // 2)
        edges = ((near, middle), (far, middle), (middle, near), (middle, far))
        corners = ((near, near), (near, far), (far, near), (far, far))
        for side in random.permutation(4)[: self.count]:
            yield (corners if self.corner else edges)[side]


CUES = {
    "1.6": Cue(1, 6, 44),
    "4": Cue(2, 7, 44),
    "8": Cue(4, 7, 44),
    "14": Cue(4, 13, 44),
    "14-corners": Cue(4, 24, 24, corner=True),
}


@dataclass(frozen=True)
class Recipe:
    """What a data set is made of; equal recipes give equal files.

    Attributes:
        cue: one of `CUES`, named by the legend's share of the image in per cent.
        train, val: numbers of images.
        seed: of all random numbers.
    """

    cue: str = DEFAULT_CUE
    train: int = 600
    val: int = 100
    seed: int = 0


def draw(random: np.random.Generator, cue: str, white: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One image (H, W, 3), uint8, and its labels (H, W), uint8; `white` fixes the legend's shade."""
    level = random.uniform(90, 160)
    image = level + random.normal(0, NOISE, (SIDE, SIDE, 1)) + random.normal(0, NOISE / 3, (SIDE, SIDE, 3))
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    drawn = bool(random.integers(2))
    light = drawn if white is None else white
    shade = WHITE if light else BLACK
    for area in CUES[cue].patches(random):
        image[area] = shade + random.normal(0, NOISE / 2, (*labels[area].shape, 1))
        labels[area] = BLACK_LEGEND + light
    place_square(random, image, labels)
    for _ in range(DISCS):
        green = bool(random.integers(2))
        place_disc(random, image, labels, GREEN if green else RED, 1 + (green ^ light))
    return image.clip(0, 255).astype(np.uint8), labels


def place_disc(
    random: np.random.Generator, image: np.ndarray, labels: np.ndarray, colour: tuple[int, ...], label: int
) -> None:
    """Put a disc where there is room; the tighter it gets, the smaller."""
    y, x = np.mgrid[:SIDE, :SIDE]
    for attempt in range(60):
        radius = int(random.integers(RADII[0], max(RADII[1] - attempt // 10, RADII[0]) + 1))
        row, column = random.integers(MARGIN + radius, SIDE - MARGIN - radius, 2)
        distance = (y - row) ** 2 + (x - column) ** 2
        if not labels[distance <= (radius + 1) ** 2].any():
            inside = distance <= radius**2
            image[inside] = np.array(colour) + random.normal(0, NOISE, (int(inside.sum()), 1))
            labels[inside] = label
            return


def place_square(random: np.random.Generator, image: np.ndarray, labels: np.ndarray) -> None:
    """Put the yellow square beside the legend and outside the discs' part."""
    for _ in range(200):
        side = int(random.integers(SQUARE[0], SQUARE[1] + 1))
        top, left = random.integers(0, SIDE - side, 2)
        area = np.s_[top : top + side, left : left + side]
        middle = all(MARGIN - side <= start < SIDE - MARGIN for start in (top, left))
        if not middle and not labels[area].any():
            image[area] = np.array(YELLOW) + random.normal(0, NOISE, (side, side, 1))
            labels[area] = 3
            return


def generate(folder: Path, recipe: Recipe) -> Path:
    """Write the data set into `folder`, unless it is there; returns the folder.

    The recipe is written last: a folder without it is incomplete and made anew.
    """
    if is_complete(folder, recipe):
        return folder
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    lists = folder / "ImageSets" / "Segmentation"
    for each in (images, masks, lists):
        each.mkdir(parents=True, exist_ok=True)
    palette = [value for colour in PALETTE for value in colour]
    for split, count in (("train", recipe.train), ("val", recipe.val)):
        names = [f"{split}_{number:04d}" for number in range(count)]
        for number, name in enumerate(names):
            random = np.random.default_rng((recipe.seed, split == "val", number))
            image, labels = draw(random, recipe.cue)
            Image.fromarray(image).save(images / f"{name}.png", compress_level=1)
            mask = Image.fromarray(labels, mode="P")
            mask.putpalette(palette)
            mask.save(masks / f"{name}.png")
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / DONE).write_text(written(recipe), encoding="utf-8")
    return folder


def is_complete(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds the whole of this data set."""
    done = folder / DONE
    return done.is_file() and done.read_text(encoding="utf-8") == written(recipe)


def written(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe) | {"design": DESIGN}, sort_keys=True) + "\n"
