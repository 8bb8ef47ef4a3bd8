"""How long 10,000 records take to a run's folder, and from there into a table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ctxbench.record import Record
from ctxbench.store import RunStore, to_frame
from tests.bench.records import made_up, write_quickly

NUMBER = 10_000


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that goes when the test ends: pytest would keep its own for three runs."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(folder: Path, records: list[Record]) -> RunStore:
    store = RunStore.create(folder)
    for record in records:
        store.write(record)
    return store


def load(folder: Path) -> pd.DataFrame:
    records, unreadable = RunStore.open(folder).read()
    assert not unreadable
    return to_frame([record.row for record in records])


def test_write(benchmark: BenchmarkFixture, folder: Path) -> None:
    """Each record is on the disk before the next one is written."""
    store = benchmark.pedantic(write, (folder, list(made_up(NUMBER))), rounds=1)
    assert len(list(store.records.iterdir())) == NUMBER


def test_read(benchmark: BenchmarkFixture, folder: Path) -> None:
    write_quickly(folder, NUMBER)
    frame = benchmark.pedantic(load, (folder,), rounds=3)
    assert len(frame) == NUMBER
