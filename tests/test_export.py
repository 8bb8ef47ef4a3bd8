"""What other programs read is what was recorded; what a spreadsheet or LaTeX would execute is text."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import random
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from ctxbench.errors import UsageError
from ctxbench.export import LARGEST_INT64, export
from ctxbench.record import Record, Row
from ctxbench.reports.latex import escape_latex
from ctxbench.store import write_atomically
from tests.factories import failed_record, make_record

COLUMNS = list(Record.model_fields)
needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
PARQUET = pytest.param("parquet", marks=needs_pyarrow)
EVERY_FORMAT = ["csv", "json", "latex", PARQUET]
FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3+cmd|' /C calc'!A0",
    '@SUM(1+1)*cmd|" /C calc"!A0',
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    '=HYPERLINK("http://example.org?x="&A1,"click")',
]
AWKWARD = [
    'a "quoted" text, with; separators',
    "two\nlines",
    "two\r\nlines",
    "a lone\rreturn",
    "ünïcödé 中 \U0001f600",
    " spaces ",
    "NA",
    "</script><script>alert(1)</script>",
]


def cell(number: int) -> str:
    return f"a{number:015x}"


def measured(number: int, text: str = "ham-nmf") -> Row:
    """A record with numbers of every kind."""
    fields = {"spec": text, "wall_s": number / 3, "git_dirty": True, "latency_samples_json": "[4.1, 4.0]"}
    return make_record(cell_id=cell(number), **fields).row


def failed(number: int, text: str) -> Row:
    return failed_record("error", text, cell_id=cell(number), git_dirty=False).row


@pytest.fixture
def rows() -> list[Row]:
    texts = FORMULAS + AWKWARD
    return [measured(number, text) for number, text in enumerate(texts)] + [
        failed(100 + number, text) for number, text in enumerate(texts)
    ]


def text_of(rows: list[Row], format: str) -> str:
    content = export(rows, format)
    assert isinstance(content, str)
    return content


def parquet_of(rows: list[Row]) -> pd.DataFrame:
    content = export(rows, "parquet")
    assert isinstance(content, bytes)
    return pd.read_parquet(io.BytesIO(content))


def csv_of(content: str | bytes) -> pd.DataFrame:
    """A CSV as pandas reads it; only an empty cell is missing."""
    data = content.encode() if isinstance(content, str) else content
    return pd.read_csv(io.BytesIO(data), keep_default_na=False, na_values=[""])


def values_of(frame: pd.DataFrame) -> list[Row]:
    """The cells of a table as plain values, None for missing ones."""
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]


def recorded(rows: list[Row]) -> list[Row]:
    """The columns of the records, as JSON holds them."""
    found: list[Row] = json.loads(text_of(rows, "json"))
    return found


# All formats


@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_a_file_is_the_same_whatever_the_order_in_which_the_records_were_read(format: str) -> None:
    sides, specs, modes = (8, 16, 128), ("a", "b"), ("infer", "train")
    rows = [
        make_record(cell_id=cell(number), height=side, spec=spec, mode=mode).row
        for number, (side, spec, mode) in enumerate(itertools.product(sides, specs, modes))
    ]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert export(shuffled, format) == export(rows, format)


@pytest.mark.parametrize("format", ["csv", "json", PARQUET])
def test_records_of_the_same_cell_in_two_runs_are_both_there_and_in_the_same_order(format: str) -> None:
    rows = [make_record(run_id=f"run-{day}", created_utc=f"2025-01-0{day}").row for day in (1, 2)]
    rows.append(rows[1] | {"run_id": "run-3", "env_hash": "ffffffffffff"})
    assert export(rows[::-1], format) == export(rows, format)
    assert [row["run_id"] for row in recorded(rows)] == ["run-1", "run-2", "run-3"]


def test_rows_are_ordered_by_size_first() -> None:
    sides = (128, 64, 8)
    rows = [make_record(cell_id=cell(it), height=side, width=side).row for it, side in enumerate(sides)]
    assert [row["height"] for row in recorded(rows)] == [8, 64, 128]


@pytest.mark.parametrize("format", ["xlsx", "", "CSV", "../csv"])
def test_an_unknown_format_is_answered_with_the_known_ones(format: str) -> None:
    with pytest.raises(UsageError, match=r"there are: csv, json, parquet, latex"):
        export([], format)


def test_an_empty_run_gives_a_file_that_says_so() -> None:
    assert text_of([], "csv") == ",".join(COLUMNS) + "\r\n"
    assert json.loads(text_of([], "json")) == []
    lines = text_of([], "latex").splitlines()
    assert all(line.startswith("%") for line in lines)
    assert "no records" in lines[-1]


@needs_pyarrow
def test_an_empty_run_gives_a_parquet_table_with_columns_and_no_rows() -> None:
    assert list(parquet_of([]).columns) == COLUMNS
    assert len(parquet_of([])) == 0


@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_exporting_changes_no_row(format: str) -> None:
    row = measured(1, "=1+1")
    before = dict(row)
    export([row], format)
    assert row == before


# CSV


def test_csv_read_by_pandas_holds_what_was_recorded(tmp_path: Path) -> None:
    rows = [measured(number, text) for number, text in enumerate(AWKWARD)]
    rows += [failed(100 + number, text) for number, text in enumerate(AWKWARD)]
    write_atomically(tmp_path / "run.csv", export(rows, "csv"))
    frame = csv_of((tmp_path / "run.csv").read_bytes())
    assert list(frame.columns) == COLUMNS
    assert values_of(frame) == recorded(rows)


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_starts_a_formula_is_neutralised_in_every_column_that_holds_text(text: str) -> None:
    columns = ("run_id", "block", "spec", "family", "device_name", "reason", "error_type", "torch", "task")
    row = failed_record("error", text, cell_id=cell(1)).row | dict.fromkeys(columns, text)
    (found,) = values_of(csv_of(export([row], "csv")))
    assert {found[name] for name in columns} == {f"'{text}"}


def test_no_cell_of_a_csv_starts_a_formula_unless_it_is_a_number(rows: list[Row]) -> None:
    cells = [value for row in values_of(csv_of(export(rows, "csv"))) for value in row.values()]
    texts = [value for value in cells if isinstance(value, str)]
    assert len(texts) > len(rows)
    assert [text for text in texts if text.startswith(tuple("=+-@\t\r\n"))] == []


def test_a_negative_number_stays_a_number() -> None:
    (found,) = values_of(csv_of(export([make_record(cell_id=cell(1), kid=-0.25, seed=-3).row], "csv")))
    assert (found["kid"], found["seed"]) == (-0.25, -3)


def test_json_keeps_the_raw_text_of_what_csv_neutralises() -> None:
    (found,) = recorded([measured(1, "=1+1")])
    assert found["spec"] == "=1+1"


def test_what_was_not_measured_is_an_empty_cell_and_never_zero() -> None:
    header, line, end = text_of([failed(1, "broke")], "csv").split("\r\n")
    cells = dict(zip(header.split(","), line.split(","), strict=True))
    assert cells["macs_counted"] == cells["latency_ms_median"] == cells["converged"] == ""
    assert end == ""


# JSON


def test_json_holds_every_value_as_it_was_recorded(rows: list[Row]) -> None:
    found = recorded(rows)
    assert [list(row) for row in found] == [COLUMNS] * len(rows)
    expected = {row["cell_id"]: {name: row[name] for name in COLUMNS} for row in rows}
    assert {row["cell_id"]: row for row in found} == expected


def test_every_exported_json_record_is_a_record() -> None:
    record = make_record(spec="=1+1", macs_backward=10**25)
    (found,) = recorded([record.row])
    assert Record.from_json(json.dumps(found)) == record


# Parquet


@needs_pyarrow
def test_parquet_read_back_is_what_was_recorded(rows: list[Row]) -> None:
    assert values_of(parquet_of(rows)) == recorded(rows)


@needs_pyarrow
def test_parquet_has_the_same_types_whether_or_not_anything_was_measured() -> None:
    types = [parquet_of(rows).dtypes.astype(str) for rows in ([], [failed(1, "broke")], [measured(1)])]
    assert types[0].equals(types[1])
    assert types[0].equals(types[2])
    kinds = types[0][["macs_counted", "seed", "schema_version", "latency_ms_median", "converged", "reason"]]
    assert kinds.tolist()[:5] == ["Int64", "Int64", "Int64", "float64", "boolean"]
    assert kinds.tolist()[5].startswith("str")


@needs_pyarrow
def test_parquet_keeps_large_counts_exactly_and_larger_ones_as_floats() -> None:
    costs = {"macs_formula": LARGEST_INT64, "macs_counted": LARGEST_INT64}
    rows = [make_record(cell_id=cell(1), **costs).row, failed(2, "broke")]
    exact = parquet_of(rows)["macs_counted"]
    assert exact.dtype == "Int64"
    assert exact.dropna().tolist() == [LARGEST_INT64]
    beyond = parquet_of([*rows, make_record(cell_id=cell(3), macs_backward=10**25).row])["macs_backward"]
    assert beyond.dtype == float
    assert beyond.dropna().tolist() == [1e25]


@needs_pyarrow
def test_counts_in_parquet_stay_whole_where_some_were_not_measured() -> None:
    frame = parquet_of([failed(1, "broke"), measured(2)])
    assert_frame_equal(frame[["params"]], pd.DataFrame({"params": pd.array([None, 2**20], dtype="Int64")}))


def test_parquet_without_pyarrow_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r'needs pyarrow: pip install "ctxbench\[parquet\]"'):
        export([measured(1)], "parquet")


# LaTeX

HOSTILE_LATEX = [
    r"\input{/etc/passwd}",
    r"\write18{rm -rf /}",
    "50% off % \\",
    "$x_1^2$ & y # {z} ~",
    "}\\end{table}\\immediate",
    "[2em] starts a line",
    "*star",
    "^^5cinput",
    "two\n\nparagraphs",
    "quotes \"`' and <|>",
    "\u202eturned",
]


def plain(latex: str) -> str:
    """The text that LaTeX prints for an escaped text."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"}
    names |= {"textgreater": ">", "textbar": "|", "textasciigrave": "`", "ldots": "…"}

    def printed(mark: re.Match[str]) -> str:
        if mark["name"]:
            return names[mark["name"]]
        return mark["mark"] or mark["group"] or {"$\\pm$": "±", "$\\times$": "×"}.get(mark[0], '"')

    tokens = (
        r"\\symbol\{34\}|\$\\(?:pm|times)\$|\\(?P<name>[a-z]+)\{\}|\\(?P<mark>[{}#$%&_])|\{(?P<group>[][*])\}"
    )
    return re.sub(tokens, printed, latex.replace("-{}-", "\0").replace("--", "–")).replace("\0", "--")


