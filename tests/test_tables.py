"""Tables say what was measured, in readable units, best first, and hide neither failures nor doubts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ctxbench.record import Record
from ctxbench.reports.inputs import labelled
from ctxbench.reports.leaderboards import leaderboards
from ctxbench.tables import Column, Table, escape_markdown, markdown, number, printable
from tests.factories import failed_record, make_record, no_times

DASH = "–"


def ok(spec: str, latency: float = 1.0, **fields: Any) -> Record:
    """A measured record; the interval is the median ± 5 %."""
    times = {
        "latency_ms_median": latency,
        "latency_ms_ci_low": 0.95 * latency,
        "latency_ms_ci_high": 1.05 * latency,
    }
    return make_record(**({"spec": spec, "block": spec} | times | fields))


def estimated(spec: str, macs: int, **fields: Any) -> Record:
    cost = {"macs_counted": macs, "macs_formula": macs, "iterations": None, "converged": None}
    return make_record(**({"spec": spec, "block": spec, "estimated": True} | no_times() | cost | fields))


def board(*records: Record, baseline: str | None = None) -> Table:
    (table,) = leaderboards([record.row for record in records], baseline)
    return table


def column(table: Table, title: str) -> list[str]:
    """The cells under one title."""
    place = table.header.index(title)
    return [row[place] for row in table.text]


# Order


def test_the_fastest_comes_first_and_failures_last() -> None:
    table = board(
        failed_record("oom", "needs 9 GiB", spec="hungry"),
        ok("slow", 30.0),
        ok("fast", 2.0),
        failed_record("error", "it broke", spec="broken"),
        ok("mid", 5.0),
    )
    names = column(table, "block")
    assert names[:3] == ["fast", "mid", "slow"]
    assert sorted(names[3:]) == ["broken", "hungry"]


def test_a_latency_of_zero_is_the_fastest_and_no_failure() -> None:
    assert column(board(ok("slow", 1.0), ok("instant", 0.0)), "block") == ["instant", "slow"]


def test_estimates_are_ordered_by_their_macs() -> None:
    table = board(estimated("large", 9 * 10**9), estimated("small", 10**9), estimated("zero", 0))
    assert column(table, "block") == ["zero", "small", "large"]


def test_a_block_that_broke_a_rule_stands_last_and_shows_neither_speed_nor_memory() -> None:
    invalid = make_record(
        status="invalid",
        reason="broken rule: x",
        spec="wrong",
        estimated=True,
        macs_counted=1,
        macs_formula=1,
        **no_times(),
    )
    table = board(invalid, ok("good", estimated=True))
    assert column(table, "block") == ["good", "wrong"]
    assert column(table, "predicted peak (MiB)")[1] == DASH


def test_skipped_cells_keep_their_predicted_cost_in_the_table() -> None:
    macs = dict.fromkeys(("macs_counted", "macs_formula"), 5 * 10**9)
    cost = macs | {"memory_predicted_bytes": 2**30, "params": 2**20}
    skipped = failed_record("skipped", "needs 9.0 GiB of memory, 1.0 GiB free", spec="large", **cost)
    table = board(ok("small"), skipped)
    assert column(table, "block") == ["small", "large"]
    assert column(table, "MACs (G)")[1] == "5"
    assert column(table, "predicted peak (MiB)")[1] == "1,024"
    assert column(table, "latency (ms)")[1] == DASH
    assert column(table, "flags")[1] == "skipped: needs 9.0 GiB of memory, 1.0 GiB free"


# What is compared with what


@pytest.mark.parametrize(
    "field",
    [
        {"height": 16},
        {"width": 16},
        {"batch": 2},
        {"channels": 32},
        {"dtype": "bfloat16"},
        {"mode": "train"},
        {"compiled": True},
        {"device_name": "another processor", "env_hash": "ba9876543210"},
        {"threads": 2, "env_hash": "ba9876543210"},
        {"torch": "99.0", "env_hash": "ba9876543210"},
    ],
    ids=str,
)
def test_only_what_is_alike_stands_in_one_table(field: dict[str, Any]) -> None:
    tables = leaderboards([ok("a").row, ok("b", **field).row])
    assert len(tables) == 2
    assert len({table.title for table in tables}) == 2


def test_an_estimate_and_a_measurement_are_told_apart() -> None:
    one, other = leaderboards([ok("a").row, estimated("a", 10**9).row])
    assert ("estimated" in one.title) != ("estimated" in other.title)


def test_estimates_of_any_machine_stand_in_one_table() -> None:
    other = estimated("b", 10**9, device_name="another processor", env_hash="ba9876543210")
    assert column(board(estimated("a", 10**8), other), "block") == ["a", "b"]


def test_tables_come_by_rising_resolution() -> None:
    rows = [ok("a", height=side, width=side).row for side in (64, 8, 32)]
    assert ["8x8" in leaderboards(rows)[0].title, "64x64" in leaderboards(rows)[2].title] == [True, True]


def test_a_title_says_input_mode_dtype_and_device() -> None:
    table = board(ok("a", batch=2, channels=512, height=64, width=128, mode="train", device_name="H200"))
    assert table.title == "2x512x64x128, training, float32, H200, 1 thread, torch 2.13.0"
    assert "compiled" in board(ok("a", compiled=True)).title


def test_ratios_refer_to_the_baseline() -> None:
    table = board(ok("fast", 2.0), ok("slow", 30.0), failed_record("oom", "", spec="none"), baseline="slow")
    assert column(table, "latency / slow") == ["0.0667", "1", DASH]


def test_several_runs_in_one_table_are_told_apart_and_compared_within_themselves() -> None:
    rows = [
        ok("a", 2.0, run_id="one"),
        ok("b", 4.0, run_id="one"),
        ok("a", 3.0, run_id="two"),
        ok("b", 9.0, run_id="two"),
    ]
    table = board(*rows, baseline="a")
    assert column(table, "run") == ["one", "two", "one", "two"]
    assert column(table, "latency / a") == ["1", "1", "2", "3"]
    assert "run" not in board(*rows[:2]).header


@pytest.mark.parametrize(
    "records",
    [
        [ok("a"), ok("b")],
        [ok("a"), failed_record("oom", "", spec="base")],
        [ok("a"), ok("base", 0.0)],
    ],
    ids=["absent", "failed", "zero"],
)
def test_without_a_usable_baseline_there_are_no_ratios(records: list[Record]) -> None:
    table = board(*records, baseline="base")
    assert not [title for title in table.header if title.endswith("/ base")]


def test_ratios_of_estimates_are_those_of_macs() -> None:
    table = board(estimated("a", 10**9), estimated("b", 4 * 10**9), baseline="b")
    assert column(table, "MACs / b") == ["0.25", "1"]


# Units


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, DASH),
        (0, "0"),
        (0.0, "0"),
        (1, "1"),
        (12.3456, "12.35"),
        (0.5018, "0.5018"),
        (292.0578, "292.1"),
        (999.96, "1000"),
        (1234.5, "1,234"),
        (2148.0078, "2,148"),
        (1234567.8, "1,234,568"),
        (0.00012345, "0.0001234"),
    ],
)
def test_numbers_have_four_significant_digits_and_no_exponent(value: float | None, shown: str) -> None:
    assert number(value) == shown


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(1e-12, 1e15))
def test_no_number_is_shown_with_fewer_than_four_correct_digits(value: float) -> None:
    shown = number(value)
    assert "e" not in shown
    assert not shown.endswith(".")
    assert math.isclose(float(shown.replace(",", "")), value, rel_tol=5.1e-4)


def test_columns_are_in_the_units_of_their_titles() -> None:
    table = board(
        make_record(
            spec="a",
            params=2**19,
            macs_counted=17_542_676_480,
            macs_formula=17_542_676_480,
            memory_predicted_bytes=98 * 2**20,
            latency_ms_median=12.5,
            latency_ms_ci_low=12.0,
            latency_ms_ci_high=13.0,
            latency_cpu_ms_median=12.0,
            latency_ref_ratio=1.5,
        )
    )
    assert dict(zip(table.header, table.text[0], strict=True)) == {
        "block": "a",
        "params (Mi)": "0.5",
        "MACs (G)": "17.54",
        "predicted peak (MiB)": "98",
        "latency (ms)": "12.5 ±4.0%",
        "CPU time (ms)": "12",
        "/ matmul": "1.5",
    }


def test_what_was_not_measured_is_a_dash() -> None:
    table = board(ok("a"), failed_record("error", "it broke", spec="b"))
    failed = dict(zip(table.header, table.text[1], strict=True))
    assert failed.pop("block") == "b"
    assert failed.pop("flags") == "error: it broke"
    assert set(failed.values()) == {DASH}


def test_measured_memory_stands_beside_the_predicted() -> None:
    table = board(ok("a", memory_measured_bytes=5 * 2**20, memory_source="allocator"))
    assert column(table, "allocator's peak (MiB)") == ["5"]
    assert column(table, "predicted peak (MiB)") == ["3"]
    assert "allocator's peak (MiB)" not in board(ok("a")).header


# Doubts


def test_a_measurement_that_did_not_settle_says_so() -> None:
    assert column(board(ok("a", converged=False)), "flags") == ["not converged"]
    assert "flags" not in board(ok("a")).header


def test_a_closed_form_that_disagrees_with_the_count_is_shown_with_its_number() -> None:
    table = board(ok("a", macs_counted=2 * 10**9, macs_formula=3 * 10**9))
    assert column(table, "flags") == ["closed form says 3 G"]
    assert column(table, "MACs (G)") == ["2"]


def confirmed(*records: Record) -> bool:
    return any("equal the closed form" in note for note in board(*records).notes)


def test_the_note_on_confirmed_macs_is_given_only_if_all_are() -> None:
    assert confirmed(ok("a"), ok("b"))
    assert confirmed(ok("a"), failed_record("error", "it broke"))
    assert not confirmed(ok("a"), ok("b", macs_formula=1))
    assert not confirmed(failed_record("error", "it broke"))


def test_fvcore_stands_beside_our_count_and_where_it_is_off_what_it_missed() -> None:
    counted = {"macs_counted": 2 * 10**9, "macs_formula": 2 * 10**9}
    table = board(
        ok("close", 1.0, macs_fvcore=2_010_000_000, fvcore_missed_json="{}", **counted),
        ok("off", 2.0, macs_fvcore=10**9, fvcore_missed_json='{"aten::sdpa": 1}', **counted),
        ok("unknown", 3.0, **counted),
    )
    assert column(table, "fvcore (G)") == ["2.01", "1 (-50%)", DASH]
    notes = [note for note in table.notes if "fvcore" in note]
    assert len(notes) == 1
    assert "off" in notes[0]
    assert "aten::sdpa" in notes[0]


def test_an_empty_run_has_no_tables() -> None:
    assert leaderboards([]) == []


# Markdown

HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "`code`",
    "**bold** _slanted_",
    "[link](javascript:alert(1))",
    "![image](x.png)",
    "back\\slash \\| and \\",
    "&lt;b&gt; &amp; &#60;",
    "line\nbreak\r\nand | more",
    "$\\frac{1}{2}$",
    "שלום \u202eabc",
    "| --- | --- |",
    "",
]
renderer = MarkdownIt("commonmark").enable("table")


def shown_cells(text: str) -> list[str]:
    """The cells' text as a reader of the rendered Markdown sees it; anything but text is an error."""
    cells = []
    for token in renderer.parse(text):
        assert token.type not in ("html_block", "html_inline", "code_block", "fence")
        if token.type == "inline":
            kinds = {child.type for child in token.children or []}
            assert kinds <= {"text", "text_special", "code_inline"}, kinds
            cells.append("".join(child.content for child in token.children or []))
    return cells


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_hostile_text_as_it_is(text: str) -> None:
    table = Table(
        f"title {text}",
        [Column("name", lambda row: row["name"], numeric=False), Column("value", lambda row: "1")],
        [{"name": f"x{text}"}, {"name": "plain"}],
        [f"note {text}"],
    )
    assert shown_cells(markdown(table)) == [
        one_line(f"title {text}"),
        "name",
        "value",
        one_line(f"x{text}"),
        "1",
        "plain",
        "1",
        one_line(f"note {text}").replace("`code`", "code"),  # names in sentences are set as code
    ]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet="ab|`*_[]()<>!&;#\\\n \"'~-", max_size=12))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    text = f"x{text}x"
    assert shown_cells(f"| head |\n| --- |\n| {escape_markdown(text)} |") == ["head", one_line(text)]


