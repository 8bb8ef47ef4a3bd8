"""Profiles by their input: what may stand in one figure, how that is called, and each block's way through it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ctxbench.figures.style import short
from ctxbench.record import FAILED, Row
from ctxbench.reports.contests import CONTROL, LATENCY
from ctxbench.reports.inputs import machine
from ctxbench.reports.leaderboards import trusted

INPUT = ("mode", "batch", "channels", "dtype")
MACHINE = ("compiled", "env_hash")


@dataclass(frozen=True)
class Group:
    """Profiles of one input, in one shape of each size; if `measured`, of one machine.

    Attributes:
        missing: what is not shown, as a part of the caption.
    """

    rows: list[Row]
    missing: str = ""
    measured: bool = False

    @property
    def about(self) -> str:
        """The input in words and, for what was measured, the machine."""
        row = self.rows[0]
        mode = "inference" if row["mode"] == "infer" else "training, forward and backward"
        about = f"{mode}, batch {row['batch']}, {row['channels']} channels, {row['dtype']}"
        if not self.measured:
            return about
        return f"{about}{', compiled' if row['compiled'] else ''}; {short(machine(row), 80)}"

    @property
    def slug(self) -> str:
        """The same as part of a file name."""
        row = self.rows[0]
        parts = [row["mode"], f"b{row['batch']}", f"c{row['channels']}", row["dtype"]]
        if self.measured:
            parts += [*(["compiled"] if row["compiled"] else []), row["env_hash"][:6]]
        return "-".join(parts)


def by_input(rows: list[Row]) -> list[Group]:
    """What is counted or predicted is the same on every machine; the largest group first."""
    return [Group(*one_shape_each(members)) for members in grouped(rows, INPUT)]


def by_machine(rows: list[Row]) -> list[Group]:
    """What was measured has a group for each machine, without the control: it does no work, and would win
    every contest and stretch the axes of what works."""
    found = []
    for members in grouped(rows, (*INPUT, *MACHINE)):
        working = [row for row in members if row["family"] != CONTROL]
        if any(row[LATENCY] is not None for row in working):
            kept, missing = one_shape_each(working)
            control = left_out(row["spec"] for row in members if row["family"] == CONTROL)
            found.append(Group(kept, control + missing, measured=True))
    return found


def grouped(rows: list[Row], names: tuple[str, ...]) -> list[list[Row]]:
    """Rows with equal columns, the largest group first."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return [members for _, members in sorted(found.items(), key=lambda it: (-len(it[1]), it[0]))]


def one_shape_each(rows: list[Row]) -> tuple[list[Row], str]:
    """Of several shapes with as many pixels the squarest, the same for all blocks; and a word on the others."""
    shapes = sorted(
        {(row["pixels"], row["height"] + row["width"], row["height"], row["width"]) for row in rows}
    )
    chosen = {pixels: (height, width) for pixels, _, height, width in reversed(shapes)}
    others = [f"{height}x{width}" for pixels, _, height, width in shapes if (height, width) != chosen[pixels]]
    kept = [row for row in rows if (row["height"], row["width"]) == chosen[row["pixels"]]]
    return kept, f"; as many pixels, and not shown: {', '.join(others)}" if others else ""


def left_out(specs: Iterable[str]) -> str:
    """What a logarithmic axis, or a contest of work, has no place for."""
    names = ", ".join(map(short, dict.fromkeys(specs)))
    return f"; not shown, as it does no work: {names}" if names else ""


@dataclass(frozen=True)
class Course:
    """One block from resolution to resolution: where it has a value, and where it failed."""

    spec: str
    good: list[Row]
    failed: list[Row]

    @property
    def rows(self) -> list[Row]:
        return sorted([*self.good, *self.failed], key=lambda row: row["pixels"])


def courses(rows: list[Row], column: str) -> list[Course]:
    """The course of every block, by name. Of a cell the value of the newest code counts, and a failure where
    there is none; a measurement before an estimate."""
    best: dict[tuple[str, int], Row] = {}
    for row in sorted(map(trusted, rows), key=lambda row: rank(row, column)):
        if usable(row, column) or row["status"] in FAILED:
            best[row["spec"], row["pixels"]] = row
    found: dict[str, Course] = {}
    for (spec, _), row in sorted(best.items(), key=lambda it: it[0]):
        course = found.setdefault(spec, Course(spec, [], []))
        (course.good if usable(row, column) else course.failed).append(row)
    return list(found.values())


def rank(row: Row, column: str) -> tuple[bool, bool, str]:
    return usable(row, column), not row["estimated"], row["created_utc"]


def usable(row: Row, column: str) -> bool:
    return row["status"] not in FAILED and drawable(row[column])


def drawable(value: float | None) -> bool:
    """Whether a logarithmic axis can show it; beyond these bounds lies no measurement."""
    return value is not None and 1e-9 < value < 1e24


def resolution(row: Row) -> str:
    return f"{row['height']}x{row['width']}"
