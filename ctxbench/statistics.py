"""Medians and their confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
    k, tail = 0, 0.5**n  # tail = P(fewer than k + 1 samples lie below the median)
    while k + 1 <= n // 2 and tail <= (1 - level) / 2:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    k = max(k, 1)
    return Median(statistics.median(ordered), ordered[k - 1], ordered[n - k])
