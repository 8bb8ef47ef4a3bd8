"""From records to files: one self-contained page, one Markdown file, and the figures."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxbench.benchmarks import Benchmarks
from ctxbench.benchmarks import tables as benchmark_tables
from ctxbench.errors import UsageError
from ctxbench.record import Row
from ctxbench.reports.leaderboards import leaderboards
from ctxbench.reports.published import compare_profile, published_table
from ctxbench.reports.repeatability import pooled, repeatability_table
from ctxbench.reports.scores import score_tables
from ctxbench.store import Reading, Unreadable, to_frame, write_atomically
from ctxbench.tables import Table, escape_markdown, markdown, printable

DEFAULT_BASELINE = "self-attn"
FIGURE = re.compile(
    r"((macs|memory|latency|pareto)-(infer|train)-b\d+-c\d+-.*|(scores|predictions|cues)-\d+)\.(png|svg)"
)
METHOD = {
    "profile": (
        "MACs: multiply-accumulates of convolutions and matrix products in one forward, counted by the "
        "dispatcher and checked against each block's closed form. Element-wise work is not counted. Backward "
        "MACs are those executed, which depend on the kernels.",
        "Predicted peak memory: bytes alive at the worst moment, with the block's parameters and without its "
        "input and the gradient handed to its output, found by following the life of every storage; work space "
        "inside kernels is not seen. The allocator's peak is CUDA's own, counted alike. Training is one forward "
        "and backward, for the gradients of the parameters and of the input.",
        "Latency: median over interleaved rounds in random order, ± half of its 95 % order-statistic interval. "
        "Rounds end when that is within 2 % (CUDA: 1 %), which makes it a little optimistic, or when the time "
        "is spent: “not converged”. “Preempted”: the CPU time is under 90 % of the wall time, as others had the "
        "CPU. The interval speaks of this run alone: report several runs to see how far they are apart. On "
        "Linux, memory that was freed is kept from call to call, unless a flag says otherwise. On CUDA the span "
        "includes the launches of an eager run; a CUDA graph is timed by itself, after them. “/ matmul” is the "
        "time over that of a square matrix product in the same rounds (CPU: side 768, CPU times; CUDA: side 8192).",
        "A block is timed only after it has passed its correctness gate.",
    ),
    "step": (
        "Updates: one of the discriminator and one of the generator, on the same random images, timed in "
        "interleaved rounds as blocks are. MACs: of one forward of each network for a batch, blocks checked against "
        "their closed forms. Memory: predicted without the optimisers' states; the allocator's peak is with them.",
    ),
    "task": (
        "Scores: networks of one table differ in the block alone. Of one seed all have the same first weights "
        "outside the block, the same order of images and the same augmentation. The last checkpoint is scored, "
        "not the best one.",
        "The score of a block is the mean over its seeds, and “seeds from - to” their range: a difference "
        "within it is none. Rows of different protocol, data, network, machine or code are not in one table.",
        "CPU time: from the first iteration to the last with the evaluations between them, over all threads and "
        "the processes that load data.",
    ),
}
ENVIRONMENT = (
    ("device", "device_name"),
    ("CPU", "cpu"),
    ("threads", "threads"),
    ("torch", "torch"),
    ("CUDA", "cuda"),
    ("Python", "python"),
    ("ctxbench", "ctxbench_version"),
)


@dataclass(frozen=True)
class Report:
    """What a page is made of."""

    rows: list[Row]
    unreadable: list[Unreadable]
    missing: int
    tables: list[Table[Any]]
    folders: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(
        cls, reading: Reading, baseline: str | None = None, benchmarks: list[Benchmarks] | None = None
    ) -> Report:
        """Work out the tables of what was read, and of files that pytest-benchmark saved.

        Raises:
            UsageError: for a baseline that no record has.
        """
        rows = reading.rows
        tables = tables_of(rows, baseline) + benchmark_tables(benchmarks or [])
        return cls(rows, reading.unreadable, reading.missing, tables, reading.folders)

    def write(self, out: Path) -> Path:
        """Write `index.html`, `report.md` and `figures/`; returns the page's path.

        Raises:
            UsageError: if `out` cannot be a folder.
            WriteError: if a file cannot be written.
        """
        try:
            (out / "figures").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {out}: {error.strerror}; choose another with --out") from None
        pictures = self.write_figures(out / "figures")
        for old in (out / "figures").glob("*"):
            if (
                old.is_file()
                and FIGURE.fullmatch(old.name)
                and old.stem not in {picture.name for picture in pictures}
            ):
                old.unlink()
        write_atomically(out / "report.md", self.markdown(pictures))
        write_atomically(out / "index.html", self.html(pictures))
        return out / "index.html"

    def write_figures(self, folder: Path) -> list[Illustration]:
        """Every figure as PNG and SVG."""
        if not self.rows:
            return []
        from ctxbench.figures import costs, scores

        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a glyph that no font has is drawn as a box
            profiled, trained = (
                [row for row in self.rows if row["kind"] == kind] for kind in ("profile", "task")
            )
            drawn = scores.figures(trained, to_frame(trained), self.folders) if trained else []
            drawn += costs.figures(to_frame(pooled(profiled))) if profiled else []
            pictures = [(it, it.svg(), it.png()) for it in drawn]
        for picture, svg, png in pictures:
            write_atomically(folder / f"{picture.name}.svg", svg)
            write_atomically(folder / f"{picture.name}.png", png)
            inline = inline_svg(svg, picture.name, picture.caption)
            found.append(Illustration(picture.name, picture.caption, inline))
        return found

    def markdown(self, pictures: list[Illustration]) -> str:
        parts = ["# ctxbench report", "", *(f"* {escape_markdown(line)}" for line in self.summary), ""]
        parts += [markdown(table) for table in self.tables]
        parts += [f"![{escape_markdown(it.caption)}](figures/{it.name}.png)\n" for it in pictures]
        parts += ["### How it was measured", "", *(f"* {escape_markdown(line)}" for line in self.method), ""]
        return "\n".join(parts)

    def html(self, pictures: list[Illustration]) -> str:
        import jinja2

        templates = jinja2.Environment(
            loader=jinja2.PackageLoader("ctxbench"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        return templates.get_template("report.html.j2").render(
            summary=self.summary, tables=self.tables, pictures=pictures, method=self.method
        )

    @property
    def method(self) -> list[str]:
        """How the kinds of records that there are were made."""
        kinds = {row["kind"] for row in self.rows} or {"profile"}
        return [line for kind, lines in METHOD.items() if kind in kinds for line in lines]

    @property
    def summary(self) -> list[str]:
        """What was run, where, and what is missing, a line each."""
        runs = ", ".join(dict.fromkeys(row["run_id"] for row in self.rows))
        lines = [self.counts(), *([f"runs: {runs}"] if runs else [])]
        environments = {row["env_hash"]: row for row in reversed(self.rows)}
        for row in sorted(environments.values(), key=lambda row: row["created_utc"]):
            known = [(label, row[column]) for label, column in ENVIRONMENT if row[column] is not None]
            lines.append(", ".join(f"{label} {value}" for label, value in known))
        if self.unreadable:
            names = ", ".join(f"{file.path.name} ({file.reason})" for file in self.unreadable[:5])
            more = ", …" if len(self.unreadable) > 5 else ""
            lines.append(f"unreadable: {len(self.unreadable)} file(s) left out: {names}{more}")
        return [printable(line) for line in lines]

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


@dataclass(frozen=True)
class Illustration:
    """A figure on the page."""

    name: str
    caption: str
    svg: Any  # markup, safe to put into a page


def tables_of(rows: list[Row], baseline: str | None = None) -> list[Table[Any]]:
    """Published beside measured first, if there is any, then the leaderboards, then repetitions.

    Raises:
        UsageError: for a baseline that no row has.
    """
    scored = score_tables([row for row in rows if row["kind"] == "task"])
    rows = [row for row in rows if row["kind"] in ("profile", "step")]
    specs = list(dict.fromkeys(row["spec"] for row in rows))
    if baseline is not None and baseline not in specs:
        raise UsageError(
            f"no record of {baseline!r} to compare with; there are: {', '.join(specs) or 'none'}"
        )
    if baseline is None and DEFAULT_BASELINE in specs:
        baseline = DEFAULT_BASELINE
    compared = compare_profile([row for row in rows if row["kind"] == "profile"])
    head: list[Table[Any]] = [published_table(compared)] if compared else []
    repeated = repeatability_table(rows)
    return [*head, *scored, *leaderboards(pooled(rows), baseline), *([repeated] if repeated else [])]


def inline_svg(svg: str, name: str, caption: str) -> Any:
    """The <svg> element alone, labelled, with ids of its own so that several fit into one page.

    matplotlib escapes the text it draws, and `name` is made of a record's closed choices.
    """
    from markupsafe import Markup, escape

    def own_ids(tag: re.Match[str]) -> str:
        renamed = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag[0])
        return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", renamed)

    element = re.sub(r"<[^>]+>", own_ids, svg[svg.index("<svg") :])  # within tags, not in text
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1))
