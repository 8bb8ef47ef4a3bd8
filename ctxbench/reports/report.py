"""A report: what records say, as sentences, tables and figures, and the files that hold them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxbench.benchmarks import Benchmarks
from ctxbench.benchmarks import tables as benchmark_tables
from ctxbench.errors import UsageError
from ctxbench.record import Row
from ctxbench.reports.inputs import commits, labelled
from ctxbench.reports.leaderboards import leaderboards
from ctxbench.reports.method import ENVIRONMENT, METHOD
from ctxbench.reports.published import Comparison, checked, compare_all
from ctxbench.reports.published_table import published_table, related, summary, unchecked
from ctxbench.reports.repeatability import pooled, repeatability_table
from ctxbench.reports.scores import score_tables
from ctxbench.reports.verdicts import Answer, Verdicts, answers, verdicts
from ctxbench.store import Commands, Reading, Unreadable, make_folder, write_atomically
from ctxbench.tables import Table, escape_markdown, markdown, markdown_prose, printable

if TYPE_CHECKING:
    from ctxbench.figures.style import Picture

DEFAULT_BASELINE = "self-attn"
MOST_FIGURES = 12  # on a page; --figures writes all
OURS = re.compile(  # names of our figures: others that lie beside them are not ours to remove
    r"((macs|memory|latency|pareto|roofline)-(infer|train)-b\d+-c\d+-[a-z0-9-]+|ablation-[a-z0-9-]+-\d+|published"
    r"|(scores|tradeoff|cues|predictions|updates)-\d+)(-again-\d+)?\.(png|svg|pdf)"
)


@dataclass(frozen=True)
class Report:
    """What a page is made of.

    Attributes:
        rows: of the records; unreadable, missing, folders, commands: as in `Reading`.
        baseline: the block that ratios refer to.
        benchmarks: files that pytest-benchmark saved.
    """

    rows: list[Row]
    unreadable: list[Unreadable] = field(default_factory=list)
    missing: int = 0
    folders: dict[str, Path] = field(default_factory=dict)
    commands: dict[str, Commands] = field(default_factory=dict)
    baseline: str | None = None
    benchmarks: tuple[Benchmarks, ...] = ()

    @classmethod
    def of(
        cls, reading: Reading, baseline: str | None = None, benchmarks: Iterable[Benchmarks] = ()
    ) -> Report:
        """The report on what was read, and on files that pytest-benchmark saved.

        Raises:
            UsageError: for a baseline that no record has.
        """
        rows = labelled(reading.rows)
        chosen = choose_baseline(rows, baseline)
        return cls(
            rows,
            reading.unreadable,
            reading.missing,
            reading.folders,
            reading.commands,
            chosen,
            tuple(benchmarks),
        )

    @cached_property
    def profiles(self) -> list[Row]:
        """Costs of blocks and of updates, several runs of a cell as one row."""
        return pooled([row for row in self.rows if row["kind"] != "task"])

    @cached_property
    def trained(self) -> list[Row]:
        return [row for row in self.rows if row["kind"] == "task"]

    @cached_property
    def answers(self) -> list[Answer]:
        """What a reader should know first."""
        found = answers(self.blocks, self.trained, self.baseline)
        return [Answer(printable(it.about), printable(it.said)) for it in found]

    @property
    def blocks(self) -> list[Row]:
        """Costs of blocks alone."""
        return [row for row in self.profiles if row["kind"] == "profile"]

    @cached_property
    def costs(self) -> list[Table[Any]]:
        return [*leaderboards(self.profiles, self.baseline)]

    @cached_property
    def scores(self) -> list[Table[Any]]:
        return score_tables(self.trained)

    @cached_property
    def verdicts(self) -> Verdicts:
        return verdicts(self.blocks, self.baseline)

    @cached_property
    def repeatability(self) -> list[Table[Any]]:
        found = repeatability_table([row for row in self.rows if row["kind"] != "task"])
        return [found] if found else []

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every published number, beside what was found of it."""
        return compare_all(self.rows)

    @property
    def published(self) -> list[Table[Any]]:
        """Published numbers beside those found here, if there are any."""
        found = checked(self.comparisons)
        title = "Published numbers beside those found here"
        return [published_table(found, title, whole=False)] if found else []

    @property
    def tables(self) -> list[Table[Any]]:
        """All that a terminal shows."""
        return [*self.published, *(table for _, tables in self.sections for table in tables)]

    def write(self, out: Path, home: str | None = None) -> Path:
        """Write `index.html`, `report.md` and `figures/`; returns the page's path.

        Args:
            home: the address of the page that lists several reports, if there is one.

        Raises:
            UsageError: if `out` cannot be a folder.
            WriteError: if a file cannot be written.
        """
        folder = make_folder(out / "figures")
        pictures = self.pictures()
        shown = pictures[:MOST_FIGURES]
        write_pictures(folder, shown)
        write_atomically(out / "report.md", self.markdown(shown))
        write_atomically(out / "index.html", self.html(shown, len(pictures) - len(shown), home))
        return out / "index.html"

    def write_figures(self, out: Path) -> Path:
        """Write every figure as PNG of 300 dpi, SVG and PDF; returns their folder.

        Raises:
            UsageError: if `out` cannot be a folder.
            WriteError: if a file cannot be written.
        """
        folder = make_folder(out / "figures")
        pictures = self.pictures()
        for picture in pictures:
            write_atomically(folder / f"{picture.name}.svg", picture.svg)
            write_atomically(folder / f"{picture.name}.pdf", picture.pdf())
            write_atomically(folder / f"{picture.name}.png", picture.png(dpi=300))
        sweep(folder, {it.name for it in pictures})
        return folder

    def pictures(self) -> list[Picture]:
        """All figures that the records allow, the most telling first; not drawn yet."""
        if not self.rows:
            return []
        from ctxbench.figures.gallery import pictures

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a glyph that no font has is drawn as a box
            return pictures(self.rows, self.folders, checked(self.comparisons))

    def markdown(self, pictures: Iterable[Picture] = ()) -> str:
        """The whole report in GitHub's Markdown."""
        parts = ["# ctxbench report", "", *bullets(self.summary)]
        if self.answers:
            parts += ["## In short", "", *bullets(f"{it.about}: {it.said}" for it in self.answers)]
        for title, tables in self.sections:
            parts += [f"## {escape_markdown(title)}", "", *map(markdown, tables)]
        parts += ["## Published numbers", "", *bullets([summary(self.comparisons)])]
        parts += map(markdown, self.published)
        parts += [f"![{escape_markdown(it.caption)}](figures/{it.name}.png)\n" for it in pictures]
        parts += ["## How it was measured", "", *bullets(self.method)]
        return "\n".join(parts).rstrip() + "\n"

    def html(self, pictures: Sequence[Picture], more: int = 0, home: str | None = None) -> str:
        """The page.

        Args:
            pictures: the figures to show; more: how many others there are.
            home: the address of the page that lists the reports of a site.
        """
        from ctxbench.reports.page import render

        sections = list(self.sections)
        if found := checked(self.comparisons):
            others = unchecked(related(self.comparisons, self.rows))
            table = published_table(found, "Published numbers beside those found here")
            sections.append(("Published numbers", [replace(table, notes=[*table.notes, *others])]))
        return render(
            self.title,
            self.summary,
            sections,
            answers=self.answers,
            pictures=pictures,
            more=more,
            home=home,
            method=self.method,
            specs=list(dict.fromkeys(row["spec"] for row in self.blocks)),
            baseline=self.baseline or "",
            rows=self.rows,
            commands=self.commands,
        )

    @property
    def title(self) -> str:
        names = sorted({row["run_id"] for row in self.rows})
        return (
            f"ctxbench: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            if names
            else "ctxbench report"
        )

    @property
    def sections(self) -> list[tuple[str, list[Table[Any]]]]:
        found = self.verdicts
        sections = [
            ("Which block is cheapest where", found.cheapest),
            ("Costs", [*self.costs, *found.matrices]),
            ("Scores", self.scores),
            (f"Where each block is cheaper than {self.baseline}", found.overtaking),
            ("Benchmarks", benchmark_tables(list(self.benchmarks))),
            ("Repeatability", self.repeatability),
        ]
        return [(title, tables) for title, tables in sections if tables]

    @property
    def method(self) -> list[str]:
        """How the kinds of records that there are were made."""
        kinds = {row["kind"] for row in self.rows} or {"profile"}
        return [line for kind, lines in METHOD.items() if kind in kinds for line in lines]

    @property
    def summary(self) -> list[str]:
        """What was run, where, and what is missing, a line each."""
        runs = ", ".join(sorted({row["run_id"] for row in self.rows}))
        lines = [self.counts(), *([f"runs: {runs}"] if runs else [])]
        environments = {row["env_hash"]: row for row in reversed(self.rows) if not row["estimated"]}
        for row in sorted(environments.values(), key=lambda row: row["created_utc"]):
            known = [(label, row[column]) for label, column in ENVIRONMENT if row[column] is not None]
            known = [it for it in known if it != ("CPU", row["device_name"])]
            lines.append(", ".join(f"{label} {value}" for label, value in known))
        code = commits((row["git_commit"], row["git_dirty"]) for row in self.rows)
        lines += [f"code: {code}"] if code else []
        if self.unreadable:
            names = ", ".join(f"{file.path.name} ({file.reason})" for file in self.unreadable[:5])
            more = ", …" if len(self.unreadable) > 5 else ""
            lines.append(f"unreadable: {len(self.unreadable)} file(s) left out: {names}{more}")
        return [printable(line) for line in dict.fromkeys(lines)]

    def counts(self) -> str:
        if not self.rows:
            return (
                f"no records of {self.missing} planned cells"
                if self.missing
                else "no records: this run is empty"
            )
        by_status = Counter(
            "estimated" if row["estimated"] and row["status"] == "ok" else row["status"] for row in self.rows
        )
        counted = ", ".join(f"{count} {status}" for status, count in sorted(by_status.items()))
        days = sorted(row["created_utc"][:10] for row in self.rows)
        when = " to ".join(dict.fromkeys([days[0], days[-1]]))
        planned = f" of {len(self.rows) + self.missing} planned" if self.missing else ""
        return f"{len(self.rows)}{planned} cells ({counted}), {when}"


