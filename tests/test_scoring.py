"""The scores of generated images are those of formulas written down a second time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.generation import scoring
from tasks.generation.data import DataError, Images, digits, twins
from tasks.generation.extractors import Extractor, digits_extractor
from tasks.generation.judging import Reference, assess, in_batches
from tasks.generation.scoring import Features, agreement, compare

WIDTH, CLASSES = 16, 10


def features(count: int, shift: float = 0.0, seed: int = 0) -> Features:
    random = torch.Generator().manual_seed(seed)
    return Features(
        torch.randn(count, WIDTH, generator=random) * 1.5 + shift,
        torch.randn(count, CLASSES, generator=random) * 2,
    )


@pytest.fixture(scope="module")
def pair() -> tuple[Features, Features]:
    return features(300, 0.4, seed=1), features(260, seed=2)


def as_arrays(pair: tuple[Features, Features]) -> tuple[np.ndarray, np.ndarray]:
    first, second = (each.values.double().numpy() for each in pair)
    return first, second


def test_the_frechet_distance(pair: tuple[Features, Features]) -> None:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), by symmetric eigenvalues."""
    first, second = as_arrays(pair)
    gap = first.mean(0) - second.mean(0)
    one, two = np.cov(first.T), np.cov(second.T)
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ two @ root)).sum()
    expected = gap @ gap + np.trace(one) + np.trace(two) - 2 * cross
    assert compare(*pair).fid == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance(pair: tuple[Features, Features]) -> None:
    """Unbiased maximum mean discrepancy with (x y / d + 1)^3, over subsets; of all images it is near their mean."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / WIDTH + 1) ** 3

    def unbiased(x: np.ndarray, y: np.ndarray) -> float:
        within = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y)]
        return float(sum(within) - 2 * kernel(x, y).mean())

    first, second = as_arrays(pair)
    random = np.random.RandomState(2020)
    subsets = [
        unbiased(*(each[random.choice(len(each), 130, replace=False)] for each in (first, second)))
        for _ in range(scoring.KID_SUBSETS)
    ]
    found = compare(*pair)
    assert found.kid == pytest.approx(np.mean(subsets), rel=1e-6)
    assert found.kid_std == pytest.approx(np.std(subsets), rel=1e-6)
    assert unbiased(first, second) == pytest.approx(
        found.kid, abs=3 * found.kid_std / scoring.KID_SUBSETS**0.5
    )


def test_precision_and_recall(pair: tuple[Features, Features]) -> None:
    """Shares of images that lie within the reach of another's third neighbour; precision is of the generated ones."""

    def covered(points: np.ndarray, by: np.ndarray) -> float:
        among = np.linalg.norm(by[:, None] - by[None], axis=2)
        reach = np.sort(among, axis=1)[:, scoring.NEIGHBOURS]
        return float((np.linalg.norm(points[:, None] - by[None], axis=2) <= reach).any(1).mean())

    generated, real = as_arrays(pair)
    found = compare(*pair)
    assert found.precision == pytest.approx(covered(generated, real), abs=1e-6)
    assert found.recall == pytest.approx(covered(real, generated), abs=1e-6)
    assert found.precision != found.recall


def test_the_inception_score_of_one_class_is_one_and_of_sure_and_even_classes_their_number() -> None:
    sure = torch.eye(CLASSES).repeat(200, 1) * 100
    values = torch.randn(len(sure), WIDTH)
    real = features(200)
    assert compare(Features(values, sure), real).inception_score == pytest.approx(CLASSES, rel=0.05)
    assert compare(Features(values, sure[:1].repeat(len(sure), 1)), real).inception_score == pytest.approx(
        1.0
    )


def test_too_few_images_for_their_features_have_no_frechet_distance() -> None:
    assert compare(features(2 * WIDTH - 1), features(100)).fid is None
    assert compare(features(2 * WIDTH), features(100)).fid is not None


