"""Who tells how good generated images are: an extractor, real images in its space, and their anchors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.files import replacing
from tasks.generation.data import DataError, Listing, halves
from tasks.generation.extractors import Extractor
from tasks.generation.scoring import (
    FEWEST,
    Anchors,
    Assessment,
    Features,
    agreement,
    anchors,
    compare,
    right_class,
    within_classes,
)

BATCH = 64
LARGEST = 299  # pixels: Inception sees no more
Batches = Iterable[tuple[Tensor, Tensor]]  # images (B, C, H, W), uint8, and their classes (B,)


@dataclass(frozen=True)
class Reference:
    """Real images in a feature space.

    Attributes:
        features, labels: of the images.
        known: what distances mean there.
        extractor: the name of the feature space; digest: of the images.
    """

    features: Tensor
    labels: Tensor
    known: Anchors
    extractor: str
    digest: str

    @classmethod
    def of(cls, batches: Batches, extractor: Extractor, digest: str, twins: bool = False) -> Reference:
        """Extract features, those of the classes' mean images too, and measure the anchors.

        Raises:
            ValueError: for too few images.
        """
        means = ClassMeans()
        features, labels = features_of(means.watching(batches), extractor, twins)
        repeated, order = features_of(means.batches(), extractor, twins)
        place = torch.empty(int(labels.max()) + 1, dtype=torch.long)
        place[order] = torch.arange(len(order))
        known = anchors(features, labels, repeated.of(place[labels]), extractor.knows_classes)
        return cls(features.values, labels, known, extractor.name, digest)

    def save(self, path: Path) -> None:
        """Write all of it as one NumPy archive without pickles, whole or not at all."""
        about = {"anchors": self.known.to_dict(), "extractor": self.extractor, "digest": self.digest}
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                features=self.features.numpy(),
                labels=self.labels.numpy(),
                about=np.array(json.dumps(about)),
            )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read it back.

        Raises:
            DataError: if the file is none of this kind.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                about = json.loads(str(content["about"]))
                features, labels = (torch.from_numpy(content[name]) for name in ("features", "labels"))
            known = Anchors.from_dict(about["anchors"])
            names = str(about["extractor"]), str(about["digest"])
        except Exception as error:  # a damaged archive may raise anything
            raise DataError(f"{path} holds no reference that was saved here: {first_words(error)}") from None
        found = cls(features, labels, known, *names)
        if not found.is_sound():
            raise DataError(f"{path} holds no reference that was saved here: features or labels do not fit")
        return found

    def is_sound(self) -> bool:
        """Whether features and labels can be those of images."""
        return (
            self.features.ndim == 2
            and self.features.dtype == torch.float32
            and bool(self.features.isfinite().all())
            and self.labels.shape == self.features.shape[:1]
            and self.labels.dtype == torch.long
            and len(self.labels) >= 2 * FEWEST
            and int(self.labels.min()) >= 0
        )

    def require(self, extractor: str, width: int) -> None:
        """Whether it is of this feature space.

        Raises:
            ValueError: naming both.
        """
        if (self.extractor, self.features.shape[1]) != (extractor, width):
            raise ValueError(
                f"the reference is of extractor {self.extractor} ({self.features.shape[1]} features), not {extractor} "
                f"({width})"
            )


class ClassMeans:
    """Sums up images while they pass, and gives the mean image of each class.

    They are summed at the size of the first one, of at most LARGEST pixels a side; others are resized.
    """

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def watching(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            height, width = images.shape[2:]
            self.size = self.size or (min(height, LARGEST), min(width, LARGEST))
            resized = images.float()
            if (height, width) != self.size:
                resized = F.interpolate(resized, self.size, mode="bilinear", antialias=True)
            for label in labels.unique().tolist():
                own = resized[labels == label]
                self.sums[label] = self.sums.get(label, 0.0) + own.sum(0)
                self.counts[label] = self.counts.get(label, 0) + len(own)
            yield images, labels

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One image for each class."""
        for label, total in sorted(self.sums.items()):
            mean = (total / self.counts[label]).round().clamp(0, 255).to(torch.uint8)
            yield mean[None], torch.tensor([label])


def features_of(batches: Batches, extractor: Extractor, twins: bool = False) -> tuple[Features, Tensor]:
    """Features of all images and their classes; of twins, those of all left ones, then of all right ones."""
    found: list[list[Features]] = [[], []]
    labels = []
    for images, asked in batches:
        for place, part in enumerate(halves(images) if twins else (images,)):
            found[place].append(extractor(part))
        labels.append(asked)
    parts = [part for side in found for part in side]
    features = Features(torch.cat([it.values for it in parts]), torch.cat([it.logits for it in parts]))
    return features, torch.cat(labels * (2 if twins else 1))


def in_batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(images.split(BATCH), labels.split(BATCH), strict=True)


def pictures(listing: Listing) -> Iterator[tuple[Tensor, Tensor]]:
    """A folder's images as they are, as many at once as follow one another in one size."""
    labelled = zip(listing.pictures(), listing.labels, strict=True)
    for _, alike in itertools.groupby(labelled, key=lambda it: it[0].shape):
        while part := list(itertools.islice(alike, BATCH)):
            yield torch.cat([image for image, _ in part]), torch.tensor([label for _, label in part])


def assess(batches: Batches, extractor: Extractor, reference: Reference, twins: bool = False) -> Assessment:
    """Scores of images that were asked to be of these classes.

    Raises:
        ValueError: for too few images, features that are not finite, or a reference of another feature space.
    """
    features, asked = features_of(batches, extractor, twins)
    reference.require(extractor.name, features.values.shape[1])
    agreed = None
    if twins:
        left, right = features.logits.argmax(1).chunk(2)
        agreed = agreement(left, right, features.logits.shape[1])
    real = Features(reference.features, torch.zeros(len(reference.features), 1))
    same_classes = asked.unique().equal(reference.labels.unique())
    return Assessment(
        compare(features, real),
        reference.known,
        right_class(features, asked) if extractor.knows_classes else None,
        within_classes(features, asked) if same_classes else None,
        agreed,
        len(asked) // (2 if twins else 1),
        len(reference.labels) // (2 if twins else 1),
    )


def first_words(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