def choose_baseline(rows: list[Row], wanted: str | None) -> str | None:
    """The block that ratios refer to: the wanted one, or self-attention if it is there.

    Raises:
        UsageError: if no row has the wanted one.
    """
    specs = dict.fromkeys(row["spec"] for row in rows if row["kind"] != "task")
    if wanted is not None and wanted not in specs:
        raise UsageError(f"no record of {wanted!r} to compare with; there are: {', '.join(specs) or 'none'}")
    return DEFAULT_BASELINE if wanted is None and DEFAULT_BASELINE in specs else wanted


def write_pictures(folder: Path, pictures: Iterable[Picture]) -> None:
    """Write the pictures for a page, and remove older ones of ours."""
    names = set()
    for picture in pictures:
        write_atomically(folder / f"{picture.name}.svg", picture.svg)
        write_atomically(folder / f"{picture.name}.png", picture.png())
        names.add(picture.name)
    sweep(folder, names)


def sweep(folder: Path, names: set[str]) -> None:
    """Remove figures of ours that are not among these any more; what cannot be removed stays."""
    if folder.is_symlink():  # it is the user's, and elsewhere
        return
    for old in folder.glob("*"):
        if old.is_file() and OURS.fullmatch(old.name) and old.stem not in names:
            with contextlib.suppress(OSError):
                old.unlink()


def bullets(lines: Iterable[str]) -> list[str]:
    return [*(f"* {markdown_prose(line)}" for line in lines), ""]


def tables_of(rows: list[Row], baseline: str | None = None) -> list[Table[Any]]:
    """What a terminal shows of these rows.

    Raises:
        UsageError: for a baseline that no row has.
    """
    return Report(labelled(rows), baseline=choose_baseline(rows, baseline)).tables
