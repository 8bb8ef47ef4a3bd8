"""A run's folder: one JSON file per record, written atomically, read with tolerance."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxbench.errors import UsageError, WriteError, first_line
from ctxbench.record import FAILED, Record, Row

MAX_RECORD_BYTES = 2**20
MAX_PLAN_BYTES = 2**26
Commands = tuple[tuple[str, str], ...]
TEMPORARY = re.compile(r".*\.tmp-\d+-[0-9a-f]+")
STALE_AFTER_S = 3600


@dataclass(frozen=True)
class Unreadable:
    """A file that is no record, and why."""

    path: Path
    reason: str


class RunStore:
    """The folder of one run: `records/<cell id>.json`, `plans/<hash>.json`, `commands/<moment>.json`.

    What was measured anew, or could not be read, is kept in `replaced/<moment>/`, which nothing reads.

    Several processes may write to it: a record is complete or absent, and the last one wins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = folder / "records"
        self.plans = folder / "plans"
        self.commands = folder / "commands"

    @classmethod
    def create(cls, folder: Path) -> RunStore:
        """Open the folder for writing, and sweep what writers left that died.

        Raises:
            UsageError: if it is a file or cannot be written to.
        """
        store = cls(folder)
        try:
            for part in (store.records, store.plans, store.commands):
                part.mkdir(parents=True, exist_ok=True)
                sweep(part)
        except FileExistsError as error:
            raise UsageError(f"{error.filename} is a file; choose another folder with --out") from None
        except OSError as error:
            raise UsageError(
                f"cannot write to {folder}: {error.strerror}; choose another with --out"
            ) from None
        return store

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """Open a folder for reading.

        Raises:
            UsageError: if it is not a run's folder.
        """
        store = cls(folder)
        try:
            if folder.is_file():
                raise UsageError(f"{folder} is a file; name the folder of a run, such as results/runs/NAME")
            if not store.records.is_dir():
                raise UsageError(f"{folder} holds no run; make one with: ctxbench profile --out {folder}")
        except OSError as error:
            raise UsageError(f"cannot read {folder}: {error.strerror}") from None
        return store

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.resolve().name.encode(errors="replace").decode()

    def write(self, record: Record) -> None:
        write_atomically(self.records / f"{record.cell_id}.json", record.to_json())

    def set_aside(self, cells: Iterable[str]) -> None:
        """Take the records of these cells out of the run, and keep them in `replaced/`.

        Raises:
            WriteError: naming the folder and the reason.
        """
        there = [path for cell in cells if (path := self.records / f"{cell}.json").exists()]
        if not there:
            return
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        folder = self.folder / "replaced" / f"{moment}-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True)
            for path in there:
                with contextlib.suppress(FileNotFoundError):  # another writer was first
                    os.replace(path, folder / path.name)
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror}") from error

    def load(self, cell_id: str) -> Record | None:
        """The record of one cell; None if there is none, or none that can be read."""
        try:
            return _read_record(self.records / f"{cell_id}.json")
        except (OSError, ValueError, RecursionError):
            return None

    def write_command(self, about: dict[str, Any]) -> None:
        """Note what concerns a whole command, its words and its machine, in a file of its own."""
        moment = re.sub(r"[^0-9T]", "", str(about["started_utc"]))[:15]
        path = self.commands / f"{moment}-{secrets.token_hex(4)}.json"
        write_atomically(path, json.dumps(about, indent=1, sort_keys=True) + "\n")

    def typed(self) -> Commands:
        """The commands that were carried out here, the first one first; what cannot be read is left out."""
        found = []
        with contextlib.suppress(OSError):
            for path in sorted(self.commands.glob("*.json")):
                with contextlib.suppress(OSError, ValueError, RecursionError):
                    about = json.loads(read_text(path, MAX_RECORD_BYTES))
                    if isinstance(about, dict) and isinstance(about.get("command"), str):
                        found.append((str(about.get("started_utc", "")), about["command"]))
        return tuple(sorted(found))

    def write_plan(self, cells: list[str]) -> None:
        """Note which cells are to be measured, so that a reader knows what is missing.

        Each plan has a file of its own, named after what it holds: several writers cannot clash.
        """
        text = json.dumps(sorted(cells)) + "\n"
        path = self.plans / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        with contextlib.suppress(OSError, ValueError):
            if read_text(path, MAX_PLAN_BYTES) == text:
                return
        write_atomically(path, text)

    def planned(self) -> set[str]:
        """The ids of all cells that were ever planned here; a plan that cannot be read counts as none."""
        found: set[str] = set()
        with contextlib.suppress(OSError):
            for path in self.plans.glob("*.json"):
                with contextlib.suppress(OSError, ValueError, RecursionError):
                    cells = json.loads(read_text(path, MAX_PLAN_BYTES))
                    if isinstance(cells, list) and all(isinstance(cell, str) for cell in cells):
                        found.update(cells)
        return found

    def read(self) -> tuple[list[Record], list[Unreadable]]:
        """All records, by file name, and the files that are none.

        Raises:
            UsageError: if the folder itself cannot be read.
        """
        try:
            paths = sorted(path for path in self.records.iterdir() if path.suffix == ".json")
        except OSError as error:
            raise UsageError(f"cannot read {self.records}: {error.strerror}") from None
        records, unreadable = [], []
        for path in paths:
            try:
                records.append(_read_record(path))
            except (OSError, ValueError, RecursionError) as error:
                unreadable.append(Unreadable(path, tell(error)))
        return records, unreadable