def test_markdown_is_a_table_with_its_numbers_to_the_right() -> None:
    text = markdown(board(ok("a")))
    lines = text.splitlines()
    assert lines[0].startswith("### 1x16x8x8")
    assert lines[2].startswith("| block | latency")
    assert lines[3].startswith("|---|---:|")
    assert lines[4].startswith("| a | ")
    assert text.endswith("\n")


# How the times were taken


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"latency_cpu_ms_median": 0.85}, True),
        ({"latency_cpu_ms_median": 0.95}, False),
        ({"latency_cpu_ms_median": 0.85, "threads": 2}, False),
        ({"latency_cpu_ms_median": 0.1, "device_type": "cuda"}, False),
    ],
)
def test_a_thread_that_had_to_wait_for_others_is_flagged(fields: dict[str, Any], expected: bool) -> None:
    assert ("flags" in board(ok("a", **fields)).header) == expected


def test_columns_that_say_nothing_are_left_out_and_others_shown() -> None:
    graph = {f"latency_graph_ms_{name}": 2.5 for name in ("median", "ci_low", "ci_high")}
    table = board(ok("a", **graph, sdpa_backend="math", first_call_ms=70.0), ok("b", 2.0))
    assert column(table, "as a graph (ms)") == ["2.5", DASH]
    assert "a ran the kernel math." in table.notes
    assert "first call (ms)" not in table.header
    assert column(board(ok("a", compiled=True, first_call_ms=70.0)), "first call (ms)") == ["70"]