def test_the_same_images_are_at_no_distance() -> None:
    same = compare(features(200), features(200))
    assert same.fid == pytest.approx(0.0, abs=1e-6)
    assert (same.precision, same.recall) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (features(7), "7 generated images are too few"),
        (Features(torch.full((9, WIDTH), torch.nan), torch.zeros(9, CLASSES)), "not finite"),
    ],
)
def test_what_cannot_be_scored_is_told(broken: Features, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(broken, features(100))


# With digits


@pytest.fixture(scope="module")
def real() -> Images:
    return digits(16)


@pytest.fixture(scope="module")
def extractor(real: Images, tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return digits_extractor(real, tmp_path_factory.mktemp("extractor"))


def test_the_extractor_is_the_same_for_the_same_images_and_named_by_its_weights(
    real: Images, extractor: Extractor, tmp_path: Path
) -> None:
    assert digits_extractor(real, tmp_path).name == extractor.name
    assert digits_extractor(real, tmp_path).name == extractor.name, "read from its file"
    fewer = Images.of(real.images[:500], real.labels[:500])
    assert digits_extractor(fewer, tmp_path).name != extractor.name
    assert len(list(tmp_path.iterdir())) == 2


def test_the_extractor_knows_digits_that_it_has_not_seen(real: Images, extractor: Extractor) -> None:
    held_out = torch.arange(len(real.labels)) % 5 == 0
    found = extractor(real.images[held_out]).logits.argmax(1)
    assert (found == real.labels[held_out]).float().mean() > 0.95


@pytest.fixture(scope="module")
def reference(real: Images, extractor: Extractor) -> Reference:
    return Reference.of(in_batches(real.images, real.labels), extractor, real.digest)


def repeated(images: Images) -> torch.Tensor:
    """Every image replaced by the mean image of its class."""
    means = torch.stack([images.images[images.labels == it].float().mean(0) for it in range(CLASSES)])
    return means.round().to(torch.uint8)[images.labels]


def test_anchors_tell_real_images_from_ten_that_are_repeated(
    real: Images, extractor: Extractor, reference: Reference
) -> None:
    known = reference.known
    assert known.bootstrap.fid is not None
    assert known.halves.fid is not None
    assert known.repeated.fid is not None
    assert known.bootstrap.fid < known.halves.fid < known.repeated.fid / 5
    assert known.accuracy is not None
    assert known.accuracy > 0.99
    good = assess(in_batches(real.images, real.labels), extractor, reference)
    assert good.collapsed == ""
    assert good.relative_spread == pytest.approx(1.0)
    assert good.scores.fid == pytest.approx(0.0, abs=1e-6)
    bad = assess(in_batches(repeated(real), real.labels), extractor, reference)
    assert bad.scores.fid == pytest.approx(known.repeated.fid, rel=1e-4), "what such a generator gets"
    assert "recall 0.00" in bad.collapsed
    assert "spread within classes 0% of the real one" in bad.collapsed
    assert bad.accuracy is not None
    assert bad.accuracy > 0.9, "accuracy alone would not tell"
    other = assess(in_batches(real.images, (real.labels + 1) % CLASSES), extractor, reference)
    assert other.accuracy is not None
    assert other.accuracy < 0.05


def test_a_reference_is_kept_in_a_file(
    real: Images, extractor: Extractor, reference: Reference, tmp_path: Path
) -> None:
    reference.save(tmp_path / "reference.npz")
    again = Reference.load(tmp_path / "reference.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]
    assert torch.equal(again.features, reference.features)
    assert torch.equal(again.labels, reference.labels)
    assert (again.known, again.extractor, again.digest) == (reference.known, extractor.name, real.digest)


@pytest.mark.parametrize("content", [b"", b"PK nothing", b"{}"])
def test_a_file_that_is_no_reference_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "reference.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"reference\.npz holds no reference"):
        Reference.load(tmp_path / "reference.npz")


def test_a_reference_with_a_pickle_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", about=np.array([Path("x")], dtype=object))
    with pytest.raises(DataError, match="holds no reference"):
        Reference.load(tmp_path / "reference.npz")


def test_a_reference_of_another_feature_space_is_refused(
    real: Images, extractor: Extractor, reference: Reference
) -> None:
    other = dataclasses.replace(extractor, name="another")
    with pytest.raises(ValueError, match=r"extractor digits-cnn-.* not another"):
        assess(in_batches(real.images, real.labels), other, reference)


def test_images_without_the_classes_of_the_reference_have_no_spread_within_them(
    real: Images, extractor: Extractor, reference: Reference
) -> None:
    found = assess(in_batches(real.images, torch.zeros_like(real.labels)), extractor, reference)
    assert found.relative_spread is None
    assert found.collapsed == ""


def test_a_damaged_extractor_is_trained_anew(real: Images, extractor: Extractor, tmp_path: Path) -> None:
    (tmp_path / f"digits-{real.digest}.pt").write_bytes(b"damaged")
    assert digits_extractor(real, tmp_path).name == extractor.name


# Agreement


def test_agreement_is_beyond_chance() -> None:
    random = torch.Generator().manual_seed(0)
    left = torch.randint(10, (5000,), generator=random)
    assert agreement(left, left, 10) == pytest.approx(1.0)
    assert abs(agreement(left, left[torch.randperm(5000, generator=random)], 10)) < 0.02
    assert agreement(torch.zeros(100).long(), torch.zeros(100).long(), 10) == 0, (
        "one class alone is no agreement"
    )
    half = torch.where(
        torch.rand(5000, generator=random) < 0.5, left, torch.randint(10, (5000,), generator=random)
    )
    assert agreement(left, half, 10) == pytest.approx(0.5, abs=0.05)


def test_real_twins_agree_and_strangers_do_not(tmp_path: Path) -> None:
    data = twins()
    images, labels = data.images[::8], data.labels[::8]
    extractor = digits_extractor(digits(8), tmp_path)
    reference = Reference.of(in_batches(images, labels), extractor, data.digest, twins=True)
    found = assess(in_batches(images, labels), extractor, reference, twins=True)
    assert found.agreement is not None
    assert found.agreement > 0.98
    assert found.count == len(images)
    strangers = images.clone()
    strangers[..., -8:] = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))][
        ..., -8:
    ]
    parted = assess(in_batches(strangers, labels), extractor, reference, twins=True)
    assert parted.agreement is not None
    assert abs(parted.agreement) < 0.1
    assert parted.scores.fid == pytest.approx(0.0, abs=1e-4), "each digit alone is as real as before"
