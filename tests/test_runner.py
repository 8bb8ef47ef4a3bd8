"""A run does what is missing, keeps what is known, and gives every cell exactly one record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import blocks
from blocks import registry
from ctxbench import environment, measure, subject
from ctxbench.errors import UsageError
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor, Reporter
from ctxbench.outcome import Outcome
from ctxbench.record import Record
from ctxbench.reports.report import tables_of
from ctxbench.runner import Run
from ctxbench.spec import Cell, Grid
from ctxbench.store import RunStore
from ctxbench.tables import markdown

BLOCKS = "none,a2,self-attn"
Forward = Callable[[Tensor], Tensor]
Add = Callable[[str, Forward], None]


def cells(text: str = BLOCKS, **axes: Any) -> list[Cell]:
    return Grid(blocks=text, **({"resolutions": "4,8", "channels": "8"} | axes)).cells()


class Executions(list[str]):
    """The labels of the cells that were measured, in order; `fail` and `interrupt_after` change how it goes."""

    interrupt_after: int | None = None

    def group(
        self, members: list[Cell], settings: Settings, monitor: Monitor, make: object
    ) -> Iterator[tuple[Cell, Outcome]]:
        """Stands for `measure.group`: the latency of a cell follows from the cell."""
        for cell in members:
            if len(self) == self.interrupt_after:
                raise KeyboardInterrupt
            self.append(f"{cell.label} {cell.height}x{cell.width}")
            latency = float(cell.height + len(cell.label))
            times = dict.fromkeys(("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high"), latency)
            times |= {"latency_cpu_ms_median": latency, "latency_ref_ratio": 1.0}
            yield cell, Outcome("ok", times | {"iterations": 10, "converged": True, "wall_s": 0.0})


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> Executions:
    counted = Executions()
    monkeypatch.setattr(measure, "group", counted.group)
    return counted


@pytest.fixture(autouse=True)
def steady_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory enough, no look at git, and no more rounds than are needed."""
    monkeypatch.setattr(environment, "free_bytes", lambda device: 2**33)
    monkeypatch.setattr(environment, "git_state", lambda: ("0123456789ab", False))
    monkeypatch.setattr(subject, "REFERENCE_SIDE", {"cpu": 8})
    monkeypatch.setattr(measure, "BUDGET_S", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Adds a block to the catalogue for one test."""
    blocks.names()  # find those of the catalogue first
    monkeypatch.setattr(registry, "_catalogue", dict(registry._catalogue))

    def register(name: str, forward: Forward) -> None:
        class Added(blocks.ContextBlock):
            def forward(self, x: Tensor) -> Tensor:
                return forward(x)

            def macs(self, height: int, width: int) -> int:
                return 0

            def param_count(self) -> int:
                return 0

        about = dict.fromkeys(("title", "family", "summary", "complexity", "formula"), "for a test")
        blocks.register(name, **about, paper=None)(Added)

    return register


def run(
    folder: Path, planned: list[Cell], threads: int = 1, reporter: Reporter | None = None
) -> list[Record]:
    settings = Settings(threads)
    return Run(planned, RunStore.create(folder), "cpu", settings, "inline").execute(reporter)


def status(records: list[Record]) -> dict[str, str]:
    return {f"{record.spec} {record.height}x{record.width}": record.status for record in records}


def tables(records: list[Record]) -> str:
    return "\n".join(map(markdown, tables_of([record.row for record in records])))


# Resume


def test_every_cell_becomes_one_record_on_disk_in_the_order_of_the_cells(
    tmp_path: Path, executions: Executions
) -> None:
    planned = cells()
    records = run(tmp_path, planned)
    assert [record.cell_id for record in records] == [cell.id for cell in planned]
    stored, unreadable = RunStore.open(tmp_path).read()
    assert unreadable == []
    assert sorted(stored, key=str) == sorted(records, key=str)


def test_a_finished_run_does_nothing_when_it_is_started_again(tmp_path: Path, executions: Executions) -> None:
    first = run(tmp_path, cells())
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    executions.clear()
    assert run(tmp_path, cells()) == first
    assert executions == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == files


@pytest.mark.parametrize("after", range(6))
def test_an_interrupted_run_keeps_what_is_finished_and_goes_on_from_there(
    tmp_path: Path, executions: Executions, after: int
) -> None:
    executions.interrupt_after = after
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", cells())
    kept, unreadable = RunStore.open(tmp_path / "broken").read()
    assert (len(kept), unreadable) == (after, [])

    done, executions.interrupt_after = list(executions), None
    executions.clear()
    resumed = run(tmp_path / "broken", cells())
    assert sorted(done + executions) == sorted(f"{cell.label} {cell.height}x{cell.width}" for cell in cells())
    assert [record for record in resumed if record in kept] == [
        record for record in resumed if record.cell_id in {known.cell_id for known in kept}
    ], "what was known is kept as it was"
    assert tables(resumed) == tables(run(tmp_path / "whole", cells()))


def test_a_larger_grid_measures_only_what_is_new(tmp_path: Path, executions: Executions) -> None:
    run(tmp_path, cells("none"))
    executions.clear()
    run(tmp_path, cells("none,a2"))
    assert executions == ["a2 4x4", "a2 8x8"]


def test_a_damaged_record_is_measured_again(tmp_path: Path, executions: Executions) -> None:
    first = run(tmp_path, cells())
    (tmp_path / "records" / f"{first[1].cell_id}.json").write_text("{")
    executions.clear()
    again = run(tmp_path, cells())
    assert executions == [f"{first[1].spec} 4x4"]
    assert tables(again) == tables(first)


def test_failures_are_known_too_and_not_tried_again(tmp_path: Path, add: Add, executions: Executions) -> None:
    add("breaks", fail)
    first = run(tmp_path, cells("breaks,none"))
    executions.clear()
    assert run(tmp_path, cells("breaks,none")) == first
    assert executions == []


def test_a_block_whose_code_changed_is_measured_again_and_no_other(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, cells("none,a2"))
    before = environment.code_hash
    monkeypatch.setattr(
        environment, "code_hash", lambda block, kind: "ba9876543210" if block == "a2" else before(block, kind)
    )
    executions.clear()
    again = run(tmp_path, cells("none,a2"))
    assert executions == ["a2 4x4", "a2 8x8"]
    assert {record.code_hash for record in again if record.spec == "a2"} == {"ba9876543210"}
    assert [record for record in again if record.spec == "none"] == [
        record for record in first if record.spec == "none"
    ]


def test_the_code_of_a_block_is_its_own_file_and_the_catalogue(add: Add) -> None:
    add("mine", fail)  # from this file
    assert environment.code_hash("a2") == environment.code_hash("none") != environment.code_hash("mine")


@pytest.mark.parametrize("estimated", [False, True], ids=["measured", "estimated"])
@pytest.mark.parametrize("wrong", ["macs", "param_count"])
def test_a_block_whose_closed_form_is_not_the_count_is_invalid_and_never_timed(  # noqa: PLR0917
    tmp_path: Path,
    add: Add,
    executions: Executions,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    estimated: bool,
) -> None:
    add("wrong", lambda x: x)
    monkeypatch.setattr(registry._catalogue["wrong"].cls, wrong, lambda self, *sides: 1)
    record, good = run(tmp_path, cells("wrong,none", resolutions="4", estimated=estimated))
    assert (record.status, good.status) == ("invalid", "ok")
    assert f"{wrong}() gives 1" in str(record.reason)
    assert not [label for label in executions if label.startswith("wrong")]
    assert record.latency_ms_median is None


def test_what_was_skipped_is_tried_again(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "free_bytes", lambda device: 0)
    assert set(status(run(tmp_path, cells("none,a2"))).values()) == {"skipped"}
    monkeypatch.setattr(environment, "free_bytes", lambda device: 2**33)
    assert set(status(run(tmp_path, cells("none,a2"))).values()) == {"ok"}


def test_a_record_of_older_code_is_measured_again(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, cells("none,a2"))
    executions.clear()
    real = environment.code_hash
    monkeypatch.setattr(
        environment, "code_hash", lambda block, kind: "ba9876543210" if block == "a2" else real(block, kind)
    )
    run(tmp_path, cells("none,a2"))
    assert {label.split()[0] for label in executions} == {"a2"}


def test_storage_beyond_all_addresses_is_skipped(tmp_path: Path) -> None:
    (record,) = run(tmp_path, cells("self-attn", resolutions="99999", estimated=True))
    assert record.status == "skipped"
    assert "more memory than can be addressed" in str(record.reason)


def test_the_run_tells_its_command_and_its_machine(tmp_path: Path, executions: Executions) -> None:
    run(tmp_path, cells("none"))
    (file,) = (tmp_path / "commands").iterdir()
    about = json.loads(file.read_text())
    assert about["command"].startswith("ctxbench")
    assert about["environment"]["torch"] == torch.__version__
    assert about["environment"]["threads"] == 1
    assert about["details"]["memory_total_bytes"] > 0


def test_a_record_says_what_was_measured_and_where(tmp_path: Path, executions: Executions) -> None:
    (record,) = run(
        tmp_path / "my-run", cells("ham-nmf[rank=4]", resolutions="4x6", batch="2", dtypes="bfloat16")
    )
    assert (record.block, record.spec) == ("ham-nmf", "ham-nmf[rank=4]")
    assert json.loads(record.options_json)["rank"] == 4
    assert (record.batch, record.channels, record.height, record.width) == (2, 8, 4, 6)
    assert (record.dtype, record.mode, record.device_type) == ("bfloat16", "infer", "cpu")
    assert record.run_id == "my-run"
    assert record.torch == torch.__version__
    assert record.macs_counted == record.macs_formula
    assert record.wall_s is not None


# Reporting


class Log(Reporter):
    def __init__(self) -> None:
        self.totals: tuple[int, int] | None = None
        self.texts: list[str] = []
        self.records: list[Record] = []

    def started(self, total: int, known: list[Record]) -> None:
        self.totals = total, len(known)

    def working(self, text: str) -> None:
        self.texts.append(text)

    def finished(self, record: Record) -> None:
        self.records.append(record)


def test_the_reporter_hears_of_every_record_and_of_what_is_known(
    tmp_path: Path, executions: Executions
) -> None:
    run(tmp_path, cells("none"))
    log = Log()
    run(tmp_path, cells(), reporter=log)
    assert log.totals == (6, 2)
    assert len(log.records) == 4
    assert any(text.startswith("estimating a2 1x8x4x4 float32 infer") for text in log.texts)


# What cannot run


def fail(x: Tensor) -> Tensor:
    raise RuntimeError("it broke\nin two lines")


def test_a_failing_estimate_is_an_error_and_the_rest_goes_on(
    tmp_path: Path, add: Add, executions: Executions
) -> None:
    add("breaks", fail)
    records = run(tmp_path, cells("none,breaks,a2", resolutions="4"))
    assert status(records) == {"none 4x4": "ok", "breaks 4x4": "error", "a2 4x4": "ok"}
    broken = records[1]
    assert (broken.reason, broken.error_type) == ("it broke", "RuntimeError")
    assert broken.macs_counted is broken.memory_predicted_bytes is broken.latency_ms_median is None


def test_an_error_text_that_is_no_proper_unicode_ends_as_a_record_too(
    tmp_path: Path, add: Add, executions: Executions
) -> None:
    """As the name of a file that the system could not decode."""

    def forward(x: Tensor) -> Tensor:
        raise OSError("cannot open caf\udce9")

    add("breaks", forward)
    records = run(tmp_path, cells("breaks,none", resolutions="4"))
    assert status(records) == {"breaks 4x4": "error", "none 4x4": "ok"}


def test_a_block_that_breaks_while_it_is_measured_keeps_its_cost_and_harms_no_other(
    tmp_path: Path, add: Add
) -> None:
    def forward(x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # the estimate runs on meta tensors
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return x + 1

    add("hungry", forward)
    records = run(tmp_path, cells("hungry,none", resolutions="4"))
    assert status(records) == {"hungry 4x4": "oom", "none 4x4": "ok"}
    hungry = records[0]
    assert hungry.reason is not None
    assert "3.00 GiB" in hungry.reason
    assert hungry.memory_predicted_bytes == 8 * 4 * 4 * 4
    assert hungry.latency_ms_median is hungry.memory_measured_bytes is None


def test_what_does_not_fit_the_memory_is_skipped_with_the_prediction_and_the_rest_goes_on(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "free_bytes", lambda device: 2**30)
    planned = cells("none,self-attn,ham-nmf", resolutions="8,128", channels="64")
    records = run(tmp_path, planned)
    assert {name: value for name, value in status(records).items() if value != "ok"} == {
        "self-attn 128x128": "skipped"
    }
    assert "self-attn 128x128" not in executions
    assert len(executions) == 5
    skipped = next(record for record in records if record.status == "skipped")
    assert skipped.memory_predicted_bytes is not None
    assert skipped.memory_predicted_bytes > 2 * 128**4 * 4
    assert skipped.reason == "needs 2.3 GiB with a margin for kernels, 1.0 GiB free"
    assert skipped.macs_counted == skipped.macs_formula
    assert skipped.latency_ms_median is None


def test_the_input_itself_must_fit_too(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "free_bytes", lambda device: 2**20)
    assert status(run(tmp_path, cells("none", resolutions="1024"))) == {"none 1024x1024": "skipped"}


def test_an_estimate_asks_for_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_bytes", lambda device: 0)
    records = run(tmp_path, cells("self-attn", resolutions="1024", estimated=True))
    assert status(records) == {"self-attn 1024x1024": "ok"}


def test_batch_normalisation_on_one_value_per_channel_is_skipped_with_advice(
    tmp_path: Path, executions: Executions
) -> None:
    records = run(tmp_path, cells("ham-nmf,none", resolutions="1", modes="train"))
    assert status(records) == {"ham-nmf 1x1": "skipped", "none 1x1": "ok"}
    assert records[0].reason is not None
    assert "normalisation" in records[0].reason
    assert "use a larger batch or resolution" in records[0].reason
    assert status(run(tmp_path, cells("ham-nmf", resolutions="1"))) == {"ham-nmf 1x1": "ok"}
    assert status(run(tmp_path, cells("ham-nmf", resolutions="1", batch="2", modes="train"))) == {
        "ham-nmf 1x1": "ok"
    }


@pytest.mark.parametrize(("spec", "side"), [("self-attn", "999999"), ("fft[size=2147483647]", "8")])
def test_what_is_beyond_all_addresses_is_skipped_too(spec: str, side: str, tmp_path: Path) -> None:
    (record,) = run(tmp_path, cells(spec, resolutions=side, estimated=True))
    assert record.status == "skipped"
    assert record.reason is not None
    assert "more memory than can be addressed" in record.reason


# Other environments


def test_measurements_of_another_environment_are_refused_with_what_changed(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, cells())
    executions.clear()
    with pytest.raises(UsageError, match=r"another environment \(threads 1 -> 2\).*--fresh.*--out") as error:
        run(tmp_path, cells(), threads=2)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(torch, "__version__", "99.0")
    with pytest.raises(UsageError, match=r"torch .* -> 99\.0"):
        run(tmp_path, cells())
    assert executions == []


def test_how_threads_wait_is_part_of_the_environment(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.WAIT_POLICY, "PASSIVE")
    run(tmp_path, cells("none"))
    monkeypatch.setenv(environment.WAIT_POLICY, "ACTIVE")
    with pytest.raises(UsageError, match="OMP_WAIT_POLICY PASSIVE -> ACTIVE"):
        run(tmp_path, cells("none"))


def test_a_new_commit_alone_is_no_other_environment(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, cells("none"))
    monkeypatch.setattr(environment, "git_state", lambda: ("ba9876543210", True))
    assert run(tmp_path, cells("none")) == first


def test_what_this_run_does_not_ask_for_is_no_reason_to_refuse(
    tmp_path: Path, executions: Executions
) -> None:
    run(tmp_path, cells("none"))
    assert len(run(tmp_path, cells("a2"), threads=2)) == 2


def test_fresh_measures_again_in_a_new_environment(tmp_path: Path, executions: Executions) -> None:
    run(tmp_path, cells("none"))
    (record, _) = Run(
        cells("none"), RunStore.create(tmp_path), "cpu", Settings(2), "inline", fresh=True
    ).execute()
    assert record.threads == 2


def test_a_fresh_run_that_is_interrupted_is_resumed_without_asking_for_it_again(
    tmp_path: Path, executions: Executions
) -> None:
    class Impatient(Reporter):
        def finished(self, record: Record) -> None:
            raise KeyboardInterrupt

    planned, store = cells("none,a2"), RunStore.create(tmp_path)
    old = {record.cell_id: record for record in run(tmp_path, planned)}
    with pytest.raises(KeyboardInterrupt):
        Run(planned, store, "cpu", where="inline", fresh=True).execute(Impatient())
    (kept,) = store.records.iterdir()
    written = kept.stat().st_mtime_ns
    assert {record.cell_id for record in run(tmp_path, planned)} == set(old)
    assert kept.stat().st_mtime_ns == written
    replaced = {path.stem: Record.from_json(path.read_text()) for path in tmp_path.glob("replaced/*/*.json")}
    assert replaced == old


def test_estimates_are_accepted_from_any_environment(
    tmp_path: Path, executions: Executions, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = cells(estimated=True)
    first = run(tmp_path, planned)

    def forbidden(cell: Cell) -> None:
        raise AssertionError(f"estimates {cell.label} again")

    monkeypatch.setattr("ctxbench.settle.estimate", forbidden)
    assert run(tmp_path, planned, threads=2) == first
    assert executions == [], "an estimate runs nothing"


def test_real_blocks_run_from_end_to_end(tmp_path: Path) -> None:
    records = run(tmp_path, cells("none,ham-nmf[rank=4]", modes="infer,train"))
    assert set(status(records).values()) == {"ok"}
    for record in records:
        assert record.latency_ms_median is not None
        assert record.latency_ms_median >= 0
        assert record.memory_measured_bytes is None
        assert record.memory_source == "predicted"
        assert (record.macs_backward is not None) == (record.mode == "train")


def test_an_outcome_that_no_record_can_hold_is_an_error_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a block meddles with the clock."""

    def group(
        members: list[Cell], settings: Settings, monitor: Monitor, make: object
    ) -> Iterator[tuple[Cell, Outcome]]:
        yield members[0], Outcome("ok", {"wall_s": -3.0})
        yield members[1], Outcome("ok", {"wall_s": 3.0})

    monkeypatch.setattr(measure, "group", group)
    bad, good = run(tmp_path, cells("none,a2", resolutions="4"))
    assert (bad.status, good.status) == ("error", "ok")
    assert "is no record: wall_s: Input should be greater than or equal to 0" in str(bad.reason)


def test_a_file_that_cannot_be_read_is_named_and_kept_when_its_cell_is_measured_again(
    tmp_path: Path, executions: Executions
) -> None:
    class Log(Reporter):
        def __init__(self) -> None:
            self.notices: list[str] = []

        def notice(self, text: str) -> None:
            self.notices.append(text)

    (record, _) = run(tmp_path, cells("none"))
    path = tmp_path / "records" / f"{record.cell_id}.json"
    future = path.read_text().replace('"schema_version": 1', '"schema_version": 9')
    path.write_text(future)
    log = Log()
    assert run(tmp_path, cells("none"), reporter=log)[0].status == "ok"
    assert log.notices == [f"cannot read {path.name}: schema version 9, not 1; it is left out"]
    (kept,) = tmp_path.glob("replaced/*/*.json")
    assert kept.read_text() == future