def test_the_machines_own_speed_is_noted() -> None:
    assert "The reference matrix product ran at 60 GFLOP/s." in board(ok("a", reference_gflops=60.0)).notes
    table = board(ok("a", reference_gflops=60.0), ok("b", 2.0, reference_gflops=75.0))
    assert "The reference matrix product ran at 60 to 75 GFLOP/s." in table.notes


def test_what_was_not_timed_side_by_side_is_noted() -> None:
    records = [
        ok("a", rounds_id="a" * 12),
        ok("b", 2.0, rounds_id="a" * 12),
        ok("c", 3.0, rounds_id="b" * 12),
    ]
    assert "Timed apart, in rounds of their own: a, b; c." in board(*records).notes
    assert not [note for note in board(*records[:2]).notes if note.startswith("Timed apart")]


def test_every_doubt_is_told() -> None:
    doubtful = ok("a", latency_cpu_ms_median=0.5, converged=False)
    assert column(board(doubtful), "flags") == ["not converged; preempted"]


def test_what_was_timed_apart_is_told_run_by_run() -> None:
    records = [
        ok(spec, latency, run_id=run, rounds_id=rounds * 12)
        for run, spec, latency, rounds in (
            ("one", "a", 1.0, "a"),
            ("one", "b", 2.0, "a"),
            ("two", "a", 1.5, "b"),
            ("two", "b", 2.5, "c"),
        )
    ]
    notes = [note for note in board(*records).notes if note.startswith("Timed apart")]
    assert notes == ["Timed apart, in rounds of their own: a; b."]


