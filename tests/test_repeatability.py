"""How far runs of the same cells are apart is told, and where that is too far."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ctxbench.reports.leaderboards import doubts
from ctxbench.reports.repeatability import pooled, repeatability_table, repetitions, spread
from ctxbench.tables import markdown
from tests.factories import failed_record, make_record, no_times


def timed(run: str, ratio: float, **fields: Any) -> dict[str, Any]:
    return make_record(**({"run_id": run, "latency_ref_ratio": ratio} | fields)).row


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 1.0], 0.0), ([0.9, 1.0, 1.1], 0.2), ([0.0, 0.0], 0.0), ([0.0, 0.0, 1.0], math.inf)],
)
def test_the_spread_is_the_range_over_the_median(values: list[float], expected: float) -> None:
    assert spread(values) == pytest.approx(expected)


def test_a_cell_of_two_runs_is_a_repetition_and_the_worst_comes_first() -> None:
    rows = [timed("a", 1.0), timed("b", 1.1)]
    rows += [timed(run, ratio, cell_id="f" * 16, spec="a2") for run, ratio in (("a", 1.0), ("b", 2.0))]
    first, second = repetitions(rows)
    assert (first.row["spec"], first.runs) == ("a2", 2)
    assert second.ratio_spread == pytest.approx(0.1 / 1.05)
    assert second.wall_spread == 0


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [timed("a", 1.0)],
        [timed("a", 1.0), timed("a", 2.0, created_utc="2025-01-02T03:04:06+00:00")],
        [timed("a", 1.0), timed("b", 2.0, env_hash="f" * 12)],
        [timed("a", 1.0), timed("b", 2.0, cell_id="f" * 16)],
        [timed("a", 1.0), failed_record("crashed", "gone", run_id="b").row],
    ],
    ids=["nothing", "one run", "the same run", "another environment", "another cell", "not timed"],
)
def test_what_is_no_repetition_makes_no_table(rows: list[dict[str, Any]]) -> None:
    assert repeatability_table(rows) is None


@pytest.mark.parametrize(("ratio", "within"), [(1.05, "1 of 1"), (1.5, "0 of 1")])
def test_the_table_says_how_many_cells_repeat_and_which_do_not(ratio: float, within: str) -> None:
    table = repeatability_table([timed("a", 1.0), timed("b", ratio)])
    assert table is not None
    text = markdown(table)
    assert f"{within} cells, each in 2 runs, repeat within 10%" in text
    assert ("Do not rely on smaller differences for: ham-nmf 8x8." in text) == (ratio == 1.5)


def test_inputs_have_a_line_each_with_the_middle_and_the_worst_cell() -> None:
    ratios = {"a2": 1.08, "ccnet": 1.3, "none": 1.0}
    rows = [timed(run, 1.0, height=side, cell_id=f"{side:016x}") for side in (64, 8) for run in "abc"]
    for number, (spec, ratio) in enumerate(ratios.items()):
        fields = {"cell_id": f"{number:016x}", "spec": spec, "height": 32}
        rows += [timed("a", 1.0, **fields), timed("b", 1.0, **fields), timed("c", ratio, **fields)]
    table = repeatability_table(rows)
    assert table is not None
    lines = [dict(zip(table.header, line, strict=True)) for line in table.text]
    assert [line["input"].split(",")[0] for line in lines] == ["1x16x8x8", "1x16x32x8", "1x16x64x8"]
    middle = lines[1]
    assert (middle["cells"], middle["runs"]) == ("3", "3")
    assert lines[1] and table.text[1][5] == "ccnet"
    assert (middle["/ matmul, median"], middle["largest"]) == ("8%", "30%")
    assert (middle["latency, median"], middle["latency, largest"]) == ("0%", "0%")
    assert (
        "4 of 5 cells, each in 3 runs, repeat within 10% in the ratio to the matrix product." in table.notes
    )


def test_no_more_than_five_cells_are_named() -> None:
    rows = []
    for number in range(7):
        fields = {"cell_id": f"{number:016x}", "spec": f"block-{number}"}
        rows += [timed("a", 1.0, **fields), timed("b", 2.0 + number, **fields)]
    table = repeatability_table(rows)
    assert table is not None
    assert table.notes[-1].startswith("Do not rely on smaller differences for: block-6 8x8, block-5 8x8, ")
    assert table.notes[-1].endswith(", block-2 8x8 and 2 more.")


def test_runs_of_another_code_are_no_repetition() -> None:
    assert repetitions([timed("a", 1.0, code_hash="a" * 12), timed("b", 3.0, code_hash="b" * 12)]) == []


def test_several_runs_of_a_cell_become_one_row_with_their_median_and_range() -> None:
    times = {"a": 1.0, "b": 5.0, "c": 2.0}
    rows = [
        timed(
            run,
            time,
            latency_ms_median=time,
            latency_ms_ci_low=0.9 * time,
            latency_ms_ci_high=1.1 * time,
            converged=run != "b",
        )
        for run, time in times.items()
    ]
    other = timed("a", 1.0, cell_id="f" * 16)
    failed = failed_record("crashed", "gone", run_id="b").row
    found = pooled([*rows, other, failed])
    assert found[:1] == [failed]
    assert found[2:] == [other]
    (row,) = found[1:2]
    assert (row["runs"], row["run_id"], row["rounds_id"]) == (3, "3 runs: a, b, c", None)
    interval = (row["latency_ms_ci_low"], row["latency_ms_median"], row["latency_ms_ci_high"])
    assert interval == (0.9, 2.0, 5.5), "what the intervals of all runs span"
    assert row["latency_ref_ratio"] == 2.0
    assert row["converged"] is False


def test_of_a_run_that_timed_a_cell_twice_the_latest_counts() -> None:
    later = {"created_utc": "2025-01-02T03:04:06+00:00"}
    (row,) = pooled([timed("a", 2.0, **later), timed("a", 1.0)])
    assert (row["latency_ref_ratio"], row["runs"]) == (2.0, 1)


def test_what_was_estimated_has_nothing_to_pool() -> None:
    row = make_record(estimated=True, **no_times()).row
    assert pooled([row]) == [row]


def test_a_pool_is_in_doubt_where_one_of_its_runs_is() -> None:
    waited = timed("b", 1.0, latency_cpu_ms_median=1.0)
    (row,) = pooled([timed("a", 1.0), waited, timed("c", 1.0)])
    assert doubts(row) == ["preempted"]


def test_pools_of_two_versions_of_the_code_are_told_apart() -> None:
    rows = [
        timed(run, 1.0, code_hash=code * 12) for run, code in (("a", "a"), ("b", "a"), ("c", "b"), ("d", "b"))
    ]
    assert [row["run_id"] for row in pooled(rows)] == ["2 runs: a, b", "2 runs: c, d"]
