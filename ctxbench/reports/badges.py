"""Badges for a README: each block's costs as multiples of the baseline's, as SVG files and a Markdown table."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from ctxbench.errors import UsageError
from ctxbench.record import Row
from ctxbench.reports.contests import CONTROL, LATENCY, Interval, interval
from ctxbench.reports.verdicts import QUESTIONS, Scene, scenes
from ctxbench.store import write_atomically
from ctxbench.tables import escape_markdown, number, printable

NAMES = {"macs_total": "MACs", "memory_predicted_bytes": "memory", LATENCY: "latency"}
BETTER, WORSE, ALIKE = "#2e7d4f", "#a5501b", "#5b6774"
LETTER = 6.6  # pixels, of 11 px sans-serif
LONGEST = 40  # characters of a name

SVG = jinja2.Environment(autoescape=True).from_string(
    '<svg xmlns="http://www.w3.org/2000/svg" width="{{ left + right }}" height="20" role="img" aria-label="{{ about }}"><title>{{ about }}</title>'
    '<rect width="{{ left }}" height="20" fill="#444"/><rect x="{{ left }}" width="{{ right }}" height="20" fill="{{ colour }}"/>'
    '<g fill="#fff" font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
    '<text x="{{ left / 2 }}" y="14">{{ name }}</text><text x="{{ left + right / 2 }}" y="14">{{ value }}</text></g></svg>\n'
)


@dataclass(frozen=True)
class Badge:
    """One cost of one block, as a multiple of the baseline's."""

    spec: str
    baseline: str
    column: str
    where: str
    ours: Interval
    theirs: Interval

    @property
    def name(self) -> str:
        return NAMES[self.column]

    @property
    def file(self) -> str:
        plain = re.sub(r"[^a-z0-9]+", "-", self.spec.lower()).strip("-")[:40] or "block"
        own = "" if plain == self.spec else f"-{zlib.crc32(self.spec.encode(errors='replace')):08x}"
        return f"{plain}{own}-{self.name.lower()}.svg"

    @property
    def value(self) -> str:
        return f"{number(self.ours.middle / self.theirs.middle, 2)}x {printable(self.baseline)[:LONGEST]}"

    @property
    def colour(self) -> str:
        return BETTER if self.ours < self.theirs else WORSE if self.theirs < self.ours else ALIKE

    @property
    def svg(self) -> str:
        left, right = (round(LETTER * len(text) + 12) for text in (self.name, self.value))
        about = printable(f"{self.spec}: {self.name} {self.value}, {self.where}")
        return SVG.render(
            left=left, right=right, name=self.name, value=self.value, colour=self.colour, about=about
        )


def write_badges(rows: Sequence[Row], baseline: str | None, out: Path) -> Path:
    """Write `badges.md` and the files it shows; returns its path. Of several inputs the one with most records.

    Raises:
        UsageError: if there is nothing to compare, or `out` cannot be a folder.
        WriteError: if a file cannot be written.
    """
    scene = next((it for it in scenes(rows) if baseline is not None and it.of(baseline)), None)
    found = list(badges(scene, baseline)) if scene and baseline else []
    if scene is None or not found:
        wanted = f"the baseline, {baseline}" if baseline else "a baseline"
        raise UsageError(
            f"--badges: there is no profile of several blocks and {wanted}; choose another with --baseline"
        )
    try:
        (out / "badges").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}; choose another with --out") from None
    for badge in found:
        write_atomically(out / "badges" / badge.file, badge.svg)
    columns = [name for name in NAMES if any(it.column == name for it in found)]
    size = "x".join(map(str, largest(scene, baseline or "")))
    lines = [
        f"Costs as multiples of {escape_markdown(str(baseline))}, at {size}: {escape_markdown(scene.title)}.",
        "",
        "| block | " + " | ".join(NAMES[name] for name in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for spec in dict.fromkeys(it.spec for it in found):
        own = {it.column: it for it in found if it.spec == spec}
        cells = [f"![{own[name].value}](badges/{own[name].file})" if name in own else "" for name in columns]
        lines.append(f"| {escape_markdown(printable(spec)[:LONGEST])} | " + " | ".join(cells) + " |")
    write_atomically(out / "badges.md", "\n".join(lines) + "\n")
    return out / "badges.md"


def badges(scene: Scene, baseline: str) -> Iterator[Badge]:
    """Of each block that does work and each cost, at the largest resolution that the baseline has."""
    rows = scene.sizes[largest(scene, baseline)]
    unit = next(row for row in rows if row["spec"] == baseline)
    where = f"{'x'.join(map(str, largest(scene, baseline)))}, {scene.title}"
    for row in rows:
        for column in QUESTIONS:
            ours, theirs = interval(row, column), interval(unit, column)
            if ours and theirs and row["spec"] != baseline and row["family"] != CONTROL:
                yield Badge(row["spec"], baseline, column, where, ours, theirs)


def largest(scene: Scene, baseline: str) -> tuple[int, int]:
    """The largest resolution at which the baseline was timed, or else counted."""
    found = [(row["height"], row["width"]) for row in scene.of(baseline) if interval(row, LATENCY)]
    sizes = found or [(row["height"], row["width"]) for row in scene.of(baseline)]
    return max(sizes, key=lambda it: (it[0] * it[1], it))