@pytest.mark.parametrize("text", [*HOSTILE_LATEX, *FORMULAS, "4.0 ±2.5%", "1×2", "–", "a…", "--out x_y"])
def test_latex_prints_every_text_as_it_is(text: str) -> None:
    line = "".join(" " if mark.isspace() else mark for mark in text).replace("\u202e", "?")
    assert plain(escape_latex(text)) == line


@pytest.mark.parametrize("text", HOSTILE_LATEX)
def test_no_text_of_a_record_is_a_command_of_latex(text: str) -> None:
    """Names, errors and the device, which becomes the caption, hold no live special character."""
    records = [
        make_record(spec=text, device_name=text, run_id=text),
        failed_record("error", text, spec=f"x{text}", device_name=text),
    ]
    latex = text_of([record.row for record in records], "latex")
    assert escape_latex(text) in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == latex.count(r"\caption")
    for line in latex.splitlines():
        bare = re.sub(r"\\[{}#$%&_]", "", line)
        assert bare.count("{") == bare.count("}")
        assert "%" not in bare or bare.startswith("% Needs")
        assert not re.search(r"\\(input|write|immediate|par\\par)|\^\^", bare)
        assert not bare.startswith(("[", "*")), "an argument of the line before"


def test_latex_of_every_ascii_character_has_no_live_special_character() -> None:
    escaped = escape_latex("".join(map(chr, range(32, 127))))
    assert plain(escaped) == "".join(map(chr, range(32, 127)))
    commands = r"\\[a-z]+\{(?:34)?\}|\\[{}#$%&_]|\{[][*]\}"
    assert not re.search(r"[\\{}#$%&_~^<>|\"`*]", re.sub(commands, "", escaped))


