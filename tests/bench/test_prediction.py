"""How long it takes to predict a training step's peak memory, and to run the step under the same tracker."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import blocks
from ctxbench.cost import estimate, trace
from ctxbench.spec import Grid

INPUT = (1, 256, 32, 32)


@pytest.mark.parametrize("name", blocks.names())
def test_predicted(benchmark: BenchmarkFixture, name: str) -> None:
    grid = Grid(blocks=name, channels=str(INPUT[1]), resolutions=str(INPUT[2]), modes="train", estimated=True)
    (cell,) = grid.cells()
    benchmark.extra_info["peak_bytes"] = benchmark(estimate, cell).memory_bytes


@pytest.mark.parametrize("name", blocks.names())
def test_executed(benchmark: BenchmarkFixture, name: str) -> None:
    block, x = blocks.create(name, INPUT[1]).train(), torch.randn(INPUT).requires_grad_()
    gradient = torch.randn(INPUT)

    def without_gradients() -> None:
        block.zero_grad()
        x.grad = None

    cost = benchmark.pedantic(trace, (block, x, gradient), setup=without_gradients, rounds=10)
    benchmark.extra_info["peak_bytes"] = cost.memory_bytes
