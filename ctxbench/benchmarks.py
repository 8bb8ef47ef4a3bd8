"""What pytest-benchmark saved of this project's own speed, as tables for a report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctxbench.errors import UsageError
from ctxbench.reports.leaderboards import ratio
from ctxbench.tables import Column, Table, number

MAX_BYTES = 64 * 2**20
Text = Annotated[str, Field(max_length=1000)]
Seconds = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]


@dataclass(frozen=True)
class Entry:
    """One benchmark. Times are in seconds per call; `group` is the user's or else the test function.

    `name` is shown; `test` is that with the path of its file, which tells it from all others.
    """

    name: str
    test: str
    group: str
    min_s: float
    median_s: float
    iqr_s: float
    rounds: int


@dataclass(frozen=True)
class Benchmarks:
    """A saved file: where and when it was measured, and its benchmarks."""

    source: str
    machine: str
    python: str
    commit: str
    saved: str
    entries: list[Entry]

    @property
    def origin(self) -> str:
        """File, machine, Python, commit and date in a line; what the file does not tell is left out."""
        known = (self.machine, self.python, self.commit, self.saved)
        return f"{self.source}: {', '.join(filter(None, known))}"


class Saved(BaseModel):
    """A part of the file; there is more in it than is read."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Cpu(Saved):
    brand_raw: Text = ""
    count: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class Machine(Saved):
    cpu: Cpu = Cpu()
    system: Text = ""
    machine: Text = ""
    python_implementation: Text = ""
    python_version: Text = ""

    @property
    def line(self) -> str:
        """Processor and system; the machine's name in its network is nobody's business."""
        count = self.cpu.count
        cores = f"{count} core{'s' if count > 1 else ''}" if count else ""
        system = f"{self.system} {self.machine}".strip()
        return ", ".join(filter(None, (self.cpu.brand_raw, cores, system)))

    @property
    def python(self) -> str:
        return f"{self.python_implementation} {self.python_version}".strip()


class Commit(Saved):
    id: Text | None = None
    dirty: bool | None = None

    @property
    def line(self) -> str:
        if not self.id:
            return ""
        return f"commit {self.id[:12]}{' with changes' if self.dirty else ''}"


class Stats(Saved):
    min: Seconds
    median: Seconds
    iqr: Seconds
    rounds: Annotated[int, Field(ge=1, lt=2**63)]


class Benchmark(Saved):
    name: Text
    fullname: Text
    group: Text | None = None
    stats: Stats

    @property
    def entry(self) -> Entry:
        function = self.fullname.partition("[")[0].rpartition("/")[2]  # test_blocks.py::test_forward
        times = self.stats
        return Entry(
            self.name,
            self.fullname,
            self.group or function,
            times.min,
            times.median,
            times.iqr,
            times.rounds,
        )


class File(Saved):
    machine_info: Machine
    commit_info: Commit = Commit()
    saved: Annotated[datetime, Field(alias="datetime")]
    benchmarks: list[Benchmark]


def is_benchmark_file(path: Path) -> bool:
    """Whether `path` could be such a file rather than a run's folder: whether it is good, `read` tells."""
    try:
        return path.suffix == ".json" and path.is_file()
    except OSError:
        return False


def read(path: Path) -> Benchmarks:
    """What a file of --benchmark-save or --benchmark-json holds.

    Raises:
        UsageError: for a file that cannot be read, is larger than 64 MiB, damaged, of another
            program, or holds a time that is no finite number from 0 up.
    """
    try:
        if not path.is_file():
            raise UsageError(f"{path} is no file; save one with: pytest --benchmark-json {path}")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(
                f"{path} is larger than {MAX_BYTES // 2**20} MiB; save it without the single times"
            )
        file = File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UsageError(f"{path} is not by pytest-benchmark, or damaged ({where}: {first['msg']})") from None
    machine = file.machine_info
    saved = file.saved.isoformat(sep=" ", timespec="minutes")
    entries = [benchmark.entry for benchmark in file.benchmarks]
    return Benchmarks(path.name, machine.line, machine.python, file.commit_info.line, saved, entries)


@dataclass(frozen=True)
class Line:
    """A row: a benchmark in the file of this number, and its median over that in the first file."""

    entry: Entry
    file: int
    ratio: float | None


def tables(benchmarks: list[Benchmarks]) -> list[Table[Line]]:
    """One table per group, in the order of the files, by rising median in the first file that has one."""
    groups: dict[str, list[tuple[Entry, int]]] = {}
    for index, file in enumerate(benchmarks, 1):
        for entry in file.entries:
            groups.setdefault(entry.group, []).append((entry, index))
    return [table(group, found, benchmarks) for group, found in groups.items()]


def table(group: str, found: list[tuple[Entry, int]], benchmarks: list[Benchmarks]) -> Table[Line]:
    """The table of a group; `found` are its benchmarks, each with the number of its file."""
    earliest = {entry.test: entry.median_s for entry, _ in reversed(found)}
    first = {entry.test: entry.median_s for entry, index in found if index == 1}
    lines = [Line(entry, index, ratio(entry.median_s, first.get(entry.test))) for entry, index in found]
    lines.sort(key=lambda line: (earliest[line.entry.test], line.entry.test))
    files = sorted({index for _, index in found})
    return Table(f"Benchmark {group}", columns(len(benchmarks) > 1), lines, notes(benchmarks, files))


def columns(several: bool) -> list[Column[Line]]:
    found = [Column[Line]("benchmark", lambda line: line.entry.name, numeric=False)]
    if several:
        found.append(Column("file", lambda line: str(line.file)))
    found += [
        Column("median (ms)", lambda line: milliseconds(line.entry.median_s)),
        Column("IQR (ms)", lambda line: milliseconds(line.entry.iqr_s)),
        Column("min (ms)", lambda line: milliseconds(line.entry.min_s)),
        Column("rounds", lambda line: number(line.entry.rounds)),
    ]
    if several:
        found.append(Column("median / file 1", lambda line: number(line.ratio, 3)))
    return found


def milliseconds(seconds: float) -> str:
    return number(1000 * seconds)


def notes(benchmarks: list[Benchmarks], files: list[int]) -> list[str]:
    """Where each file comes from, and whether the ratios compare machines instead of code."""
    if len(benchmarks) == 1:
        return [benchmarks[0].origin]
    found = [f"File {index} is {benchmarks[index - 1].origin}" for index in files]
    if len({(benchmarks[index - 1].machine, benchmarks[index - 1].python) for index in files}) > 1:
        found.append(
            "These files are of different machines or Pythons: the ratios do not compare code alone."
        )
    return found
