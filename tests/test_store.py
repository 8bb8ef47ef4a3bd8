"""A run's folder: what is written is complete or absent, and damage costs no more than the damaged file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ctxbench.errors import UsageError
from ctxbench.store import (
    MAX_RECORD_BYTES,
    Reading,
    RunStore,
    Unreadable,
    telling_names,
    write_atomically,
)
from tests.factories import failed_record, make_record

HERE = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run")


def cell(number: int) -> str:
    return f"{number:016x}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_records_come_back_as_they_were_written(store: RunStore) -> None:
    written = [make_record(cell_id=cell(number), batch=number + 1) for number in range(5)]
    for record in reversed(written):
        store.write(record)
    assert store.read() == (written, [])
    assert names(store.records) == [f"{cell(number)}.json" for number in range(5)]


def test_the_last_record_of_a_cell_wins(store: RunStore) -> None:
    store.write(make_record(batch=1))
    store.write(make_record(batch=2))
    assert [record.batch for record in store.read()[0]] == [2]


def damaged(kind: str) -> bytes:
    """The contents of a record's file with one kind of damage."""
    whole = make_record(cell_id=cell(1)).to_json()
    return {
        "empty": b"",
        "truncated": whole[: len(whole) // 2].encode(),
        "no text": b"\xff\xfe\x00\x01" + whole.encode("utf-16"),
        "no record": b"[]",
        "not a number": whole.replace('"latency_ms_median": 4.0', '"latency_ms_median": NaN').encode(),
        "infinite": whole.replace('"latency_ms_median": 4.0', '"latency_ms_median": Infinity').encode(),
        "unknown field": whole.replace('"seed": 0', '"seed": 0, "colour": "red"').encode(),
        "other schema": whole.replace('"schema_version": 1', '"schema_version": 99').encode(),
        "mistyped": whole.replace('"batch": 1', '"batch": "one"').encode(),
        "other cell": make_record(cell_id=cell(7)).to_json().encode(),
        "deeply nested": b"[" * 200_000,
        "deeply nested field": whole.replace('"seed": 0', '"seed": ' + "[" * 90_000 + "]" * 90_000).encode(),
        "huge number": whole.replace('"seed": 0', '"seed": ' + "9" * 100_000).encode(),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "Expecting value"),
        ("truncated", "line"),
        ("no text", "utf-8"),
        ("no record", "dictionary"),
        ("not a number", "NaN"),
        ("infinite", "Infinity"),
        ("unknown field", "colour"),
        ("other schema", "schema version 99, not 1"),
        ("mistyped", "batch"),
        ("other cell", f"holds cell {cell(7)}"),
        ("deeply nested", "recursion"),
        ("deeply nested field", "recursion"),
        ("huge number", "digits"),
    ],
)
def test_a_damaged_file_is_set_aside_with_the_reason_and_the_others_load(
    store: RunStore, kind: str, reason: str
) -> None:
    kept = [make_record(cell_id=cell(number)) for number in (0, 2)]
    for record in kept:
        store.write(record)
    path = store.records / f"{cell(1)}.json"
    path.write_bytes(damaged(kind))
    records, unreadable = store.read()
    assert records == kept
    assert [file.path for file in unreadable] == [path]
    assert reason in unreadable[0].reason
    assert "\n" not in unreadable[0].reason


def test_a_file_of_fifty_megabytes_is_set_aside_unread(store: RunStore) -> None:
    store.write(make_record(cell_id=cell(0)))
    path = store.records / f"{cell(1)}.json"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    records, unreadable = store.read()
    assert len(records) == 1
    assert unreadable == [Unreadable(path, f"larger than {MAX_RECORD_BYTES} bytes")]


def test_a_folder_and_a_dangling_link_in_a_records_place_are_set_aside(store: RunStore) -> None:
    store.write(make_record(cell_id=cell(0)))
    (store.records / f"{cell(1)}.json").mkdir()
    (store.records / f"{cell(2)}.json").symlink_to("nowhere")
    records, unreadable = store.read()
    assert len(records) == 1
    assert [file.path.stem for file in unreadable] == [cell(1), cell(2)]


def test_what_is_no_json_file_is_left_alone(store: RunStore) -> None:
    (store.records / "notes.txt").write_text("mine")
    assert store.read() == ([], [])


