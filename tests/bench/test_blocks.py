"""How fast the blocks are: python -m pytest tests/bench, compared over time by pytest-benchmark."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import blocks

INPUT = (1, 256, 32, 32)


@pytest.mark.parametrize("name", blocks.names())
def test_forward(benchmark: BenchmarkFixture, name: str) -> None:
    block, x = blocks.create(name, INPUT[1]).eval(), torch.randn(INPUT)
    with torch.inference_mode():
        benchmark(block, x)


@pytest.mark.parametrize("name", blocks.names())
def test_forward_and_backward(benchmark: BenchmarkFixture, name: str) -> None:
    block, x = blocks.create(name, INPUT[1]).train(), torch.randn(INPUT).requires_grad_()
    gradient = torch.randn(INPUT)
    benchmark(lambda: block(x).backward(gradient))