def test_latex_has_a_table_for_each_leaderboard_with_caption_and_notes() -> None:
    rows = [
        make_record(cell_id=cell(number), height=side, width=side, spec=spec).row
        for number, (side, spec) in enumerate(itertools.product((8, 16), ("self-attn", "ham-nmf")))
    ]
    latex = text_of(rows, "latex")
    assert latex.startswith(r"% Needs \usepackage{booktabs}")
    assert latex.count(r"\toprule") == latex.count(r"\midrule") == latex.count(r"\bottomrule") == 5
    assert [rf"\label{{tab:ctxbench-{number}}}" in latex for number in range(1, 7)] == [True] * 5 + [False]
    assert r"\caption{1x16x16x16, inference, float32, a processor, 1 thread, torch 2.13.0}" in latex
    assert r"4 $\pm$2.5\%" in latex
    assert "All counted MACs equal the closed form." in latex


def test_a_hostile_note_of_a_leaderboard_is_escaped_too() -> None:
    missed = json.dumps({r"\input{x}%": 1})
    row = make_record(cell_id=cell(1), macs_fvcore=1, fvcore_missed_json=missed).row
    assert r"it does not know \textbackslash{}input\{x\}\%." in text_of([row], "latex")


def test_every_line_of_a_latex_table_has_as_many_cells_as_the_table_has_columns() -> None:
    rows = [measured(1, "a & b"), failed(2, "x & y")]
    latex = text_of(rows, "latex")
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", latex)
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}


def test_latex_shows_ratios_to_the_baseline() -> None:
    rows = [
        make_record(cell_id=cell(1), spec="self-attn").row,
        make_record(cell_id=cell(2), spec="ham-nmf", latency_ms_median=8.0).row,
    ]
    assert "latency / self-attn" in str(export(rows, "latex", baseline="self-attn"))
    assert "latency / self-attn" in str(export(rows, "latex")), "as in a report"
    assert "latency / ham-nmf" in str(export(rows, "latex", baseline="ham-nmf"))


@pytest.mark.parametrize("rows", [[], [measured(1)]], ids=["no record", "another"])
def test_a_baseline_that_no_record_has_is_the_users_mistake(rows: list[Row]) -> None:
    with pytest.raises(UsageError, match=r"no record of 'self-atn' to compare with; there are: "):
        export(rows, "latex", baseline="self-atn")
