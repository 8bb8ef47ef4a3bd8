"""What was measured: one line of JSON for each case, in one file that is replaced whole."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blocks
from ctxbench import clocks, environment, gate, pinning, statistics, subject
from ctxbench.reports.official import read_official
from ctxbench.store import make_folder, sweep, write_atomically
from tests.bench.official import comparison, contest, hamburgers, implementations, maps, sources, tokens

Line = dict[str, Any]
IDENTITY = ("label", "official", "mode", "dtype", "channels", "height", "width", "env_hash")
UNDECIDED = ("missing", "failed")
COMPARING = (
    *(clocks, gate, pinning, statistics, subject),
    *(comparison, contest, hamburgers, implementations, maps, sources, tokens),
)


@dataclass(frozen=True)
class RecordFile:
    """The file of a study; a case that is measured again takes its old line's place."""

    path: Path

    def read(self) -> list[Line]:
        """All lines.

        Raises:
            UsageError: if the file cannot be read, or holds what is no record: it would be lost.
        """
        return [json.loads(text) for text, _ in read_official(self.path)]

    def open(self) -> None:
        """Find out before anything is measured whether lines can be read and a folder holds them; sweep that.

        Raises:
            UsageError: if not.
        """
        with self.alone():
            sweep(self.path.parent)
            self.read()

    def find(self, line: Line) -> Line | None:
        """The record of the same case, environment and code that tells a time."""
        return next((it for it in self.read() if measured(it, line) and it.get("code") == line["code"]), None)

    def add(self, line: Line) -> None:
        """Write a line; a comparison that could not be made takes no measured one's place.

        Raises:
            UsageError, WriteError: if the file cannot be read or written.
        """
        with self.alone():
            found = self.read()
            if line["status"] in UNDECIDED and any(measured(it, line) for it in found):
                return
            kept = [it for it in found if case_of(it) != case_of(line)]
            write_atomically(self.path, "".join(json.dumps(it) + "\n" for it in [*kept, line]))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other process writes to the folder meanwhile."""
        handle = os.open(make_folder(self.path.parent), os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def measured(found: Line, line: Line) -> bool:
    """Whether a record tells the time of this case."""
    return case_of(found) == case_of(line) and found.get("status") == "ok"


def case_of(line: Line) -> str:
    return json.dumps([line.get(name) for name in IDENTITY])


def code_of(block: str) -> str:
    """Changes with the source of a block, of what it imports from the catalogue, and of all that compares and times it."""
    files = sources_of(blocks.info(block).cls.__module__)
    files |= {Path(module.__file__) for module in COMPARING if module.__file__}
    return environment.digest_of(sorted(files))


def sources_of(module: str) -> set[Path]:
    """The files of a module of the catalogue and of those that it imports from there."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        spec = importlib.util.find_spec(waiting.pop())
        path = Path(spec.origin) if spec and spec.origin else None
        if path is None or path in found:
            continue
        found.add(path)
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imports = [(node.module or "", node.names) for node in tree if isinstance(node, ast.ImportFrom)]
        waiting += [package for package, _ in imports if package.startswith("blocks.")]
        waiting += [
            f"blocks.{each.name}" for package, names in imports if package == "blocks" for each in names
        ]
    return found
