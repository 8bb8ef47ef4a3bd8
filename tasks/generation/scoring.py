"""Scores of generated images against real ones, by torch-fidelity, with the anchors that tell what they mean.

torch-fidelity's own pipeline keeps features under names that hold neither weights nor content, and cannot
drive a class-conditional generator; here features are extracted once, and its formulas are applied to them.
"""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

KID_SUBSETS, KID_LARGEST = 100, 1000
LEAST_RECALL, LEAST_SPREAD = 0.1, 0.5  # below which a generator has collapsed
FEWEST = 8
SPLITS = 10  # of the Inception score
NEIGHBOURS = 3  # of precision and recall, as in Kynkäänniemi et al. (2019)


@dataclass(frozen=True)
class Features:
    """What an extractor makes of images: features (N, d), and logits (N, classes) for the Inception score."""

    values: Tensor
    logits: Tensor

    def of(self, chosen: Tensor) -> Features:
        """Those of some of the images."""
        return Features(self.values[chosen], self.logits[chosen])


@dataclass(frozen=True)
class Scores:
    """How near generated images are to real ones.

    Attributes:
        fid: Frechet distance; None for fewer than two images for each of the features.
        kid, kid_std: kernel distance, mean and standard deviation over subsets.
        inception_score, inception_score_std: of the generated images alone, over ten parts of them (of fewer
            than a hundred over all); None where a class has no share at all, and it is not defined.
        precision, recall: shares of generated images near a real one, and of real ones near a generated one.
    """

    fid: float | None
    kid: float
    kid_std: float
    inception_score: float | None
    inception_score_std: float | None
    precision: float
    recall: float


def compare(generated: Features, real: Features) -> Scores:
    """All scores of generated images against real ones.

    Raises:
        ValueError: for fewer than eight images, or features that are not finite.
    """
    for what, each in (("generated", generated), ("real", real)):
        if len(each.values) < FEWEST:
            raise ValueError(f"{len(each.values)} {what} images are too few to score; {FEWEST} at least")
        if not (each.values.isfinite().all() and each.logits.isfinite().all()):
            raise ValueError(f"features of {what} images are not finite")
    without_semaphores()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    fewest, width = min(len(generated.values), len(real.values)), generated.values.shape[1]
    fid = None
    if fewest >= 2 * width:
        statistics = [fid_features_to_statistics(each.values) for each in (generated, real)]
        fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    kid = kid_features_to_metric(
        generated.values,
        real.values,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_LARGEST, fewest // 2),
        verbose=False,
    )
    near = prc_features_to_metric(
        generated.values, real.values, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
    )
    score, deviation = inception_score(generated.logits)
    return Scores(
        fid,
        kid["kernel_inception_distance_mean"],
        kid["kernel_inception_distance_std"],
        score,
        deviation,
        near["precision"],
        near["recall"],
    )


def without_semaphores() -> None:
    """Keep tqdm, by which torch-fidelity counts, from making a lock for several processes.

    A worker process that ends at once would leave it behind, with a warning.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def inception_score(logits: Tensor) -> tuple[float | None, float | None]:
    """Mean and standard deviation over the parts; None where a class has no share at all."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(logits, splits=SPLITS if len(logits) >= SPLITS**2 else 1)
    mean, deviation = found["inception_score_mean"], found["inception_score_std"]
    return (mean, deviation) if math.isfinite(mean) and math.isfinite(deviation) else (None, None)


@dataclass(frozen=True)
class Anchors:
    """What distances mean in a feature space: those of real images, and of a generator that has collapsed.

    Attributes:
        bootstrap: real images drawn with replacement against all of them: the floor.
        halves: one half of the real images against the other.
        repeated: every image of a class replaced by the class's mean image.
        spread: mean over classes of the features' standard deviation within a class.
        accuracy: share of real images in which the extractor sees their class; None where it knows others.
        inception_score: of the real images.
    """

    bootstrap: Scores
    halves: Scores
    repeated: Scores
    spread: float
    accuracy: float | None
    inception_score: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Anchors:
        """Read them back.

        Raises:
            TypeError, KeyError: for other content.
            ValueError: for what is neither a finite number nor None.
        """
        scores = {name: Scores(**content[name]) for name in ("bootstrap", "halves", "repeated")}
        found = cls(**(content | scores))
        values = [value for each in scores.values() for value in asdict(each).values()]
        values += [found.spread, found.accuracy, found.inception_score]
        if not all(value is None or (type(value) is float and math.isfinite(value)) for value in values):
            raise ValueError("anchors that are no numbers")
        return found


