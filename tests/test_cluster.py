"""A run as jobs of a cluster: submitit's local engine stands for Slurm, the rest is real."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import blocks
from blocks import registry
from ctxbench import cluster, plugins
from ctxbench.cli import main
from ctxbench.cluster import Part, Submission, last_words, parse_parameters
from ctxbench.errors import RunError, UsageError
from ctxbench.measure import Settings
from ctxbench.monitor import Reporter
from ctxbench.record import Record
from ctxbench.runner import Run
from ctxbench.spec import Cell, Grid
from ctxbench.store import RunStore
from tests.test_workers import PLUGIN, assert_nobody_is_left

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def local_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "ENGINE", "local")
    monkeypatch.setattr(cluster, "POLL_S", 0.1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    blocks.names()
    monkeypatch.setattr(registry, "_catalogue", dict(registry._catalogue))


def cells(**axes: Any) -> list[Cell]:
    return Grid(**({"blocks": "none,a2", "resolutions": "4,6,8", "channels": "8"} | axes)).cells()


def run(folder: Path, planned: list[Cell], **fields: Any) -> Run:
    return Run(planned, RunStore.create(folder), "cpu", Settings(budget_s=0), "inline", **fields)


class Log(Reporter):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.records: list[Record] = []
        self.known = -1

    def started(self, total: int, known: list[Record]) -> None:
        self.known = len(known)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def finished(self, record: Record) -> None:
        self.records.append(record)


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}


def test_jobs_share_a_run_and_its_records_come_back_in_the_order_of_the_cells(tmp_path: Path) -> None:
    planned, log = cells(), Log()
    records = Submission(run(tmp_path / "run", planned), jobs=2).execute(log)
    assert [record.cell_id for record in records] == [cell.id for cell in planned]
    assert {record.status for record in records} == {"ok"}
    assert all(record.latency_ms_median is not None for record in records)
    assert sorted(log.records, key=str) == sorted(records, key=str)
    assert log.notices[0].startswith("submitted 2 job(s): ")
    for group in zip(records[::2], records[1::2], strict=True):
        assert len({record.rounds_id for record in group}) == 1, "what is compared is timed together"
    assert RunStore.open(tmp_path / "run").planned() == {cell.id for cell in planned}


def test_the_same_submission_does_only_what_is_missing(tmp_path: Path) -> None:
    first = Submission(run(tmp_path / "run", cells(resolutions="4"))).execute()
    kept, log = files(tmp_path / "run"), Log()
    again = Submission(run(tmp_path / "run", cells(resolutions="4,6")), jobs=7).execute(log)
    assert log.known == 2
    assert again[:2] == first
    assert {name: files(tmp_path / "run")[name] for name in kept} == kept
    log = Log()
    assert Submission(run(tmp_path / "run", cells(resolutions="4,6"))).execute(log) == again
    assert log.notices == [], "nothing is submitted for nothing"


def test_fresh_waits_for_new_records(tmp_path: Path) -> None:
    planned = cells(resolutions="4")
    first = Submission(run(tmp_path / "run", planned)).execute()
    again = Submission(run(tmp_path / "run", planned, fresh=True)).execute()
    assert [record.cell_id for record in again] == [record.cell_id for record in first]
    assert {record.rounds_id for record in again}.isdisjoint({record.rounds_id for record in first})


def test_a_job_that_dies_costs_its_own_cells_and_the_same_command_submits_them_again(tmp_path: Path) -> None:
    """The block ends the job's own process the first time: inline, nothing stands between."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        PLUGIN + "add('once', lambda: Path('struck').exists() or (Path('struck').touch(), os._exit(3)))\n"
    )
    plugins.load(mine)
    planned = cells(blocks="none,once", resolutions="4,6")
    ours = run(tmp_path / "run", planned)
    settings = Settings(budget_s=0, plugins=(mine,))
    ours = Run(planned, ours.store, "cpu", settings, "inline")
    log = Log()
    with pytest.raises(
        RunError, match=r"[1-4] of 4 cells have no record; the same command submits them again"
    ):
        Submission(ours, jobs=2).execute(log)
    assert any(notice.startswith("job ") for notice in log.notices[1:])
    kept = files(tmp_path / "run")
    assert 0 < len(kept) < 4
    records = Submission(ours, jobs=2).execute()
    assert {record.status for record in records} == {"ok"}
    assert {name: files(tmp_path / "run")[name] for name in kept} == kept


