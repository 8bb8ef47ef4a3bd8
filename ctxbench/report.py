"""From records to files: one self-contained page, one Markdown file, and the figures."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxbench.errors import UsageError
from ctxbench.published import compare_profile
from ctxbench.record import Row
from ctxbench.store import RunStore, Unreadable, to_frame, write_atomically
from ctxbench.tables import Table, leaderboards, markdown, published_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_BASELINE = "self-attn"
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
    tables: list[Table]

    @classmethod
    def of(cls, folders: list[Path], baseline: str | None = None) -> Report:
        """Read runs and work out their tables.

        Raises:
            UsageError: for a folder that holds no run, and a baseline that no record has.
        """
        loaded = [RunStore.open(folder).read() for folder in dict.fromkeys(folders)]
        rows = [record.row for records, _ in loaded for record in records]
        unreadable = [file for _, files in loaded for file in files]
        return cls(rows, unreadable, tables_of(rows, baseline))

    def write(self, out: Path) -> Path:
        """Write `index.html`, `report.md` and `figures/`; returns the page's path.

        Raises:
            UsageError: if `out` cannot be written to.
        """
        try:
            (out / "figures").mkdir(parents=True, exist_ok=True)
            pictures = self.write_figures(out / "figures")
            write_atomically(out / "report.md", self.markdown(pictures))
            write_atomically(out / "index.html", self.html(pictures))
        except OSError as error:
            raise UsageError(f"cannot write {error.filename or out}: {error.strerror}") from None
        return out / "index.html"

    def write_figures(self, folder: Path) -> list[Picture]:
        """Every figure as PNG and SVG."""
        if not self.rows:
            return []
        from ctxbench import plots

        pictures = []
        for name, (caption, figure) in plots.figures(to_frame(self.rows)).items():
            svg = as_svg(figure)
            write_atomically(folder / f"{name}.svg", svg)
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
            pictures.append(Picture(name, caption, inline_svg(svg, name)))
        return pictures

    def markdown(self, pictures: list[Picture]) -> str:
        parts = ["# ctxbench report", "", *(f"* {line}" for line in self.summary), ""]
        parts += [markdown(table) for table in self.tables]
        parts += [f"![{picture.caption}](figures/{picture.name}.png)\n" for picture in pictures]
        return "\n".join(parts)

    def html(self, pictures: list[Picture]) -> str:
        import jinja2

        templates = jinja2.Environment(
            loader=jinja2.PackageLoader("ctxbench"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        return templates.get_template("report.html.j2").render(
            summary=self.summary, tables=self.tables, pictures=pictures
        )

    @property
    def summary(self) -> list[str]:
        """What was run, where, and what is missing, a line each."""
        lines = [self.counts()]
        environments = {row["env_hash"]: row for row in reversed(self.rows)}
        for row in sorted(environments.values(), key=lambda row: row["created_utc"]):
            known = [(label, row[column]) for label, column in ENVIRONMENT if row[column] is not None]
            lines.append(", ".join(f"{label} {value}" for label, value in known))
        if self.unreadable:
            names = ", ".join(f"{file.path.name} ({file.reason})" for file in self.unreadable[:5])
            more = ", …" if len(self.unreadable) > 5 else ""
            lines.append(f"unreadable: {len(self.unreadable)} file(s) left out: {names}{more}")
        return lines

    def counts(self) -> str:
        if not self.rows:
            return "no records: this run is empty"
        by_status = Counter(row["status"] for row in self.rows)
        counted = ", ".join(f"{count} {status}" for status, count in sorted(by_status.items()))
        days = sorted(row["created_utc"][:10] for row in self.rows)
        when = " to ".join(dict.fromkeys([days[0], days[-1]]))
        return f"{len(self.rows)} cells ({counted}), {when}"


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str
    svg: Any  # markup, safe to put into a page


def tables_of(rows: list[Row], baseline: str | None = None) -> list[Table]:
    """Published beside measured first, if there is any, then the leaderboards.

    Raises:
        UsageError: for a baseline that no row has.
    """
    specs = list(dict.fromkeys(row["spec"] for row in rows))
    if baseline is not None and baseline not in specs:
        raise UsageError(
            f"no record of {baseline!r} to compare with; there are: {', '.join(specs) or 'none'}"
        )
    if baseline is None and DEFAULT_BASELINE in specs:
        baseline = DEFAULT_BASELINE
    compared = compare_profile(rows)
    head = [published_table(compared)] if compared else []
    return head + leaderboards(rows, baseline)


def as_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline_svg(svg: str, name: str) -> Any:
    """The <svg> element alone, with ids of its own so that several fit into one page."""
    from markupsafe import Markup

    element = svg[svg.index("<svg") :]
    element = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", element)
    return Markup(element)  # matplotlib escapes the text it draws