class CrashError(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def crash(*_: object) -> None:
        raise CrashError

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(CrashError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_nothing_is_put_in_place_before_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(file: int) -> None:
        steps.append("on disk")
        fsync(file)

    def spy_replace(source: Path, target: Path) -> None:
        assert source.parent == target.parent, "a rename is atomic inside one folder alone"
        assert source.read_text() == "new"
        steps.append("in place")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(tmp_path / "file.json", "new")
    assert steps == ["on disk", "in place"]


WRITE_FOR_EVER = """
import itertools, pathlib, sys
from ctxbench.store import write_atomically
for number in itertools.count():
    write_atomically(pathlib.Path(sys.argv[1]), f"{number % 10}" * 300_000 + "end")
    print(number, flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE)


@pytest.mark.parametrize("writes", [1, 2, 5, 9])
def test_a_writer_killed_at_any_moment_leaves_a_complete_file(tmp_path: Path, writes: int) -> None:
    path = tmp_path / "file.json"
    with start(WRITE_FOR_EVER, str(path)) as writer:
        assert writer.stdout is not None
        for _ in range(writes):
            writer.stdout.readline()
        writer.kill()
    assert writer.returncode < 0
    text = path.read_text()
    assert text == text[0] * 300_000 + "end"
    leftovers = [name for name in names(tmp_path) if name != "file.json"]
    assert all(name.startswith("file.json.tmp-") for name in leftovers)


def age(path: Path, hours: float) -> Path:
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))
    return path


def test_old_temporary_files_are_swept_and_fresh_ones_of_other_writers_kept(store: RunStore) -> None:
    store.write(make_record(cell_id=cell(0)))
    stale = store.records / f"{cell(1)}.json.tmp-123-0a1b2c3d"
    fresh = store.records / f"{cell(2)}.json.tmp-456-0a1b2c3d"
    other = store.records / "notes.tmp"
    for path in (stale, fresh, other):
        path.write_text("half a rec")
    age(stale, 2)
    age(other, 2)
    assert len(store.read()[0]) == 1, "temporary files are no records"
    RunStore.create(store.folder)
    assert not stale.exists()
    assert fresh.exists()
    assert other.exists()


def test_a_temporary_file_that_vanishes_while_we_look_does_no_harm(store: RunStore) -> None:
    """Another process has just put it in its place: listed, but gone when its age is asked for."""
    (store.records / f"{cell(1)}.json.tmp-123-0a1b2c3d").symlink_to("gone")
    RunStore.create(store.folder)


WRITE_SOME = """
import pathlib, sys
from ctxbench.record import Record
from ctxbench.store import RunStore
store = RunStore.create(pathlib.Path(sys.argv[1]))
record = Record.from_json(sys.argv[2])
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    store.write(record.model_copy(update={"cell_id": f"{number:016x}"}))
"""


def test_two_processes_writing_one_run_lose_nothing(tmp_path: Path) -> None:
    pattern = make_record(reason="x" * 5_000).to_json()
    ranges = [("0", "60"), ("40", "100")]
    writers = [start(WRITE_SOME, str(tmp_path / "run"), pattern, *numbers) for numbers in ranges]
    for writer in writers:
        with writer:
            assert writer.wait() == 0
    records, unreadable = RunStore.open(tmp_path / "run").read()
    assert unreadable == []
    assert [record.cell_id for record in records] == [cell(number) for number in range(100)]


def test_opening_a_run_for_writing_keeps_what_is_there(store: RunStore) -> None:
    store.write(make_record())
    assert len(RunStore.create(store.folder).read()[0]) == 1


@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_a_file_in_the_folders_way_is_the_users_mistake(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    with pytest.raises(UsageError, match=r"file.*--out") as error:
        RunStore.create(folder)
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_called_records_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("mine")
    with pytest.raises(UsageError, match=r"records is a file; choose another folder with --out"):
        RunStore.create(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_the_users_mistake(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match=r"cannot write to .*Permission denied.*--out"):
        RunStore.create(tmp_path / "run")


def test_a_folder_without_a_run_is_answered_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no run; make one with: ctxbench profile --out"):
        RunStore.open(tmp_path)


def test_a_folder_whose_records_vanished_is_the_users_mistake(store: RunStore) -> None:
    store.records.rmdir()
    with pytest.raises(UsageError, match="cannot read"):
        store.read()


# Plans, and several runs read together


def test_plans_add_up_and_the_same_plan_is_written_once(store: RunStore) -> None:
    assert store.planned() == set()
    store.write_plan([cell(1), cell(2)])
    store.write_plan([cell(2), cell(1)])
    assert len(names(store.plans)) == 1
    store.write_plan([cell(2), cell(3)])
    assert store.planned() == {cell(1), cell(2), cell(3)}


@pytest.mark.parametrize("content", ["{", "5", "null", "\x00"])
def test_a_plan_that_cannot_be_read_counts_as_none(store: RunStore, content: str) -> None:
    store.write_plan([cell(1)])
    (store.plans / "damaged.json").write_text(content)
    assert store.planned() == {cell(1)}


def test_pipes_keep_nobody_waiting(store: RunStore) -> None:
    for path in (store.plans / "p.json", store.records / f"{cell(1)}.json"):
        os.mkfifo(path)
    assert store.planned() == set()
    assert [file.reason for file in store.read()[1]] == ["not a regular file"]


def test_one_record_can_be_loaded(store: RunStore) -> None:
    record = make_record(cell_id=cell(1))
    store.write(record)
    (store.records / f"{cell(2)}.json").write_text("{")
    assert [store.load(cell(number)) for number in (1, 2, 3)] == [record, None, None]


def test_runs_are_read_together_and_one_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    stores = [RunStore.create(tmp_path / name) for name in "ab"]
    for each in stores:
        each.write(make_record(cell_id=cell(1), run_id="run", rounds_id=each.name * 12))
        each.write_plan([cell(1), cell(2)])
    reading = Reading.of([store.folder for store in (*stores, stores[0])])
    assert [record.run_id for record in reading.records] == ["a", "b"]
    assert reading.missing == 2


def test_a_copied_folder_adds_nothing(store: RunStore, tmp_path: Path) -> None:
    store.write(make_record(cell_id=cell(1), rounds_id="a" * 12))
    shutil.copytree(store.folder, tmp_path / "copy")
    assert len(Reading.of([store.folder, tmp_path / "copy"]).records) == 1


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/x/run"], ["run"]),
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/a/run", "/x/b/run"], ["a/run", "b/run"]),
        (["/run", "/x/run"], ["run", "x/run"]),
        ([], []),
    ],
)
def test_runs_are_named_by_what_tells_their_folders_apart(folders: list[str], names: list[str]) -> None:
    assert telling_names([Path(folder) for folder in folders]) == names


def test_what_keeps_a_run_from_being_whole_is_counted(store: RunStore) -> None:
    store.write(make_record(cell_id=cell(1)))
    store.write_plan([cell(1)])
    assert Reading.of([store.folder]).faults == []
    store.write(failed_record("oom", "too large", cell_id=cell(2)))
    store.write(failed_record("skipped", "too large", cell_id=cell(3)))
    store.write_plan([cell(4)])
    (store.records / f"{cell(5)}.json").write_text("{")
    assert Reading.of([store.folder]).faults == [
        "1 unreadable file(s)",
        "1 planned cell(s) without a record",
        "1 failed cell(s)",
    ]


def test_a_run_by_another_name_is_the_same_run(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(store.folder)
    store.write(make_record(cell_id=cell(1)))
    store.write_plan([cell(1), cell(2)])
    (store.records / f"{cell(3)}.json").write_text("{")
    reading = Reading.of([store.folder, tmp_path / "alias", store.folder / ".." / store.name])
    assert (len(reading.records), len(reading.unreadable), reading.missing) == (1, 1, 1)
    assert reading.rows == [reading.records[0].row]


def test_one_folder_without_a_run_among_others_is_the_users_mistake(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        Reading.of([store.folder, tmp_path])


@pytest.mark.parametrize("content", ['"abc"', '{"a": 1}', "[[1], null]"])
def test_json_of_another_form_is_no_plan(store: RunStore, content: str) -> None:
    (store.plans / "other.json").write_text(content)
    assert store.planned() == set()


def test_a_damaged_plan_is_mended_by_the_same_command(store: RunStore) -> None:
    store.write_plan([cell(1)])
    (path,) = store.plans.iterdir()
    path.write_text("{")
    store.write_plan([cell(1)])
    assert store.planned() == {cell(1)}


def test_a_folder_in_a_temporary_files_place_is_no_hindrance(tmp_path: Path) -> None:
    odd = tmp_path / "run" / "records" / "a.json.tmp-12-ab"
    odd.mkdir(parents=True)
    os.utime(odd, (0, 0))
    RunStore.create(tmp_path / "run")
    assert odd.is_dir()
