"""Medians and their confidence intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Median:
    """A sample's median with the confidence interval of the population's median."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's width, relative to the median."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0


def median(samples: Sequence[float], level: float = 0.95) -> Median:
    """Median and its order-statistic interval, which assumes no distribution.

    The interval runs from the k-th smallest to the k-th largest sample, with the largest k that
    covers the median with probability `level` (binomial); below six samples no k reaches 95 %, and
    it is the whole range.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered, n = sorted(samples), len(samples)
    k = interval_rank(n, level)
    return Median(statistics.median(ordered), ordered[k - 1], ordered[n - k])


@cache
def interval_rank(n: int, level: float) -> int:
    """The largest k for which the k-th smallest to the k-th largest of n covers the median; at least 1.

    It is asked for after every round of timings, so each n is worked out once.
    """
    k, ways, below = 0, 1, 1  # ways = n over k; below = sum of them up to k
    while k + 1 <= n // 2 and below / 2**n <= (1 - level) / 2:
        ways = ways * (n - k) // (k + 1)
        k += 1
        below += ways
    return max(k, 1)
