"""Who tells how good generated images are: an extractor, real images in its space, and their anchors."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.generation.data import DataError, Listing, halves
from tasks.generation.extractors import Extractor
from tasks.generation.scoring import (
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
        partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        about = {"anchors": self.known.to_dict(), "extractor": self.extractor, "digest": self.digest}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    features=self.features.numpy(),
                    labels=self.labels.numpy(),
                    about=np.array(json.dumps(about)),
                )
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read it back.

        Raises:
            DataError: if the file is none of this kind.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                about = json.loads(str(content["about"]))
                features, labels = (torch.from_numpy(content[name]) for name in ("features", "labels"))
            known = Anchors.from_dict(about["anchors"])
            names = str(about["extractor"]), str(about["digest"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"{path} holds no reference that was saved here: {error}") from None
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise DataError(
                f"{path} holds no reference that was saved here: shapes {features.shape}, {labels.shape}"
            )
        return cls(features, labels.long(), known, *names)


class ClassMeans:
    """Sums up images while they pass, and gives the mean image of each class."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, torch.Size], Tensor] = {}
        self.counts: dict[tuple[int, torch.Size], int] = {}

    def watching(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            for label in labels.unique().tolist():
                own = images[labels == label].double()
                key = (label, own.shape[1:])
                self.sums[key] = self.sums.get(key, 0) + own.sum(0)
                self.counts[key] = self.counts.get(key, 0) + len(own)
            yield images, labels

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One image for each class; where a class has images of several sizes, of the one that most have."""
        for label in sorted({label for label, _ in self.sums}):
            key = max((key for key in self.sums if key[0] == label), key=lambda key: self.counts[key])
            mean = (self.sums[key] / self.counts[key]).round().to(torch.uint8)
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
    """A folder's images one by one, as they are, whatever their sizes."""
    for image, label in zip(listing.pictures(), listing.labels, strict=True):
        yield image, torch.tensor([label])


def assess(batches: Batches, extractor: Extractor, reference: Reference, twins: bool = False) -> Assessment:
    """Scores of images that were asked to be of these classes.

    Raises:
        ValueError: for too few images, features that are not finite, or a reference of another feature space.
    """
    if reference.extractor != extractor.name:
        raise ValueError(f"the reference is of extractor {reference.extractor}, not {extractor.name}")
    features, asked = features_of(batches, extractor, twins)
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
    )
