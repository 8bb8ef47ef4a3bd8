"""Two runs are compared cell by cell: chance is not called a change, and no regression slips through."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxbench.compare import Comparison, Pair, Regression, Threshold, compare, parse_threshold, ratio_of
from ctxbench.errors import UsageError
from ctxbench.record import FAILED, Row
from ctxbench.statistics import median
from ctxbench.tables import Table, markdown
from tests.factories import failed_record, make_record, no_times


def cell(spec: str) -> dict[str, Any]:
    """What identifies a cell of this block; equal for equal names."""
    return {"spec": spec, "block": spec, "cell_id": hashlib.sha256(spec.encode()).hexdigest()[:16]}


def interval(middle: float, low: float, high: float) -> dict[str, float]:
    return {"latency_ms_median": middle, "latency_ms_ci_low": low, "latency_ms_ci_high": high}


def timed(spec: str, middle: float, width: float = 0.01, **fields: Any) -> Row:
    """A measured cell with a recorded interval of ± `width` (a fraction), without samples."""
    times = interval(middle, middle * (1 - width), middle * (1 + width))
    times["latency_cpu_ms_median"] = middle  # nobody took the CPU
    return make_record(**(cell(spec) | times | fields)).row


def sampled(spec: str, samples: list[float], **fields: Any) -> Row:
    """A measured cell with these wall times, in ms."""
    found = median(samples)
    times = interval(found.value, found.low, found.high)
    kept = {"latency_samples_json": json.dumps(samples), "iterations": len(samples)}
    return make_record(**(cell(spec) | times | kept | fields)).row


def estimated(spec: str, **fields: Any) -> Row:
    return make_record(**(cell(spec) | {"estimated": True} | no_times() | fields)).row


def failed(spec: str, status: str = "error", reason: str = "it broke", **fields: Any) -> Row:
    return failed_record(status, reason, **(cell(spec) | fields)).row


def one(base: Row, new: Row, tolerance: float = 0.05) -> Pair:
    (pair,) = compare([base], [new], tolerance).pairs
    return pair


def table(found: Comparison, title: str) -> Table[Row]:
    (match,) = [table for table in found.tables() if title in table.title]
    return match


def column(table: Table[Row], title: str) -> list[str]:
    place = table.header.index(title)
    return [row[place] for row in table.text]


def regressions(base: Row, new: Row, *thresholds: str) -> list[Regression]:
    return compare([base], [new]).regressions([parse_threshold(text) for text in thresholds])


# Verdicts


@pytest.mark.parametrize(
    ("base", "new", "verdict"),
    [
        ((10, 9.9, 10.1), (10, 9.9, 10.1), "SAME"),
        ((10, 9.9, 10.1), (10.2, 10.1, 10.3), "SAME"),  # surely different, by less than counts
        ((10, 9.9, 10.1), (12, 11.9, 12.1), "SLOWER"),
        ((10, 9.9, 10.1), (8, 7.9, 8.1), "FASTER"),
        ((10, 9, 11), (12, 10.5, 14), "UNCERTAIN"),  # the interval holds 1
        ((10, 8, 12), (10, 8, 12), "UNCERTAIN"),  # too wide to say they are the same
        ((10, 9.99, 10.01), (10.4, 10.1, 10.7), "UNCERTAIN"),  # slower, but perhaps not by what counts
        ((10, 9.99, 10.01), (9.7, 9.4, 9.9), "UNCERTAIN"),
        ((10, 9, 11), (8, 7, 9.5), "UNCERTAIN"),
    ],
)
def test_a_verdict_is_given_only_where_the_interval_allows_it(
    base: tuple[float, ...], new: tuple[float, ...], verdict: str
) -> None:
    old, now = (make_record(**interval(*ends)).row for ends in (base, new))
    assert one(old, now).verdict == verdict


def test_the_tolerance_decides_what_counts() -> None:
    base, new = timed("a", 10, 0.001), timed("a", 10.3, 0.001)
    assert [one(base, new, t).verdict for t in (0.0, 0.02, 0.03, 0.05)] == [
        "SLOWER",
        "SLOWER",
        "UNCERTAIN",
        "SAME",
    ]


def test_without_tolerance_only_the_interval_speaks() -> None:
    base, exact = timed("a", 10, 0.01), timed("a", 10, 0.0)
    assert one(base, timed("a", 10.1, 0.01), 0).verdict == "UNCERTAIN"
    assert one(base, timed("a", 10.3, 0.01), 0).verdict == "SLOWER"
    assert one(base, timed("a", 9.7, 0.01), 0).verdict == "FASTER"
    assert one(exact, exact, 0).verdict == "SAME"


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, 5, math.nan, math.inf])
def test_a_tolerance_that_is_no_fraction_is_refused(tolerance: float) -> None:
    with pytest.raises(UsageError, match=r"such as 0\.05"):
        compare([], [], tolerance)


def test_samples_give_the_ratio_an_interval_that_covers_it_with_95_percent() -> None:
    base, new = [float(it) for it in range(101, 121)], [float(it) for it in range(201, 221)]
    ratio = one(sampled("a", base), sampled("a", new)).ratio
    # Each median at the root of 95 %: ranks 5 and 16 of 20 in tables of the sign test (level 98.8 %).
    assert ratio is not None
    assert ratio.value == 210.5 / 110.5
    assert (ratio.low, ratio.high) == pytest.approx((205 / 116, 216 / 105), rel=1e-12)


def test_the_recorded_interval_stands_in_for_samples() -> None:
    ratio = one(make_record(**interval(10, 9, 12)).row, make_record(**interval(20, 18, 21)).row).ratio
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 18 / 12, 21 / 9)


@pytest.mark.parametrize("samples", ['["a"]', "[null]", "[1e999]", "[-1]", "[[1]]", "[]"])
def test_samples_that_are_no_times_are_not_used(samples: str) -> None:
    broken = timed("a", 10, latency_samples_json=samples)
    assert one(timed("a", 10), broken).ratio == one(timed("a", 10), timed("a", 10)).ratio


def test_a_recorded_interval_beside_its_median_is_widened_to_it() -> None:
    odd = make_record(**interval(10, 11, 12)).row
    ratio = one(odd, odd).ratio
    assert ratio is not None
    assert ratio.low <= ratio.value <= ratio.high


def test_too_few_samples_never_make_a_verdict() -> None:
    fast, slow = sampled("a", [1.0] * 6), sampled("a", [2.0] * 6)
    assert one(fast, slow).verdict == "UNCERTAIN"
    assert not regressions(fast, slow, "latency_ms_median:5%")
    assert one(timed("a", 1, iterations=3), timed("a", 2, iterations=3)).verdict == "UNCERTAIN"
    assert one(sampled("a", [1.0] * 7), sampled("a", [2.0] * 7)).verdict == "SLOWER"
    found = compare([fast], [slow])
    assert column(table(found, "latency"), "interval") == ["n/a"]
    assert (
        found.to_json()["cells"][0] | {"ratio": 2.0, "low": None, "high": None} == found.to_json()["cells"][0]
    )


# A zero or missing base


@pytest.mark.parametrize(
    ("base", "new"),
    [
        (make_record(**interval(0, 0, 0)).row, timed("x", 1)),
        (make_record(**no_times()).row, timed("x", 1)),
        (timed("x", 1), make_record(**no_times()).row),
    ],
    ids=["zero base", "no base", "no new"],
)
def test_without_a_base_the_ratio_is_not_available_and_never_infinite(base: Row, new: Row) -> None:
    new = new | {"cell_id": base["cell_id"]}
    found = compare([base], [new])
    assert (found.pairs[0].ratio, found.pairs[0].verdict) == (None, None)
    (row,) = table(found, "latency").text
    place = table(found, "latency").header.index
    assert {row[place(title)] for title in ("new / base", "interval", "verdict")} == {"n/a"}
    assert "inf" not in row
    assert found.summary.startswith("1 cell compared: 1 n/a")
    assert not found.regressions([Threshold("latency_ms_median", 0.0)])
    json.dumps(found.to_json(), allow_nan=False)


# Exact quantities


def test_quantities_that_changed_are_listed_to_the_last_digit() -> None:
    base = timed("a", 1, params=1_000_000, memory_predicted_bytes=4_000_000)
    new = timed("a", 1, params=1_000_001, memory_predicted_bytes=3_000_000)
    changes = table(compare([base], [new]), "Changed")
    assert column(changes, "quantity") == ["params", "memory_predicted_bytes"]
    assert column(changes, "before") == ["1,000,000", "4,000,000"]
    assert column(changes, "after") == ["1,000,001", "3,000,000"]
    assert column(changes, "change") == ["+0.0001%", "-25%"]


def test_every_exact_quantity_is_watched() -> None:
    names = ("params", "macs_counted", "macs_backward", "memory_predicted_bytes", "memory_measured_bytes")
    base = timed("a", 1, **dict.fromkeys(names, 10))
    for name in names:
        (change,) = compare([base], [base | {name: 11}]).changed
        assert (change["quantity"], change["before"], change["after"], change["change"]) == (
            name,
            10,
            11,
            0.1,
        )


def test_from_nothing_a_quantity_grows_by_no_percentage() -> None:
    found = compare([timed("a", 1, params=0)], [timed("a", 1, params=5)])
    assert column(table(found, "Changed"), "change") == ["n/a"]


def test_what_is_unknown_in_one_run_has_not_changed() -> None:
    assert not compare([timed("a", 1)], [timed("a", 1, memory_measured_bytes=5)]).changed


def test_estimates_are_compared_by_their_exact_quantities_alone() -> None:
    found = compare([estimated("a", params=1)], [estimated("a", params=2, env_hash="ba9876543210")])
    assert [table.title for table in found.tables()] == ["Changed quantities"]
    assert found.summary == "1 cell compared: 1 estimated; 1 quantity changed"
    assert not found.warnings


# Cells that are missing or fail


def test_cells_of_one_run_alone_are_listed() -> None:
    found = compare(
        [timed("old", 1), timed("kept", 1)], [timed("kept", 1), failed("fresh", "oom", "too big")]
    )
    assert column(table(found, "New cells"), "block") == ["fresh"]
    assert column(table(found, "New cells"), "outcome") == ["oom: too big"]
    assert column(table(found, "Removed cells"), "block") == ["old"]
    assert [pair.new["spec"] for pair in found.pairs] == ["kept"]
    assert found.summary == "1 cell compared: 1 SAME; 1 only in NEW; 1 only in BASE"


def test_failures_are_listed_with_both_reasons() -> None:
    found = compare(
        [timed("breaks", 1), failed("mends", "timeout", "slow"), failed("stays", "oom", "big")],
        [failed("breaks", "crashed", "signal 9"), timed("mends", 1), failed("stays", "error", "other")],
    )
    failures = table(found, "Failed")
    assert column(failures, "block") == ["breaks", "mends", "stays"]
    assert column(failures, "failed or skipped") == ["newly", "no longer", "in both"]
    assert column(failures, "before") == ["ok", "timeout: slow", "oom: big"]
    assert column(failures, "after") == ["crashed: signal 9", "ok", "error: other"]
    assert len(found.tables()) == 1  # what failed has no time to compare
    assert found.summary == "3 cells compared: 3 failed or skipped"


def test_a_broken_block_is_not_believed_its_memory() -> None:
    broken = estimated("a", status="invalid", reason="rule", memory_predicted_bytes=9)
    assert not compare([estimated("a")], [broken]).changed


def test_of_a_cell_held_twice_the_latest_counts() -> None:
    day = "2025-01-0{}T00:00:00+00:00"
    records = [timed("a", ms, created_utc=day.format(it)) for it, ms in ((2, 20.0), (3, 30.0), (1, 10.0))]
    assert one(timed("a", 30), timed("a", 30)).verdict == "SAME"
    (pair,) = compare(records, [timed("a", 30)]).pairs
    assert pair.base["latency_ms_median"] == 30.0


def test_nothing_in_common_is_said_in_words() -> None:
    found = compare([timed("a", 1)], [timed("b", 1)])
    assert found.summary == (
        "nothing to compare: the runs have no cell in common; 1 only in NEW; 1 only in BASE"
    )
    assert compare([], []).summary == "nothing to compare: the runs have no cell in common"
    assert compare([], []).tables() == []


# Tables


def test_what_is_worst_stands_first() -> None:
    base = [timed(name, 10) for name in ("same", "slow", "slower", "fast")] + [timed("vague", 10, 0.5)]
    base.append(make_record(**(cell("unknown") | interval(0, 0, 0))).row)
    times = {"same": 10, "slow": 12, "slower": 20, "fast": 5, "vague": 11, "unknown": 1}
    found = compare(base, [timed(name, ms) for name, ms in times.items()])
    verdicts = table(found, "latency")
    assert column(verdicts, "block") == ["slower", "slow", "vague", "fast", "same", "unknown"]
    assert column(verdicts, "verdict") == ["SLOWER", "SLOWER", "UNCERTAIN", "FASTER", "SAME", "n/a"]
    assert column(verdicts, "new / base") == ["2", "1.2", "1.1", "0.5", "1", "n/a"]
    assert found.summary == "6 cells compared: 2 SLOWER, 1 UNCERTAIN, 1 FASTER, 1 SAME, 1 n/a"


def test_a_row_names_its_cell_its_times_and_its_ratios() -> None:
    base = timed("a", 10, mode="train", compiled=True, latency_ref_ratio=0.5)
    new = timed("a", 12, mode="train", compiled=True, latency_ref_ratio=0.55)
    verdicts = table(compare([base], [new]), "latency")
    assert dict(zip(verdicts.header, verdicts.text[0], strict=True)) == {
        "block": "a",
        "input": "1x16x8x8",
        "mode": "train, compiled",
        "dtype": "float32",
        "base (ms)": "10",
        "new (ms)": "12",
        "new / base": "1.2",
        "interval": "1.176 to 1.224",
        "/ matmul ratio": "1.1",
        "verdict": "SLOWER",
    }
    assert [column.title for column in verdicts.columns if not column.numeric] == [
        "block",
        "input",
        "mode",
        "dtype",
        "verdict",
    ]


def test_the_reference_product_corrects_the_times_of_a_cpu_alone() -> None:
    row = timed("a", 10, device_type="cuda")
    assert "/ matmul ratio" not in table(compare([row], [row]), "latency").header


def test_cells_that_differ_in_device_or_seed_are_told_apart() -> None:
    rows = [timed("a", 10), timed("b", 10, seed=7, device_type="cuda")]
    verdicts = table(compare(rows, rows), "latency")
    assert column(verdicts, "seed") == ["0", "7"]
    assert column(verdicts, "device") == ["cpu", "cuda"]


def test_the_notes_say_what_the_verdicts_mean_and_what_they_do_not() -> None:
    notes = " ".join(table(compare([timed("a", 1)], [timed("a", 1)], 0.03), "latency").notes)
    assert "more than 3%" in notes
    assert "these two runs alone" in notes


def test_hostile_text_stays_text() -> None:
    name = "a|b\x1b[31m\n<script>"
    base, new = timed(name, 1), failed(name, reason=name, error_type=name)
    found = compare([base], [new])
    (regression,) = found.regressions([Threshold("params", 0.0)])
    text = "".join(map(markdown, found.tables()))
    assert not {"\x1b", "\n"} & set(regression.text)
    assert not {"\x1b"} & set(text)
    assert "<script>" not in text


# Environments


def test_other_environments_are_named_on_one_line() -> None:
    base = [timed("a", 1), timed("b", 1)]
    new = [timed(name, 1, torch="99.0", threads=4, env_hash="ba9876543210") for name in ("a", "b")]
    found = compare(base, new)
    assert found.differences == ["torch 2.13.0 -> 99.0", "threads 1 -> 4"]
    assert found.warnings == [
        "the runs were measured in different environments: torch 2.13.0 -> 99.0, threads 1 -> 4"
    ]


def test_a_difference_that_no_column_names_is_told_by_its_hash() -> None:
    found = compare([timed("a", 1)], [timed("a", 1, env_hash="ba9876543210")])
    assert found.differences == ["env_hash 0123456789ab -> ba9876543210"]


def test_other_code_is_the_point_and_no_difference() -> None:
    code = {"git_commit": "abc", "git_dirty": True, "code_hash": "ba9876543210", "ctxbench_version": "9"}
    found = compare([timed("a", 1)], [timed("a", 1, **code)])
    assert (found.differences, found.warnings) == ([], [])


def test_cells_of_one_run_alone_bring_no_difference() -> None:
    other = {"torch": "99.0", "env_hash": "ba9876543210"}
    assert not compare([timed("a", 1)], [timed("a", 1), timed("b", 1, **other)]).warnings


# Thresholds


def test_a_threshold_is_a_metric_and_a_percentage() -> None:
    assert parse_threshold("latency_ms_median:5%") == Threshold("latency_ms_median", 0.05)
    assert parse_threshold("params:0%") == Threshold("params", 0.0)
    assert parse_threshold("images_per_s:2.5%").fraction == pytest.approx(0.025)
    assert parse_threshold("params:150%").fraction == 1.5


@pytest.mark.parametrize(
    "percentage",
    ["", "5", "0.05", "-5%", "nan%", "inf%", "1e400%", "%", "5%%", "5 %", "five%", "5%\n", "9" * 400 + "%"],
)
def test_a_bad_percentage_is_answered_with_what_to_type(percentage: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_threshold(f"latency_ms_median:{percentage}")
    assert "latency_ms_median:5%" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", ":5%", "speed:5%", "spec:5%", "latency\n:5%", "miou:1%", "5%"])
def test_an_unknown_metric_is_answered_with_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_threshold(text)
    for name in ("METRIC:NUMBER%", "params", "memory_predicted_bytes", "latency_ms_median", "images_per_s"):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


# Regressions


def test_one_regression_among_many_is_found() -> None:
    base = [timed(f"block-{it}", 10) for it in range(50)]
    new = [timed(f"block-{it}", 12 if it == 33 else 9) for it in range(50)]
    (found,) = compare(base, new).regressions([Threshold("latency_ms_median", 0.05)])
    assert (found.spec, found.metric) == ("block-33", "latency_ms_median")
    assert found.text == ("block-33 1x16x8x8 infer float32: latency_ms_median 10 -> 12, more than 5% worse")


def test_a_slower_median_is_a_regression_only_beyond_doubt() -> None:
    threshold = "latency_ms_median:5%"
    assert regressions(timed("a", 10), timed("a", 12), threshold)
    assert not regressions(timed("a", 10), timed("a", 12, 0.3), threshold)
    assert not regressions(timed("a", 10, 0.001), timed("a", 10.4, 0.001), threshold)
    assert not regressions(timed("a", 12), timed("a", 10), threshold)


def test_cpu_time_is_judged_by_its_own_samples() -> None:
    wall = [10.0, 20.0] * 10

    def row(cpu: list[float], **fields: Any) -> Row:
        own = {"latency_cpu_ms_median": median(cpu).value, "latency_cpu_samples_json": json.dumps(cpu)}
        return sampled("a", wall, **(own | fields))

    steady, slower = row([5.0] * 20), row([6.0] * 20)
    assert regressions(steady, slower, "latency_cpu_ms_median:5%")
    assert not regressions(steady, row([1.0, 6.0, 6.0, 20.0] * 5), "latency_cpu_ms_median:5%")
    assert not regressions(steady, slower, "latency_ms_median:5%")


def test_the_ratio_to_the_reference_product_is_judged_in_proportion() -> None:
    """A machine that became slower as a whole is no regression of the block, nor does it hide one."""

    def row(cpu: float, ratio: float, width: float = 0.01) -> Row:
        samples = [cpu * (1 + width * (it - 10) / 10) for it in range(21)]
        times = {"latency_cpu_ms_median": cpu, "latency_ref_ratio": ratio}
        return sampled("a", [10.0, 30.0] * 10, latency_cpu_samples_json=json.dumps(samples), **times)

    threshold = "latency_ref_ratio:5%"
    assert not regressions(row(10, 0.5), row(15, 0.5), threshold)
    assert regressions(row(10, 0.5), row(10, 0.6), threshold)
    assert not regressions(row(10, 0.5), row(15, 0.53, 0.3), threshold)


def test_fewer_images_per_second_are_a_regression_and_more_are_none() -> None:
    slow, fast = timed("a", 10, images_per_s=100.0), timed("a", 5, images_per_s=200.0)
    assert regressions(fast, slow, "images_per_s:5%")
    assert not regressions(slow, fast, "images_per_s:5%")
    assert not regressions(fast | {"latency_ms_ci_high": 11.0}, slow, "images_per_s:5%")  # in doubt


def test_a_graph_is_judged_by_its_own_interval() -> None:
    def row(middle: float, width: float) -> Row:
        low, high = middle * (1 - width), middle * (1 + width)
        graph = {"latency_graph_ms_ci_low": low, "latency_graph_ms_ci_high": high}
        return sampled("a", [10.0, 30.0] * 10, latency_graph_ms_median=middle, **graph)

    assert regressions(row(1, 0.01), row(1.2, 0.01), "latency_graph_ms_median:5%")
    assert not regressions(row(1, 0.2), row(1.2, 0.2), "latency_graph_ms_median:5%")


@pytest.mark.parametrize(
    ("before", "after", "percentage", "crossed"),
    [
        (100, 105, "5", False),
        (100, 106, "5", True),
        (100, 129, "29", False),  # 0.29 x 100 is a little less than 29 in binary
        (100, 95, "0", False),
        (10**29, 10**29 + 1, "0", True),
        (0, 1, "50", True),
        (0, 0, "0", False),
        (None, 5, "0", False),
        (5, None, "0", False),
    ],
)
def test_exact_metrics_are_compared_exactly(
    before: int | None, after: int | None, percentage: str, crossed: bool
) -> None:
    base, new = (timed("a", 1, memory_measured_bytes=value) for value in (before, after))
    assert bool(regressions(base, new, f"memory_measured_bytes:{percentage}%")) == crossed


@pytest.mark.parametrize("status", FAILED)
def test_a_cell_that_fails_now_is_one_regression_under_any_threshold(status: str) -> None:
    (found,) = regressions(timed("a", 1), failed("a", status, "why"), "params:50%", "latency_ms_median:5%")
    assert found.metric == "status"
    assert f"was ok, now {status}: why" in found.text


def test_what_failed_before_or_is_skipped_or_missing_is_no_regression() -> None:
    thresholds = [Threshold("latency_ms_median", 0.0)]
    base = [failed("a"), timed("b", 1), timed("c", 1)]
    new = [failed("a", "oom"), failed("b", "skipped", "needs 9 GiB"), failed("d")]
    assert compare(base, new).regressions(thresholds) == []


def test_without_thresholds_nothing_is_a_regression() -> None:
    assert compare([timed("a", 1)], [failed("a")]).regressions([]) == []


# JSON and imports


def test_the_comparison_is_plain_data() -> None:
    base = [timed("a", 10, params=1), timed("gone", 1), timed("breaks", 1)]
    new = [timed("a", 12, params=2), timed("fresh", 1), failed("breaks")]
    found = json.loads(json.dumps(compare(base, new).to_json(), allow_nan=False))
    assert found["tolerance"] == 0.05
    assert found["summary"].startswith("2 cells compared: 1 SLOWER, 1 failed or skipped; 1 quantity changed")
    rows = {row["spec"]: row for row in found["cells"]}
    assert rows["a"]["verdict"] == "SLOWER"
    assert rows["a"]["low"] < rows["a"]["ratio"] == 1.2 < rows["a"]["high"]
    assert (rows["breaks"]["verdict"], rows["breaks"]["ratio"]) == (None, None)
    assert [row["quantity"] for row in found["changed"]] == ["params"]
    assert [found[key][0]["spec"] for key in ("new", "removed", "failed")] == ["fresh", "gone", "breaks"]


def test_comparing_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, ctxbench.compare; print({'torch', 'pandas', 'blocks'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# Properties

middles = st.floats(0.5, 2).map(lambda it: 10 * it)
spreads = st.sampled_from([0.0, 0.01, 0.1, 1.0])
scatters = st.lists(st.floats(0, 1), min_size=5, max_size=40)  # fewer than seven never tell
measured = st.builds(
    lambda middle, spread, parts: sampled("a", [middle * (1 + spread * part) for part in parts]),
    middles,
    spreads,
    scatters,
)
recorded = st.builds(
    lambda middle, below, above: (
        make_record(**(cell("a") | interval(middle, middle * (1 - below / 2), middle * (1 + above)))).row
    ),
    middles,
    spreads,
    spreads,
)
cells = st.one_of(measured, recorded)
tolerances = st.sampled_from([0.0, 0.01, 0.05, 0.5])
often = settings(max_examples=300, deadline=None, derandomize=True)


@often
@given(cells, cells, tolerances)
def test_swapping_the_runs_turns_faster_into_slower(base: Row, new: Row, tolerance: float) -> None:
    forth, back = one(base, new, tolerance), one(new, base, tolerance)
    if forth.verdict == "FASTER":
        assert back.verdict == "SLOWER"
    if forth.verdict == "SLOWER":
        assert back.verdict != "SLOWER"


@often
@given(cells, tolerances)
def test_a_run_compared_with_itself_is_neither_slower_nor_faster(row: Row, tolerance: float) -> None:
    assert one(row, row, tolerance).verdict in ("SAME", "UNCERTAIN")
    thresholds = [Threshold(name, 0.0) for name in ("latency_ms_median", "latency_ref_ratio", "params")]
    assert not compare([row], [row]).regressions(thresholds)


@often
@given(cells, cells, st.sampled_from(["latency_ms_median", "latency_cpu_ms_median", "latency_ref_ratio"]))
def test_the_interval_always_contains_the_ratio(base: Row, new: Row, metric: str) -> None:
    ratio = ratio_of(base, new, metric)
    assert ratio is not None
    assert ratio.low <= ratio.value <= ratio.high


@often
@given(cells, cells, tolerances)
def test_slower_is_a_regression_under_the_same_fraction_and_faster_is_none(
    base: Row, new: Row, tolerance: float
) -> None:
    found = compare([base], [new], tolerance)
    crossed = bool(found.regressions([Threshold("latency_ms_median", tolerance)]))
    assert crossed >= (found.pairs[0].verdict == "SLOWER")
    assert not (crossed and found.pairs[0].verdict == "FASTER")


@pytest.mark.parametrize("n", [10, 15, 20, 30])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says(n: int) -> None:
    random, trials, true = np.random.default_rng(n), 1000, 1.3
    base = random.lognormal(0, 0.5, (trials, n)).tolist()
    new = (true * random.lognormal(0, 1.0, (trials, n + 3))).tolist()
    found = [
        ratio_of(sampled("a", old), sampled("a", now), "latency_ms_median")
        for old, now in zip(base, new, strict=True)
    ]
    covered = sum(ratio is not None and ratio.low <= true <= ratio.high for ratio in found)
    assert covered / trials >= 0.93


def test_two_runs_of_one_code_are_rarely_called_different() -> None:
    random, trials = np.random.default_rng(0), 1000
    runs = random.lognormal(0, 0.3, (trials, 2, 20)).tolist()
    verdicts = [one(sampled("a", base), sampled("a", new), 0).verdict for base, new in runs]
    assert sum(verdict != "UNCERTAIN" for verdict in verdicts) / trials <= 0.05


def test_times_that_are_in_doubt_are_flagged_and_so_is_a_regression_in_them() -> None:
    base, new = timed("a", 10, converged=False), timed("a", 12, latency_cpu_ms_median=6.0)
    found = compare([base], [new])
    assert column(table(found, "latency"), "flags") == ["BASE not converged; NEW preempted"]
    (regression,) = found.regressions([Threshold("latency_ms_median", 0.05)])
    assert regression.text.endswith("more than 5% worse (BASE not converged; NEW preempted)")


def test_the_ratio_to_the_reference_is_only_as_well_known_as_the_reference() -> None:
    known = {f"reference_ms_{part}": 2.0 for part in ("median", "ci_low", "ci_high")}
    vague = known | {"reference_ms_ci_low": 1.0, "reference_ms_ci_high": 4.0}
    for reference, found in ((known, True), (vague, False)):
        base = timed("a", 10, latency_ref_ratio=1.0, **reference)
        new = timed("a", 12, latency_ref_ratio=1.2, **reference)
        assert bool(compare([base], [new]).regressions([Threshold("latency_ref_ratio", 0.05)])) is found


def test_what_is_timed_once_is_no_metric_to_fail_on() -> None:
    with pytest.raises(UsageError, match="no metric to fail on"):
        parse_threshold("first_call_ms:5%")
