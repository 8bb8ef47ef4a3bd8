"""Commands that read records: report, compare, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ctxbench.cli.options import RUNS, FiniteRange, baseline_option, strict_option
from ctxbench.cli.program import OK, REGRESSION, SOME_FAILED, main, say
from ctxbench.errors import UsageError, first_line

if TYPE_CHECKING:
    from ctxbench.reports.report import Report
    from ctxbench.store import Reading


@main.command("report")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option(
    "--out", type=click.Path(path_type=Path), default="report", show_default=True, help="Folder to write."
)
@click.option("--figures", is_flag=True, help="Write all figures alone, as PNG, SVG and PDF for a paper.")
@click.option("--terminal", is_flag=True, help="Print the leaderboards here instead of writing files.")
@click.option("--badges", is_flag=True, help="Write badges for a README alone: costs over the baseline's.")
@click.option(
    "--markdown", type=click.Path(path_type=Path), help="Write the tables alone, as Markdown, to this file."
)
@click.option(
    "--site",
    type=click.Path(path_type=Path),
    help="Write a site to this folder: a page for each run, and one that compares them.",
)
@baseline_option
@strict_option
def report_command(
    *,
    runs: tuple[Path, ...],
    out: Path,
    figures: bool,
    terminal: bool,
    badges: bool,
    markdown: Path | None,
    site: Path | None,
    baseline: str | None,
    strict: bool,
) -> int:
    """Turn runs into a page, Markdown tables and figures.

    RUN is the folder of a run, or a JSON file that pytest-benchmark saved (default: the runs in results/runs).
    """
    from ctxbench import benchmarks
    from ctxbench.reports.report import Report
    from ctxbench.store import Reading

    if sum((figures, terminal, badges, markdown is not None, site is not None)) > 1:
        raise UsageError("--figures, --terminal, --badges, --markdown and --site: one at a time")
    runs = runs or all_runs()
    files = [path for path in runs if benchmarks.is_benchmark_file(path)]
    reading = Reading.of([path for path in runs if path not in files])
    report = Report.of(reading, baseline, [benchmarks.read(path) for path in files])
    if terminal:
        print_report(report)
    elif figures:
        click.echo(f"figures: {report.write_figures(out)}")
    elif badges:
        from ctxbench.reports.badges import write_badges

        click.echo(f"badges: {write_badges(report.blocks, report.baseline, out)}")
    elif markdown is not None:
        from ctxbench.store import write_atomically

        write_atomically(writable_file(markdown), report.markdown())
        click.echo(f"tables: {markdown}")
    elif site is not None:
        from ctxbench.reports.site import write_site

        click.echo(f"site: {write_site(reading, site, baseline, report.benchmarks)}")
    else:
        click.echo(f"report: {report.write(out)}")
    return judge(reading, strict)


def all_runs() -> tuple[Path, ...]:
    """The folders of runs that lie where they are written unless another place is named.

    Raises:
        UsageError: if there are none.
    """
    found = tuple(sorted(path.parent for path in RUNS.glob("*/records")))
    if not found:
        raise UsageError(f"there are no runs in {RUNS}; name the folders of some")
    return found


def print_report(report: Report) -> None:
    """What the page says, but for its figures."""
    from ctxbench.console import print_lines, print_tables

    print_lines([*report.summary, "", *(f"{it.about}: {it.said}" for it in report.answers), ""])
    print_tables(report.tables)


@main.command("study")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="report",
    show_default=True,
    help="Folder to write.",
)
@strict_option
def study_command(*, runs: tuple[Path, ...], out: Path, strict: bool) -> int:
    """Write the study of attention against matrix decomposition from runs of both.

    RUN is the folder of a run (default: the runs in results/runs). Comparisons with official
    implementations (make bench) are taken from the file official.jsonl in the output folder.
    """
    from ctxbench.reports import official
    from ctxbench.reports.report import Report
    from ctxbench.reports.study import Study
    from ctxbench.store import Reading

    reading = Reading.of(list(runs or all_runs()))
    compared = [it for _, it in official.read_official(out / official.FILE)]
    if not compared:
        say(f"no comparisons with official implementations: {out / official.FILE} holds none", OK)
    study = Study(Report.of(reading), compared)
    click.echo(f"study: {study.write(out)}")
    return judge(reading, strict)


@main.command("compare")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    default=5.0,
    show_default=True,
    type=FiniteRange(0, 100, max_open=True),
    help="Per cent by which two runs of one code may differ.",
)
@click.option("--fail-on", multiple=True, help="Exit with 3 on a change for the worse: METRIC:5%.")
@click.option("--allow-env-diff", is_flag=True, help="Let --fail-on judge runs of unlike environments.")
@strict_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON instead of tables.")
def compare_command(
    *,
    base: Path,
    new: Path,
    tolerance: float,
    fail_on: tuple[str, ...],
    allow_env_diff: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Compare two runs cell by cell: SAME, FASTER, SLOWER or UNCERTAIN."""
    from ctxbench.compare import compare, parse_threshold

    thresholds = [parse_threshold(text) for text in fail_on]
    readings = [read_runs(folder) for folder in (base, new)]
    profiles = [[row for row in reading.rows if row["kind"] == "profile"] for reading in readings]
    if not all(profiles) and any(reading.rows for reading in readings):
        raise UsageError("compare is for profiles; for networks that were trained: ctxbench report BASE NEW")
    compared = compare(profiles[0], profiles[1], tolerance / 100)
    for warning in compared.warnings:
        say(warning, OK)
    if thresholds and compared.differences and not allow_env_diff:
        raise UsageError("--fail-on: the environments differ; add --allow-env-diff to judge all the same")
    if thresholds and not compared.pairs:
        raise UsageError(f"--fail-on: {compared.summary}")
    if as_json:
        click.echo(json.dumps(compared.to_json(), indent=1, allow_nan=False))
    else:
        from ctxbench.console import print_tables

        print_tables(compared.tables())
        click.echo(compared.summary)
    found = compared.regressions(thresholds)
    for regression in found:
        say(regression.text, REGRESSION)
    return REGRESSION if found else max(judge(reading, strict) for reading in readings)