@dataclass(frozen=True)
class Reading:
    """What the folders of runs hold.

    Attributes:
        records: each once, even if a folder is named twice.
        unreadable: files that are no records.
        absent: how many cells were planned and have no record, by the names of the runs.
        names: of the runs; they are the `run_id` of their records, whatever the folders were called.
        folders: of the runs, by their names.
        commands: that made the runs, by their names: when each was begun, and its words.
    """

    records: list[Record]
    unreadable: list[Unreadable]
    absent: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    folders: dict[str, Path] = field(default_factory=dict)
    commands: dict[str, Commands] = field(default_factory=dict)

    @classmethod
    def of(cls, folders: list[Path]) -> Reading:
        """Read the folders of runs.

        Raises:
            UsageError: for a folder that holds no run.
        """
        stores = [RunStore.open(folder) for folder in folders]
        records: dict[tuple[Any, ...], Record] = {}
        unreadable, absent = [], dict[str, int]()
        unique = {store.folder.resolve(): store for store in stores}
        unique = dict(
            sorted(unique.items(), key=lambda it: (it[0].name, it[0]))
        )  # whatever the order they came in
        names = telling_names(list(unique))
        for name, store in zip(names, unique.values(), strict=True):
            found, damaged = store.read()
            for it in found:
                same = tuple(value for key, value in it if key != "run_id")  # in a copied folder
                records.setdefault(same, it if it.run_id == name else it.model_copy(update={"run_id": name}))
            unreadable += damaged
            absent[name] = len(store.planned() - {it.cell_id for it in found})
        places = {name: store.folder for name, store in zip(names, unique.values(), strict=True)}
        typed = {name: store.typed() for name, store in zip(names, unique.values(), strict=True)}
        ordered = sorted(
            records.values(), key=lambda it: (it.created_utc, it.run_id, it.cell_id, it.env_hash)
        )
        return cls(ordered, unreadable, absent, tuple(names), places, typed)

    def of_run(self, name: str) -> Reading:
        """What one of the folders holds, and the others do not hold as well."""
        folder = self.folders[name]
        return Reading(
            [record for record in self.records if record.run_id == name],
            [file for file in self.unreadable if file.path.is_relative_to(folder)],
            {name: self.absent[name]},
            (name,),
            {name: folder},
            {name: self.commands[name]},
        )

    @property
    def missing(self) -> int:
        """How many cells were planned and have no record."""
        return sum(self.absent.values())

    @property
    def rows(self) -> list[Row]:
        return [record.row for record in self.records]

    @property
    def faults(self) -> list[str]:
        """What keeps this from being whole: unreadable files, missing cells, failed cells."""
        failed = sum(record.status in FAILED for record in self.records)
        counts = (
            (len(self.unreadable), "unreadable file(s)"),
            (self.missing, "planned cell(s) without a record"),
            (failed, "failed cell(s)"),
        )
        return [f"{count} {what}" for count, what in counts if count]


def telling_names(folders: list[Path]) -> list[str]:
    """The last parts of each path, as many as tell the paths apart."""
    parts = max((len(folder.parts) for folder in folders), default=1)
    for count in range(1, parts + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    told = [name.removeprefix("//") for name in names] if folders else []
    return [name.encode(errors="replace").decode() for name in told]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: whatever happens, it is either old or complete.

    Raises:
        WriteError: naming the path and the reason.
    """
    data = content.encode(errors="replace") if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what writers left that died."""
    for path in folder.iterdir():
        if _is_stale(path):
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """The folder, which is there then.

    Raises:
        UsageError: if it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another with --out") from None
    return folder


def _read_record(path: Path) -> Record:
    record = Record.from_json(read_text(path, MAX_RECORD_BYTES))
    if record.cell_id != path.stem:
        raise ValueError(f"holds cell {record.cell_id}")
    return record


def read_text(path: Path, largest: int) -> str:
    """A file's text: never a pipe's, which would wait, nor more than so many bytes."""
    if not path.is_file():
        raise ValueError("not a regular file")
    if path.stat().st_size > largest:
        raise ValueError(f"larger than {largest} bytes")
    return path.read_text(encoding="utf-8")


def tell(error: Exception) -> str:
    """What was wrong, on one line."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
    return first_line(error)


def _is_stale(path: Path) -> bool:
    """Whether this is a temporary file that nobody is writing any more."""
    if not TEMPORARY.fullmatch(path.name) or not path.is_file():
        return False
    try:
        return time.time() - path.stat().st_mtime > STALE_AFTER_S
    except FileNotFoundError:  # its writer has just finished
        return False