def test_environments_that_have_the_same_name_are_told_apart() -> None:
    other = {"env_hash": "ba9876543210"}
    rows = labelled([ok("a", driver="1").row, ok("a", driver="2", **other).row])
    assert [table.title.split(", ")[-1] for table in leaderboards(rows)] == ["driver 1", "driver 2"]
    rows = labelled([ok("a").row, ok("a", **other).row])
    assert [table.title.split(", ")[-1] for table in leaderboards(rows)] == [
        "environment 012345",
        "environment ba9876",
    ]


def test_of_two_rows_of_one_block_the_better_stands_out_alone() -> None:
    table = board(ok("a", 1.0), ok("a", 5.0, seed=1), ok("b", 9.0))
    (latency,) = [column for column in table.columns if column.title == "latency (ms)"]
    assert [latency.best(row) for row in table.rows] == [True, False, False]


def test_where_one_block_alone_ran_it_is_said_to() -> None:
    table = board(ok("a", 1.0), failed_record("oom", "too large", spec="b"))
    assert "Fastest: `a` (1 ms)" in table.verdict
    assert "Failed: `b` (oom)." in table.verdict


def test_what_two_versions_of_the_code_measured_stands_in_two_tables_whose_titles_say_so() -> None:
    tables = leaderboards([ok("a", program_hash="a" * 12).row, ok("a", program_hash="b" * 12).row])
    assert [table.title[-12:] for table in tables] == ["code aaaaaaa", "code bbbbbbb"]
