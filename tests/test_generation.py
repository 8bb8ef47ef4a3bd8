"""GANs with a block in their slots: parts, first weights, and a training that can be killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import blocks
from tasks.generation import training as engine
from tasks.generation.data import Images, digits, halves, twins
from tasks.generation.models import Discriminator, Generator, SpectralNorm, convolutions
from tasks.generation.randomness import seeded
from tasks.generation.recipes import RECIPES
from tests.factories import KilledError, killed_at

CLASSES = 10
DIGITS = RECIPES["digits"]["16x16"]
TWINS = RECIPES["twins"]["8x32"]
IMAGENET = RECIPES["imagenet"]["hamgan-baby"].layout


@pytest.fixture(scope="module")
def data() -> Images:
    return digits(DIGITS.layout.size[0])


def job(block: str = "none", options: dict[str, Any] | None = None, **fields: Any) -> engine.Job:
    options = options or {}
    return engine.Job(DIGITS, DIGITS.layout, block, (options, options), **({"iterations": 6} | fields))


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
def test_a_slot_adds_nothing_but_context(block: str) -> None:
    """An activation behind the block's sum is not part of it: without context the slot hands its input on."""
    options = {"rank": 4} if "rank" in blocks.info(block).options else {}
    for network in networks(block, **options):
        slot = network.slot.eval()
        torch.nn.init.ones_(slot.gate)
        x = torch.randn(2, slot.block.channels, 8, 8)
        whole, added = slot.block(x), slot.block.branch(x)
        same = torch.allclose(whole, x + added, atol=1e-5)
        assert same or torch.allclose(whole, (x + added).relu(), atol=1e-5)
        assert torch.allclose(slot(x), x + added, atol=1e-6)


@pytest.mark.parametrize("block", blocks.names())
def test_no_block_waits_behind_two_closed_gates(block: str) -> None:
    """Of two gates in a row that are zero neither would ever get a gradient."""
    options = {"rank": 4} if "rank" in blocks.info(block).options else {}
    for network in networks(block, **options):
        x = torch.rand(2, network.slot.block.channels, 8, 8)
        (network.slot(x) * torch.rand_like(x)).sum().backward()
        assert (network.slot.gate.grad != 0) == (block != "none")


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
    assert not torch.equal(other["stem.linear.weight"], first.generator.state_dict()["stem.linear.weight"])


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


@pytest.mark.parametrize("iteration", [2, 17, 25])
def test_a_training_that_is_killed_and_resumed_ends_bit_for_bit_as_a_straight_one(
    data: Images, tmp_path: Path, iteration: int
) -> None:
    ours = job("ham-nmf", {"rank": 4}, iterations=25)  # with a checkpoint every second one
    straight = engine.train(ours, data, tmp_path / "straight")
    with pytest.raises(KilledError):
        engine.train(ours, data, tmp_path / "killed", killed_at(f"iteration {iteration} "))
    assert_equal(engine.train(ours, data, tmp_path / "killed").state, straight.state)


def test_a_checkpoint_holds_tensors_and_plain_values_alone(data: Images, tmp_path: Path) -> None:
    engine.train(job(), data, tmp_path)
    content = torch.load(tmp_path / engine.NAME, weights_only=True)
    assert content["iteration"] == 6
    assert [path.name for path in tmp_path.iterdir()] == [engine.NAME]


def test_the_average_follows_the_generator(data: Images, tmp_path: Path) -> None:
    first = engine.start(job()).generator.state_dict()["stem.linear.weight"]
    state = engine.train(job(), data, tmp_path).state
    now, mean = (
        state.generator.state_dict()["stem.linear.weight"],
        state.average.state_dict()["stem.linear.weight"],
    )
    assert 0 < (mean - first).norm() < (now - first).norm()


def test_a_loss_that_is_not_finite_is_told(
    data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.Players, "step", lambda *given: {"generator": torch.tensor(float("nan"))})
    with pytest.raises(FloatingPointError, match="not finite after 1 iterations"):
        engine.train(job(), data, tmp_path)


@pytest.mark.parametrize("block", blocks.names())
def test_mixed_precision_takes_every_block(data: Images, tmp_path: Path, block: str) -> None:
    options = {"rank": 4} if "rank" in blocks.info(block).options else {}
    engine.train(job(block, options, dtype="bfloat16", iterations=1), data, tmp_path)


def test_mixed_precision_trains_on_a_cpu(data: Images, tmp_path: Path) -> None:
    state = engine.train(job("ham-nmf", {"rank": 4}, dtype="bfloat16"), data, tmp_path).state
    assert len(state.curve) == 6
    assert state.curve != engine.train(job("ham-nmf", {"rank": 4}), data, tmp_path / "full").state.curve


def without_optimizers(content: dict[str, Any]) -> None:
    del content["optimizers"]


def of_another_shape(content: dict[str, Any]) -> None:
    content["average"]["head.weight"] = torch.zeros(3)


