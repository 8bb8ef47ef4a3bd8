"""GANs with a block in their slots: parts, first weights, and a training that can be killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import blocks
from tasks.generation import training as engine
from tasks.generation.data import Images, digits
from tasks.generation.models import Discriminator, Generator, SpectralNorm, convolutions
from tasks.generation.recipes import DIGITS, IMAGENET
from tests.factories import KilledError, killed_at

CLASSES = 10


@pytest.fixture(scope="module")
def data() -> Images:
    return digits(DIGITS.layout.size)


def job(block: str = "none", options: dict[str, Any] | None = None, **fields: Any) -> engine.Job:
    return engine.Job(DIGITS, block, options or {}, **({"iterations": 6} | fields))


def networks(block: str = "none", **options: Any) -> tuple[Generator, Discriminator]:
    return Generator(DIGITS.layout, block, options), Discriminator(DIGITS.layout, block, options)


# Networks


def test_images_and_scores_have_their_shapes() -> None:
    generator, discriminator = networks()
    labels = torch.arange(4)
    images = generator(torch.randn(4, DIGITS.layout.latent), labels)
    assert images.shape == (4, 1, 16, 16)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (4,)


@pytest.mark.parametrize("block", blocks.names())
def test_any_block_fits_into_both_slots_and_changes_nothing_at_the_start(block: str) -> None:
    options = {"rank": 4} if "rank" in blocks.info(block).options else {}
    for network in networks(block, **options):
        x = torch.rand(2, network.slot.block.channels, 8, 8)
        assert torch.equal(network.slot.eval()(x), x)


@pytest.mark.parametrize("block", blocks.names())
def test_no_discriminator_has_batch_normalisation(block: str) -> None:
    options = {"rank": 4} if "rank" in blocks.info(block).options else {}
    _, discriminator = networks(block, **options)
    assert not [it for it in discriminator.modules() if isinstance(it, torch.nn.BatchNorm2d)]


def test_the_networks_for_imagenet_have_their_size() -> None:
    with torch.device("meta"):
        generator, discriminator = Generator(IMAGENET, "none", {}), Discriminator(IMAGENET, "none", {})
        noise, labels = torch.empty(2, IMAGENET.latent), torch.zeros(2, dtype=torch.long)
        images = generator(noise, labels)
        assert images.shape == (2, 3, 128, 128)
        assert discriminator(images, labels).shape == (2,)
    assert [generator.slot.block.channels, discriminator.slot.block.channels] == [256, 128]


@pytest.mark.parametrize(("exact", "largest"), [(True, 1.0), (False, 1.0)])
def test_a_normalised_weight_has_its_largest_singular_value(exact: bool, largest: float) -> None:
    weight = 3 * torch.randn(6, 4, 3, 3)
    norm = SpectralNorm(weight, exact)
    for _ in range(200):
        found = norm(weight)
    assert torch.linalg.matrix_norm(found.flatten(1), 2) == pytest.approx(largest, rel=1e-4)


def test_a_small_weight_is_only_enlarged_by_the_exact_norm() -> None:
    weight = 0.01 * torch.randn(5, 7)
    assert torch.equal(SpectralNorm(weight)(weight), weight)
    exact = SpectralNorm(weight, exact=True)
    for _ in range(200):
        found = exact(weight)
    assert torch.linalg.matrix_norm(found, 2) == pytest.approx(1.0, rel=1e-4)


def test_evaluation_leaves_the_norm_as_it_is() -> None:
    _, discriminator = networks()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator.eval()(torch.rand(2, 1, 16, 16), torch.zeros(2, dtype=torch.long))
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())


def test_every_convolution_of_the_discriminator_is_normalised_and_none_of_the_generator_for_digits() -> None:
    generator, discriminator = networks("ham-nmf", rank=4)
    assert all(hasattr(each, "parametrizations") for each in convolutions(discriminator))
    assert not any(hasattr(each, "parametrizations") for each in convolutions(generator))


# Training


def test_equal_seeds_start_alike_outside_the_slots() -> None:
    first, second = engine.start(job()), engine.start(job("ham-nmf", {"rank": 4}))
    for name in ("generator", "discriminator"):
        weights, others = getattr(first, name).state_dict(), getattr(second, name).state_dict()
        assert all(torch.equal(value, others[key]) for key, value in weights.items())
        assert len(others) > len(weights)
    other = engine.start(job(seed=1)).generator.state_dict()
    assert not torch.equal(other["stem.weight"], first.generator.state_dict()["stem.weight"])


def test_what_an_iteration_needs_follows_from_seed_iteration_and_rank(data: Images) -> None:
    def noise(seed: int = 0, iteration: int = 5, rank: int = 0) -> torch.Tensor:
        return engine.draw(job(seed=seed), data, iteration, rank, 2).noise

    assert torch.equal(noise(), noise())
    assert noise().shape == (2, DIGITS.batch // 2, DIGITS.layout.latent)
    assert not any(torch.equal(noise(), other) for other in (noise(1), noise(iteration=6), noise(rank=1)))


def assert_equal(first: engine.State, second: engine.State) -> None:
    ours, others = first.to_dict(), second.to_dict()
    for name in ("generator", "discriminator", "average"):
        assert all(torch.equal(value, others[name][key]) for key, value in ours[name].items())
    assert ours["curve"] == others["curve"]


@pytest.mark.parametrize("iteration", [1, 4, 6])
def test_a_training_that_is_killed_and_resumed_ends_bit_for_bit_as_a_straight_one(
    data: Images, tmp_path: Path, iteration: int
) -> None:
    ours = job("ham-nmf", {"rank": 4})
    straight = engine.train(ours, data, tmp_path / "straight")
    with pytest.raises(KilledError):
        engine.train(ours, data, tmp_path / "killed", killed_at(f"iteration {iteration} "))
    assert_equal(engine.train(ours, data, tmp_path / "killed"), straight)


def test_a_checkpoint_holds_tensors_and_plain_values_alone(data: Images, tmp_path: Path) -> None:
    engine.train(job(), data, tmp_path)
    content = torch.load(tmp_path / engine.NAME, weights_only=True)
    assert content["iteration"] == 6
    assert [path.name for path in tmp_path.iterdir()] == [engine.NAME]


def test_the_average_follows_the_generator(data: Images, tmp_path: Path) -> None:
    first = engine.start(job()).generator.state_dict()["stem.weight"]
    state = engine.train(job(), data, tmp_path)
    now, mean = state.generator.state_dict()["stem.weight"], state.average.state_dict()["stem.weight"]
    assert 0 < (mean - first).norm() < (now - first).norm()


def test_a_loss_that_is_not_finite_is_told(
    data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.Players, "step", lambda *given: {"generator": torch.tensor(float("nan"))})
    with pytest.raises(FloatingPointError, match="not finite after 1 iterations"):
        engine.train(job(), data, tmp_path)


def test_mixed_precision_trains_on_a_cpu(data: Images, tmp_path: Path) -> None:
    state = engine.train(job("ham-nmf", {"rank": 4}, dtype="bfloat16"), data, tmp_path)
    assert len(state.curve) == 6
    assert state.curve != engine.train(job("ham-nmf", {"rank": 4}), data, tmp_path / "full").curve