@main.command("export")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--format", "form", required=True, type=click.Choice(["csv", "json", "parquet", "latex"]))
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: standard output).")
@baseline_option
@strict_option
def export_command(
    runs: tuple[Path, ...], form: str, out: Path | None, baseline: str | None, strict: bool
) -> int:
    """Write the records of runs as CSV, JSON, Parquet or LaTeX."""
    from ctxbench.export import export
    from ctxbench.store import write_atomically

    reading = read_runs(*runs)
    text = export(reading.rows, form, baseline)
    content = text.encode() if isinstance(text, str) else text
    if out is None:
        click.get_binary_stream("stdout").write(content)  # type: ignore[operator]
    else:
        write_atomically(writable_file(out), content)
    return judge(reading, strict)


def read_runs(*folders: Path) -> Reading:
    """What runs hold; files that are no records are told on standard error."""
    from ctxbench.store import Reading

    reading = Reading.of(list(folders))
    for file in reading.unreadable:
        say(f"left out {file.path}: {file.reason}", OK)
    return reading


def writable_file(out: Path) -> Path:
    """A path at which a file can be written.

    Raises:
        UsageError: if it is a folder, or lies in none.
    """
    try:
        if out.is_dir():
            raise UsageError(f"{out} is a folder; name a file")
        if out.exists() and not out.is_file():
            raise UsageError(f"{out} is no regular file; name another")
        if not out.parent.is_dir():
            raise UsageError(f"no folder {out.parent}; choose another file with --out")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {str(out)[:200]}: {first_line(error)}") from None
    return out


def judge(reading: Reading, strict: bool) -> int:
    """The exit code of a command that reads runs: what is not whole counts only if asked for."""
    faults = reading.faults if strict else []
    where = f" in {', '.join(reading.names)}"
    return say(f"--strict: {', '.join(faults)}{where}", SOME_FAILED) if faults else OK
