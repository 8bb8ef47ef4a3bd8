"""What all tests share: one thread, the GPU marker, and plug-ins for the conformance suite."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from ctxbench import plugins


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin", action="append", default=[], type=Path, help="a file with blocks to try for conformance"
    )


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    torch.set_num_threads(1)  # spinning threads on a shared machine cost more than they bring
    for path in config.getoption("--plugin"):
        plugins.load(path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))
