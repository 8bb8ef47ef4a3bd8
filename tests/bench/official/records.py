"""What was measured: one line of JSON for each case, in one file that is replaced whole."""

from __future__ import annotations

import ast
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blocks
from ctxbench import clocks, environment, gate, pinning, statistics, subject
from ctxbench.errors import UsageError
from ctxbench.store import write_atomically
from tests.bench.official import comparison, contest, hamburgers, implementations, maps, sources, tokens

Line = dict[str, Any]
IDENTITY = ("label", "official", "mode", "dtype", "channels", "height", "width", "env_hash")
COMPARING = (
    *(clocks, gate, pinning, statistics, subject),
    *(comparison, contest, hamburgers, implementations, maps, sources, tokens),
)


@dataclass(frozen=True)
class RecordFile:
    """The file of a study; a case that is measured again takes its old line's place."""

    path: Path

    def read(self) -> list[Line]:
        """All lines that can be read.

        Raises:
            UsageError: if the file cannot be.
        """
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from None
        return [found for line in text.splitlines() if (found := parsed(line)) is not None]

    def find(self, line: Line) -> Line | None:
        """The record of the same case, environment and code that tells a time."""
        same = [found for found in self.read() if case_of(found) == case_of(line)]
        return next((it for it in same if it.get("status") == "ok" and it.get("code") == line["code"]), None)

    def add(self, line: Line) -> None:
        kept = [found for found in self.read() if case_of(found) != case_of(line)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(json.dumps(it) + "\n" for it in [*kept, line]))


def parsed(text: str) -> Line | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


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
        named = [node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module]
        waiting += [name for name in named if name.startswith("blocks.")]
    return found
