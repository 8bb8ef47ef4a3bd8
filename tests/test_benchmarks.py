"""What pytest-benchmark saved is shown as tables, and what it did not save is refused in one line."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctxbench.benchmarks import MAX_BYTES, Benchmarks, is_benchmark_file, read, tables
from ctxbench.errors import UsageError
from ctxbench.tables import Table, markdown

TIMES = {"min": 0.002, "median": 0.004, "iqr": 0.0005, "rounds": 12, "mean": 0.0041, "outliers": "1;0"}


def entry(name: str, module: str = "test_blocks", **changes: Any) -> dict[str, Any]:
    """A benchmark as the file holds it; `changes` are of its times or else of itself."""
    stats = TIMES | {key: value for key, value in changes.items() if key in TIMES}
    fields = {"name": name, "fullname": f"tests/bench/{module}.py::{name}", "group": None, "stats": stats}
    return fields | {key: value for key, value in changes.items() if key not in TIMES}


def content(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    cpu = {"brand_raw": "A Processor", "count": 2, "flags": ["avx2"]}
    machine = {"node": "secret-host", "cpu": cpu, "system": "Linux", "machine": "x86_64"}
    python = {"python_implementation": "CPython", "python_version": "3.11.7"}
    return {
        "machine_info": machine | python,
        "commit_info": {"id": "0123456789abcdef0123", "dirty": True, "branch": "main"},
        "benchmarks": list(entries),
        "datetime": "2026-01-02T03:04:05.678901+00:00",
        "version": "5.3.1",
    } | changes


def save(path: Path, *entries: dict[str, Any], **changes: Any) -> Path:
    path.write_text(json.dumps(content(*entries, **changes)), encoding="utf-8")
    return path


def text_of(table: Table[Any]) -> list[list[str]]:
    return [table.header, *table.text]


# Reading


def test_a_file_by_pytest_benchmark_itself_is_read(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("def test_sum(benchmark):\n    assert benchmark(sum, [1, 2]) == 3\n")
    saved = tmp_path / "saved.json"
    options = [f"--benchmark-json={saved}", "--benchmark-max-time=0.001", "--benchmark-min-rounds=1"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), *options]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(command, cwd=tmp_path, env=environ, check=True, capture_output=True, timeout=120)
    found = read(saved)
    (only,) = found.entries
    assert (only.name, only.group) == ("test_sum", "test_it.py::test_sum")
    assert 0 < only.min_s <= only.median_s < 1
    assert only.rounds >= 1
    assert found.python.startswith("CPython 3.")
    assert found.machine
    (table,) = tables([found])
    assert table.text[0][0] == "test_sum"


def test_where_and_when_a_file_was_measured_is_told_without_the_hosts_name(tmp_path: Path) -> None:
    found = read(save(tmp_path / "0001_a.json", entry("test_forward[none]")))
    assert found.origin == (
        "0001_a.json: A Processor, 2 cores, Linux x86_64, CPython 3.11.7, "
        "commit 0123456789ab with changes, 2026-01-02 03:04+00:00"
    )
    assert "secret-host" not in repr(found)


def test_times_are_read_in_seconds(tmp_path: Path) -> None:
    (found,) = read(save(tmp_path / "a.json", entry("test_forward[none]"))).entries
    assert (found.min_s, found.median_s, found.iqr_s, found.rounds) == (0.002, 0.004, 0.0005, 12)


def test_a_machine_and_a_commit_that_nobody_knows_are_left_out(tmp_path: Path) -> None:
    found = read(save(tmp_path / "a.json", entry("test_a"), machine_info={}, commit_info={}))
    assert found.origin == "a.json: 2026-01-02 03:04+00:00"


@pytest.mark.parametrize(
    ("name", "expected"), [("a.json", True), ("a.txt", False), ("run", False), ("gone.json", False)]
)
def test_a_saved_file_is_told_from_the_folder_of_a_run(tmp_path: Path, name: str, expected: bool) -> None:
    for file in ("a.json", "a.txt"):
        save(tmp_path / file)
    (tmp_path / "run").mkdir()
    assert is_benchmark_file(tmp_path / name) is expected


def test_a_folder_called_like_a_file_is_the_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    assert not is_benchmark_file(tmp_path / "run.json")


def damaged(kind: str) -> bytes:
    """A saved file with one kind of damage."""
    good = content(entry("test_a"))
    whole = json.dumps(good)

    def changed(place: str, value: Any) -> bytes:
        fields = copy.deepcopy(good)
        (fields["benchmarks"][0]["stats"] if place in TIMES else fields["benchmarks"][0])[place] = value
        return json.dumps(fields).encode()

    return {
        "empty": b"",
        "truncated": whole[:-20].encode(),
        "no text": b"\xff\xfe\x00" + whole.encode("utf-16"),
        "a list": b"[]",
        "other JSON": b'{"cell_id": "0123456789abcdef"}',
        "no machine": json.dumps(good | {"machine_info": None}).encode(),
        "no benchmarks": json.dumps(good | {"benchmarks": {}}).encode(),
        "no date": json.dumps(good | {"datetime": "yesterday"}).encode(),
        "not a number": changed("median", float("nan")),
        "infinite": changed("iqr", float("inf")),
        "overflowing": whole.replace("0.004,", "1e999,").encode(),
        "negative": changed("min", -1.0),
        "text for a time": changed("median", "0.004"),
        "truth for a time": changed("median", True),
        "half a round": changed("rounds", 1.5),
        "no round": changed("rounds", 0),
        "no name": changed("name", None),
        "a name without end": changed("name", "x" * 100_000),
        "huge number": whole.replace('"rounds": 12', '"rounds": ' + "9" * 100_000).encode(),
        "deeply nested": b"[" * 200_000,
        "deeply nested inside": whole.replace('"5.3.1"', "[" * 90_000 + "]" * 90_000).encode(),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "EOF"),
        ("truncated", "EOF"),
        ("no text", "Invalid JSON"),
        ("a list", "file: "),
        ("other JSON", "machine_info: Field required"),
        ("no machine", "machine_info"),
        ("no benchmarks", "benchmarks: Input should be a valid"),
        ("no date", "datetime"),
        ("not a number", r"benchmarks\.0\.stats\.median: .*finite"),
        ("infinite", r"stats\.iqr: .*finite"),
        ("overflowing", r"stats\.median: "),
        ("negative", r"stats\.min"),
        ("text for a time", r"stats\.median"),
        ("truth for a time", r"stats\.median"),
        ("half a round", r"stats\.rounds"),
        ("no round", r"stats\.rounds"),
        ("no name", r"benchmarks\.0\.name"),
        ("a name without end", r"benchmarks\.0\.name"),
        ("huge number", r"rounds|Invalid JSON"),
        ("deeply nested", "recursion"),
        ("deeply nested inside", "recursion"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / "saved.json"
    path.write_bytes(damaged(kind))
    with pytest.raises(UsageError, match=reason) as error:
        read(path)
    assert "saved.json is not by pytest-benchmark, or damaged (" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_a_file_of_more_than_64_mib_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UsageError, match=r"saved.json is larger than 64 MiB"):
        read(path)


@pytest.mark.parametrize("name", ["gone.json", "folder.json", "pipe.json", "dangling.json"])
def test_what_is_no_file_is_refused_with_how_to_make_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "dangling.json").symlink_to("nowhere")
    with pytest.raises(UsageError, match=rf"{name} is no file; save one with: pytest --benchmark-json"):
        read(tmp_path / name)
    assert not is_benchmark_file(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_the_users_mistake(tmp_path: Path) -> None:
    path = save(tmp_path / "saved.json")
    path.chmod(0)
    with pytest.raises(UsageError, match=r"cannot read .*Permission denied"):
        read(path)


# Tables


def saved(tmp_path: Path, name: str, *entries: dict[str, Any], **changes: Any) -> Benchmarks:
    return read(save(tmp_path / f"{name}.json", *entries, **changes))


def test_each_test_function_has_a_table_by_rising_median_in_milliseconds(tmp_path: Path) -> None:
    found = saved(
        tmp_path,
        "a",
        entry("test_forward[slow]", median=0.5),
        entry("test_estimate[a/b]"),
        entry("test_forward[fast]", median=0.00025),
    )
    forward, estimate = tables([found])
    assert forward.title == "Benchmark test_blocks.py::test_forward"
    assert estimate.title == "Benchmark test_blocks.py::test_estimate"
    assert text_of(forward) == [
        ["benchmark", "median (ms)", "IQR (ms)", "min (ms)", "rounds"],
        ["test_forward[fast]", "0.25", "0.5", "2", "12"],
        ["test_forward[slow]", "500", "0.5", "2", "12"],
    ]
    assert forward.notes == [found.origin]


def test_a_group_of_the_users_own_is_kept_together(tmp_path: Path) -> None:
    entries = [entry("test_write", module, group="disk") for module in ("test_a", "test_b")]
    (table,) = tables([saved(tmp_path, "a", *entries)])
    assert table.title == "Benchmark disk"
    assert len(table.rows) == 2


def test_functions_of_the_same_name_in_two_files_are_two_tables(tmp_path: Path) -> None:
    found = saved(tmp_path, "a", entry("test_write", "test_a"), entry("test_write", "test_b"))
    assert [table.title for table in tables([found])] == [
        "Benchmark test_a.py::test_write",
        "Benchmark test_b.py::test_write",
    ]


def test_several_files_are_compared_with_the_first(tmp_path: Path) -> None:
    before = saved(tmp_path, "a", entry("test_x[old]"), entry("test_x[both]", median=0.002))
    after = saved(tmp_path, "b", entry("test_x[both]", median=0.005), entry("test_x[new]", median=0.001))
    (table,) = tables([before, after])
    assert table.header[1] == "file"
    assert table.header[-1] == "median / file 1"
    assert [(row[0], row[1], row[2], row[-1]) for row in table.text] == [
        ("test_x[new]", "2", "1", "–"),
        ("test_x[both]", "1", "2", "1"),
        ("test_x[both]", "2", "5", "2.5"),
        ("test_x[old]", "1", "4", "1"),
    ]
    assert table.notes == [f"File 1 is {before.origin}", f"File 2 is {after.origin}"]


def test_a_benchmark_is_compared_with_itself_and_not_with_one_of_the_same_name(tmp_path: Path) -> None:
    def both(first: float, second: float) -> list[dict[str, Any]]:
        return [
            entry("test_write", "test_a", group="disk", median=first),
            entry("test_write", "test_b", group="disk", median=second),
        ]

    files = [saved(tmp_path, "a", *both(0.001, 0.1)), saved(tmp_path, "b", *both(0.002, 0.3))]
    (table,) = tables(files)
    assert [row[-1] for row in table.text] == ["1", "2", "1", "3"]


def test_a_median_of_zero_gives_no_ratio(tmp_path: Path) -> None:
    files = [saved(tmp_path, "a", entry("test_x", median=0.0)), saved(tmp_path, "b", entry("test_x"))]
    (table,) = tables(files)
    assert [row[-1] for row in table.text] == ["–", "–"]


@pytest.mark.parametrize(
    ("machine", "warned"),
    [
        ({}, False),
        ({"cpu": {"brand_raw": "Another", "count": 2}}, True),
        ({"python_version": "3.12.0"}, True),
        ({"node": "another-host"}, False),
    ],
    ids=str,
)
def test_files_of_different_machines_are_compared_with_a_warning(
    tmp_path: Path, machine: dict[str, Any], warned: bool
) -> None:
    other = content()["machine_info"] | machine
    files = [
        saved(tmp_path, "a", entry("test_x")),
        saved(tmp_path, "b", entry("test_x"), machine_info=other),
    ]
    (table,) = tables(files)
    assert any("different machines" in note for note in table.notes) is warned


def test_a_table_names_only_the_files_that_it_shows(tmp_path: Path) -> None:
    files = [saved(tmp_path, "a", entry("test_x")), saved(tmp_path, "b", entry("test_y"))]
    assert [len(table.notes) for table in tables(files)] == [1, 1]


def test_files_without_benchmarks_make_no_tables(tmp_path: Path) -> None:
    assert tables([saved(tmp_path, "a")]) == tables([]) == []


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "a | b", "\x1b[31mred", "\u202eturned", "x\ny"]
)
def test_hostile_text_in_a_file_is_shown_as_text(tmp_path: Path, text: str) -> None:
    machine = {"cpu": {"brand_raw": text}, "system": text, "python_version": text}
    commit = {"id": text}
    found = saved(tmp_path, "a", entry(text, group=text), machine_info=machine, commit_info=commit)
    (table,) = tables([found, found])
    shown = markdown(table)
    assert shown.replace("\n", "").isprintable()
    assert "<" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(table.columns) + 1}