def test_a_job_that_may_not_go_on_says_why(tmp_path: Path) -> None:
    settings = Settings(plugins=(tmp_path / "absent.py",))
    part = Part(Run(cells(), RunStore.create(tmp_path / "run"), "cpu", settings, "inline"))
    assert "no file" in (part() or "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit's own process
def test_an_interrupt_takes_the_jobs_back(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(PLUGIN)
    plugins.load(mine)
    planned = Grid(blocks="spins", resolutions="4", channels="8").cells()
    ours = Run(planned, RunStore.create(tmp_path / "run"), "cpu", Settings(plugins=(mine,)), "inline")
    threading.Timer(8, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        Submission(ours).execute()
    assert_only_this_process_is_left(tmp_path)
    assert files(tmp_path / "run") == {}


def assert_only_this_process_is_left(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        assert_nobody_is_left(folder)
    finally:
        os.chdir(here)


def test_a_part_that_is_taken_away_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of a fresh run: what was measured anew is not measured a third time."""
    Submission(run(tmp_path / "run", cells())).execute()
    parts: list[Part] = []

    def submitted(executor: Any, part: Part) -> None:
        parts.append(part)
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "submitted", submitted)
    with pytest.raises(KeyboardInterrupt):
        Submission(run(tmp_path / "run", cells(), fresh=True)).execute()
    (part,) = parts
    assert part.checkpoint().function == part
    assert not part.run.fresh
    assert part.run.known_records(Reporter()) == {}, "the old records are set aside"


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("partition=gpu", "mem_gb=32"), {"partition": "gpu", "mem_gb": 32}),
        (("slurm_partition=a",), {"partition": "a"}),
        (("gres=gpu:h100:1", "timeout-min=10"), {"gres": "gpu:h100:1", "timeout_min": 10}),
        ((), {}),
    ],
)
def test_parameters_are_read(texts: tuple[str, ...], found: dict[str, Any]) -> None:
    assert parse_parameters(texts) == found


@pytest.mark.parametrize("text", ["partition", "=gpu", "partition=", "a b=1", "nodes=2", "tasks_per_node=4"])
def test_what_is_no_parameter_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slurm: "):
        parse_parameters((text,))


def ctxbench(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


COMMAND = ("profile", "--blocks", "none", "--channels", "8", "--resolutions", "4", "--executor", "slurm")


def test_the_command_measures_in_jobs(tmp_path: Path) -> None:
    result = ctxbench(*COMMAND, "--device", "cpu", "--jobs", "2", "--budget", "0", "--out", "run")
    assert result.exit_code == 0, result.output
    assert "submitted 1 job(s)" in result.stderr
    assert "none" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--device cpu or cuda"),
        (("--device", "cpu", "--slurm", "colour=red"), "colour"),
        (("--device", "cpu", "--slurm", "mem_gb=many"), "mem_gb"),
        (("--device", "cpu", "--slurm", "nodes=2"), "--jobs"),
        (("--device", "cpu", "--executor", "local", "--slurm", "mem_gb=1"), "--executor slurm"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    result = ctxbench(*COMMAND, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert words in result.stderr


def test_without_slurm_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ENGINE", "slurm")
    monkeypatch.setenv("PATH", "/nowhere")
    result = ctxbench(*COMMAND, "--device", "cuda")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "srun" in result.stderr or "slurm" in result.stderr.lower()


def test_the_last_words_of_a_job_are_its_error() -> None:
    class Failed:
        def exception(self) -> Exception:
            lines = (
                "Job (task=0) failed during processing with trace:",
                "----",
                "Traceback (most recent",
                "ValueError: no",
                "----",
            )
            return RuntimeError(
                "\n".join([*lines, "You can check full logs", "or at paths:", "  - /somewhere"])
            )

    assert last_words(Failed()) == "ValueError: no"  # type: ignore[arg-type]
