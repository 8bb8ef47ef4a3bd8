"""How long it takes to count a block's MACs, here without running it and by fvcore's traced run."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import blocks
from ctxbench.cost import count_with_fvcore, estimate
from ctxbench.spec import Grid

INPUT = (1, 256, 32, 32)


@pytest.mark.parametrize("name", blocks.names())
def test_estimate(benchmark: BenchmarkFixture, name: str) -> None:
    (cell,) = Grid(blocks=name, resolutions="128", modes="train", estimated=True).cells()
    cost = benchmark(estimate, cell)
    benchmark.extra_info["macs"] = cost.macs_counted


@pytest.mark.parametrize("name", blocks.names())
def test_fvcore(benchmark: BenchmarkFixture, name: str) -> None:
    found = benchmark(count_with_fvcore, blocks.create(name, INPUT[1]).eval(), torch.randn(INPUT))
    benchmark.extra_info["macs"] = found.macs