def beyond_the_end(content: dict[str, Any]) -> None:
    content["iteration"] = 10**9


def as_text(content: dict[str, Any]) -> None:
    content["iteration"] = "5"


def another_curve(content: dict[str, Any]) -> None:
    content["curve"] = [1]


@pytest.mark.parametrize(
    "spoil", [without_optimizers, of_another_shape, beyond_the_end, as_text, another_curve]
)
def test_a_checkpoint_that_does_not_fit_counts_as_none(
    data: Images, tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    straight = engine.train(job(), data, tmp_path)
    content = torch.load(tmp_path / engine.NAME, weights_only=True)
    content["iteration"] = 3
    spoil(content)
    torch.save(content, tmp_path / engine.NAME)
    assert_equal(engine.train(job(), data, tmp_path).state, straight.state)


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", b"\x80\x02.", b"half"])
def test_a_damaged_checkpoint_counts_as_none(data: Images, tmp_path: Path, damage: bytes) -> None:
    straight = engine.train(job(), data, tmp_path)
    whole = (tmp_path / engine.NAME).read_bytes()
    (tmp_path / engine.NAME).write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    assert_equal(engine.train(job(), data, tmp_path).state, straight.state)


def test_a_malicious_checkpoint_is_not_executed(data: Images, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"generator": Malicious()}, tmp_path / engine.NAME)
    engine.train(job(), data, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_what_is_logged(data: Images, tmp_path: Path) -> None:
    trained = engine.train(job(), data, tmp_path)
    lines = trained.curve_csv().splitlines()
    assert lines[0] == "iteration,generator,discriminator,right,generator_norm,discriminator_norm"
    assert len(lines) == 7
    assert all(0 <= point["right"] <= 1 for point in trained.state.curve)
    assert all(point["generator_norm"] > 0 < point["discriminator_norm"] for point in trained.state.curve)
    assert trained.cpu_seconds > 0
    assert trained.peak_bytes > 2**20


def test_samples_are_shown_on_the_way(data: Images, tmp_path: Path) -> None:
    shown: dict[int, torch.Tensor] = {}
    engine.train(job(), data, tmp_path, show=lambda iteration, images: shown.update({iteration: images}))
    assert list(shown) == [1, 2, 3, 4, 5, 6]
    assert shown[6].shape == (100, 1, 16, 16)
    assert shown[6].dtype == torch.uint8
    assert not torch.equal(shown[1], shown[6])


def test_images_follow_from_weights_and_seed(data: Images) -> None:
    ours, labels = job("ham-nmf", {"rank": 4}), torch.arange(10)
    average = engine.start(ours).average

    def images(*use: str) -> torch.Tensor:
        return torch.cat([part for part, _ in engine.generate(ours, average, labels, *use)])

    assert torch.equal(images(), images())
    assert not torch.equal(images(), images("another use"))


def test_a_generator_that_makes_nan_is_told() -> None:
    state = engine.start(job())
    with torch.no_grad():
        state.average.head.bias.fill_(torch.nan)  # type: ignore[operator,union-attr]
    with pytest.raises(FloatingPointError, match="not finite"):
        next(engine.generate(job(), state.average, torch.arange(3)))


# Twins


def reach(block: str, **options: Any) -> tuple[float, float]:
    """How far the class moves the left and the right twin, at an open gate."""
    with seeded("test"):
        generator = Generator(TWINS.layout, block, options).eval()
    torch.nn.init.constant_(generator.slot.gate, 0.5)
    noise = torch.randn(4, TWINS.layout.latent)
    first, second = (generator(noise, torch.full((4,), label)) for label in (0, 1))
    left, right = halves((first - second).abs()).flatten(1).amax(1).tolist()
    return left, right


def test_without_context_the_class_does_not_reach_the_right_twin() -> None:
    left, right = reach("none")
    assert left > 0
    assert right == 0


@pytest.mark.parametrize("block", ["ham-nmf", "self-attn", "a2", "ccnet", "danet"])
def test_context_brings_the_class_to_the_right_twin(block: str) -> None:
    options = {"rank": 4} if "rank" in blocks.info(block).options else {}
    _, right = reach(block, **options)
    assert right > 0


def test_twins_are_of_one_class_and_not_the_same() -> None:
    data = twins()
    assert data.images.shape == (4 * 1797, 1, 8, 32)
    left, right = halves(data.images)
    single = digits(8)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(*vars_of(single), strict=True)}
    for side in (left, right):
        assert [known[image.numpy().tobytes()] for image in side[::7]] == data.labels[::7].tolist()
    assert (left == right).flatten(1).all(1).float().mean() < 0.01
    each_once = {image.numpy().tobytes() for image in left[::4]}
    assert len(each_once) == len({image.numpy().tobytes() for image in single.images})
    assert data.digest == twins().digest


def vars_of(data: Images) -> tuple[torch.Tensor, torch.Tensor]:
    return data.images, data.labels
