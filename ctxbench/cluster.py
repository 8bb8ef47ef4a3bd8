"""Carries out a run as Slurm jobs: each measures a part of the plan and writes into the run's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxbench.errors import RunError, UsageError, first_line
from ctxbench.monitor import Reporter
from ctxbench.record import Record
from ctxbench.runner import Run
from ctxbench.spec import groups

if TYPE_CHECKING:
    import submitit

ENGINE = "slurm"  # the tests have submitit's "local", which needs no Slurm
POLL_S = 1.0
PATIENCE_S = 30.0
DEFAULTS: dict[str, int | str] = {"name": "ctxbench", "timeout_min": 240}
SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
ONE_ONLY = ("nodes", "tasks_per_node")


def parse_parameters(texts: tuple[str, ...]) -> dict[str, int | str]:
    """Read "partition=gpu", "mem_gb=32" into parameters of a job, by their names in sbatch or submitit.

    Raises:
        UsageError: for what is no NAME=VALUE, and for several tasks, which would measure side by side.
    """
    found: dict[str, int | str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_").removeprefix("slurm_")
        if not equals or not name.isidentifier() or not value:
            raise UsageError(f"--slurm: cannot read {text!r}; write NAME=VALUE, such as partition=gpu")
        if name in ONE_ONLY and value != "1":
            raise UsageError("--slurm: a job measures on one node in one task; for more jobs use --jobs")
        found[name] = int(value) if value.isascii() and value.isdigit() else value
    return found


@dataclass(frozen=True)
class Part:
    """What one job does: some cells of a run, by the run's own rules, on the node it is given."""

    run: Run

    def __call__(self) -> str | None:
        """Carry it out; returns what kept it from its end, if anything did."""
        from ctxbench import plugins

        try:
            for path in self.run.settings.plugins:
                plugins.load(path)
            self.run.execute(Log())
        except (RunError, UsageError) as error:
            return str(error)
        return None

    def checkpoint(self) -> Any:
        """What Slurm is to start again when it takes the node away: records are kept, the rest is missing."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class Log(Reporter):
    """Writes to the job's log what is being measured."""

    def measuring(self, text: str) -> None:
        print(text, flush=True)

    def finished(self, record: Record) -> None:
        print(record.spec, record.height, record.width, record.mode, record.dtype, record.status, flush=True)


@dataclass(frozen=True)
class Submission:
    """A run that is divided among Slurm jobs, each with whole groups of cells.

    Attributes:
        jobs: at most so many.
        parameters: of each job, by their names in submitit or sbatch.
    """

    run: Run
    jobs: int = 1
    parameters: dict[str, int | str] = field(default_factory=dict)

    def execute(self, reporter: Reporter | None = None) -> list[Record]:
        """Submit what has no record yet, and wait; returns the records of all cells, in their order.

        An interrupt takes the jobs back. What they have recorded by then is kept.

        Raises:
            UsageError: without submitit or Slurm, and for parameters that they do not know.
            RunError: when jobs end and cells have no record.
        """
        reporter = reporter or Reporter()
        executor = self.executor()
        known = self.run.known_records(reporter)
        missing = [cell for cell in self.run.cells if cell.id not in known]
        reporter.started(len(self.run.cells), list(known.values()))
        if missing:
            whole = groups(missing)
            count = min(self.jobs, len(whole))
            parts = [[cell for group in whole[first::count] for cell in group] for first in range(count)]
            once = dataclasses.replace(self.run, plan=self.run.planned, fresh=False)
            runs = [dataclasses.replace(once, cells=part) for part in parts]
            self.run.store.write_plan(self.run.planned)
            self.run.note_command()
            before = {cell.id: self.run.store.load(cell.id) for cell in missing}
            known |= self.carry_out(executor, [Part(run) for run in runs], before, reporter)
        if lost := [cell for cell in self.run.cells if cell.id not in known]:
            raise RunError(
                f"{len(lost)} of {len(self.run.cells)} cells have no record; the same command submits them "
                f"again; what the jobs said is in {self.folder}"
            )
        return [known[cell.id] for cell in self.run.cells]

    @property
    def folder(self) -> Path:
        """Where submitit keeps the jobs' files."""
        return self.run.store.folder / "jobs"

    def carry_out(
        self,
        executor: submitit.AutoExecutor,
        parts: list[Part],
        before: dict[str, Record | None],
        reporter: Reporter,
    ) -> dict[str, Record]:
        """The records that jobs write for the cells of `before`, which holds those that were there."""
        jobs: list[submitit.Job[str | None]] = []
        try:
            for part in parts:
                jobs.append(submitted(executor, part))
            reporter.notice(f"submitted {len(jobs)} job(s): {', '.join(job.job_id for job in jobs)}")
            return self.wait(jobs, before, reporter)
        except BaseException:
            for job in jobs:
                with contextlib.suppress(Exception):  # whatever one job says, take back the others
                    job.cancel(check=False)
            raise

    def executor(self) -> submitit.AutoExecutor:
        try:
            import submitit
        except ImportError:
            raise UsageError('--executor slurm needs submitit: pip install "ctxbench[slurm]"') from None
        given: dict[str, int | str] = {"gpus_per_node": 1} if self.run.device == "cuda" else {}
        given |= DEFAULTS | {"cpus_per_task": self.run.settings.threads} | self.parameters
        named = {name if name in SHARED else f"slurm_{name}": value for name, value in given.items()}
        try:
            executor = submitit.AutoExecutor(self.folder, cluster=ENGINE)
            executor.update_parameters(**named)
        except RuntimeError as error:  # there is no sbatch
            raise UsageError(f"--executor slurm: {first_line(error)}") from None
        except (NameError, AssertionError, ValueError) as error:
            raise UsageError(f"--slurm: {first_line(error)}") from None
        return executor

    def wait(
        self, jobs: list[submitit.Job[str | None]], before: dict[str, Record | None], reporter: Reporter
    ) -> dict[str, Record]:
        """The records as they come, until all are there or the jobs have ended."""
        found: dict[str, Record] = {}
        patience = math.inf
        while len(found) < len(before) and patience > 0:
            if math.isinf(patience) and all(job.done() for job in jobs):
                # What they wrote last may reach this host a little later, over a network.
                patience = 0 if any(map(last_words, jobs)) else PATIENCE_S
            for cell in [cell for cell in before if cell not in found]:
                record = self.run.store.load(cell)
                if record is not None and record != before[cell]:
                    found[cell] = record
                    reporter.finished(record)
            reporter.working(f"jobs: {', '.join(sorted({job.state.lower() for job in jobs}))}")
            if len(found) < len(before) and patience > 0:
                time.sleep(POLL_S)
                patience -= POLL_S
        for job in jobs:
            if words := last_words(job):
                reporter.notice(f"job {job.job_id}: {words}")
        return found


def submitted(executor: submitit.AutoExecutor, part: Part) -> submitit.Job[str | None]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return executor.submit(part)
    except (OSError, RuntimeError, FailedJobError, FailedSubmissionError) as error:
        raise RunError(f"cannot submit a job: {first_line(error)}") from error


def last_words(job: submitit.Job[str | None]) -> str | None:
    """Why a job did not carry out its part; None if it did."""
    error = job.exception()
    if error is None:
        return job.result()
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("-", "You can", "or at", "Traceback"))]
    return told[-1] if told else type(error).__name__