@dataclass(frozen=True)
class Assessment:
    """Scores of generated images with what guards against taking a collapsed generator for a good one.

    Attributes:
        accuracy: share of images in which the extractor sees the class that was asked for; None where it
            knows other classes.
        spread: as of the real images in `Anchors`, None of images of other classes; `relative_spread` is the
            share of theirs.
        agreement: of twins, see `agreement`; None of other images.
        count, real_count: of the images, and of the real ones.
    """

    scores: Scores
    anchors: Anchors
    accuracy: float | None
    spread: float | None
    agreement: float | None
    count: int
    real_count: int

    @property
    def relative_spread(self) -> float | None:
        return None if self.spread is None or not self.anchors.spread else self.spread / self.anchors.spread

    @property
    def collapsed(self) -> str:
        """Why a distance of these images ranks nothing, in words; "" if it does.

        "collapsed: ..." if the images of a class are too much alike, "far from real: ..." otherwise.
        """
        found = []
        if self.scores.recall < LEAST_RECALL:
            found.append(f"recall {self.scores.recall:.2f}")
        alike = self.relative_spread is not None and self.relative_spread < LEAST_SPREAD
        if alike:
            found.append(f"spread within classes {self.relative_spread:.0%} of the real one")
        fid, repeated = self.scores.fid, self.anchors.repeated.fid
        if fid is not None and repeated is not None and fid > repeated:
            found.append("FID above that of the mean image of each class, repeated")
        near = self.scores.recall < LEAST_RECALL <= self.scores.precision
        return f"{'collapsed' if alike or near else 'far from real'}: {', '.join(found)}" if found else ""


def within_classes(features: Features, labels: Tensor) -> float:
    """Mean over classes of the features' standard deviation, by the root of their mean variance.

    0 where no class has two images.
    """
    found = [features.values[labels == label] for label in labels.unique()]
    spreads = [each.var(0).mean().sqrt() for each in found if len(each) > 1]
    return float(torch.stack(spreads).mean()) if spreads else 0.0


def agreement(left: Tensor, right: Tensor, classes: int) -> float:
    """How often two classes seen in one image are the same, beyond chance (Cohen's kappa).

    1 where they always are, 0 where they are as often as of independent ones of these frequencies: making
    one class alone does not raise it.
    """
    same = float((left == right).double().mean())
    shares = [torch.bincount(each, minlength=classes).double() / len(each) for each in (left, right)]
    chance = float(shares[0] @ shares[1])
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


def right_class(features: Features, labels: Tensor) -> float:
    """The share of images in which the extractor sees this class."""
    return float((features.logits.argmax(1) == labels).double().mean())


def anchors(
    real: Features, labels: Tensor, repeated: Features, knows_classes: bool = True, seed: int = 0
) -> Anchors:
    """Measured on real images.

    Args:
        labels: their classes.
        repeated: features of images each of which is the mean image of its class.
        knows_classes: whether the extractor's classes are these.
        seed: of the draws.

    Raises:
        ValueError: for too few images to split them in halves.
    """
    count = len(labels)
    if count < 2 * FEWEST:
        raise ValueError(f"{count} real images are too few to compare with; {2 * FEWEST} at least")
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (count,), generator=random)
    mixed = torch.randperm(count, generator=random)
    return Anchors(
        compare(real.of(drawn), real),
        compare(real.of(mixed[: count // 2]), real.of(mixed[count // 2 :])),
        compare(repeated, real),
        within_classes(real, labels),
        right_class(real, labels) if knows_classes else None,
        inception_score(real.logits)[0],
    )
