"""How long a report takes, from a run's folder to its tables and to its page with figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ctxbench.reports.report import Report
from ctxbench.store import Reading
from tests.bench.records import write_quickly

NUMBERS = (100, 1_000, 10_000)


def build(folder: Path) -> Path:
    return Report.of(Reading.of([folder])).write(folder / "report")


@pytest.mark.parametrize("number", NUMBERS)
def test_tables(benchmark: BenchmarkFixture, tmp_path: Path, number: int) -> None:
    folder = write_quickly(tmp_path, number).folder
    report = benchmark.pedantic(lambda: Report.of(Reading.of([folder])), rounds=3)
    assert len(report.rows) == number


@pytest.mark.parametrize("number", NUMBERS)
def test_page_with_figures(benchmark: BenchmarkFixture, tmp_path: Path, number: int) -> None:
    folder = write_quickly(tmp_path, number).folder
    page = benchmark.pedantic(build, (folder,), rounds=1, warmup_rounds=0)
    assert page.is_file()
