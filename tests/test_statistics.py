"""The interval of a median covers the true median as often as it says, whatever the distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxbench.statistics import Median, median


@pytest.mark.parametrize(
    ("n", "rank"),
    # Ranks of the 95 % interval in tables of the sign test.
    [(6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (15, 4), (20, 6), (25, 8), (30, 10), (50, 18), (100, 40)],
)
def test_the_interval_has_the_ranks_that_tables_print(n: int, rank: int) -> None:
    ranks = list(range(n, 0, -1))  # the sample of rank k is k
    found = median(ranks)
    assert (found.low, found.high) == (rank, n + 1 - rank)
    assert found.value == (n + 1) / 2


@pytest.mark.parametrize("n", range(1, 6))
def test_fewer_than_six_samples_give_their_whole_range(n: int) -> None:
    assert median(list(range(n))) == Median((n - 1) / 2, 0, n - 1)


@pytest.mark.parametrize("n", [6, 10, 17, 31, 60])
@pytest.mark.parametrize(
    ("draw", "true_median"),
    [
        (lambda random, shape: random.normal(3, 2, shape), 3.0),
        (lambda random, shape: random.uniform(0, 1, shape), 0.5),
        (lambda random, shape: random.exponential(1, shape), math.log(2)),
        (lambda random, shape: random.lognormal(0, 2, shape), 1.0),
        (lambda random, shape: random.standard_cauchy(shape), 0.0),
        (lambda random, shape: random.integers(0, 5, shape), 2.0),
    ],
    ids=["normal", "uniform", "exponential", "log-normal", "Cauchy", "ties"],
)
def test_the_interval_covers_the_true_median_at_least_as_often_as_it_says(
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], true_median: float, n: int
) -> None:
    trials = 1500
    samples = draw(np.random.default_rng(0), (trials, n)).tolist()
    intervals = [median(sample) for sample in samples]
    covered = sum(interval.low <= true_median <= interval.high for interval in intervals)
    chance = 2.6 * math.sqrt(0.95 * 0.05 / trials)  # of one draw in a hundred or so
    assert covered / trials >= 0.95 - chance


def test_a_higher_level_gives_a_wider_interval() -> None:
    samples = list(range(101))
    wide, usual, narrow = (median(samples, level) for level in (0.999, 0.95, 0.5))
    assert wide.low < usual.low < narrow.low < 50 < narrow.high < usual.high < wide.high


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_the_median_lies_in_its_interval_and_the_order_of_samples_does_not_matter(
    samples: list[float], random: object
) -> None:
    found = median(samples)
    assert min(samples) <= found.low <= found.value <= found.high <= max(samples)
    random.shuffle(shuffled := list(samples))  # type: ignore[attr-defined]
    assert median(shuffled) == found


def test_samples_are_not_reordered() -> None:
    samples = [3.0, 1.0, 2.0]
    median(samples)
    assert samples == [3.0, 1.0, 2.0]


def test_the_half_width_is_relative_to_the_median() -> None:
    assert Median(10, 9, 12).half_width == pytest.approx(0.15)
    assert Median(0, 0, 0).half_width == 0


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median([])
