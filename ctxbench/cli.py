"""The commands: each parses, calls one function, prints and sets the exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxbench import __version__
from ctxbench.errors import RunError, UsageError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctxbench.cluster import Submission
    from ctxbench.networks import NetworkCost
    from ctxbench.record import Record
    from ctxbench.runner import Run, Where
    from ctxbench.spec import Cell, Grid
    from ctxbench.store import Reading

OK, SOME_FAILED, WRONG_USAGE, REGRESSION, INTERRUPTED = 0, 1, 2, 3, 130
RUNS = Path("results/runs")
LOST = (errno.ENOENT, errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EBADF)

plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A Python file that registers blocks of your own; may be given again.",
)


WHERE: dict[str, Where] = {"local": "workers", "inline": "inline"}


def executor_option(*others: str) -> Callable[[Any], Any]:
    here = "local: in worker processes, which no cell can harm; inline: in this one, for a debugger"
    return click.option(
        "--executor",
        default="local",
        show_default=True,
        envvar="CTXBENCH_EXECUTOR",
        type=click.Choice([*WHERE, *others]),
        help="; ".join([here, *(f"{other}: as jobs of a cluster" for other in others)]) + ".",
    )


baseline_option = click.option(
    "--baseline", help="The block that ratios refer to (default self-attn, if it is there)."
)
strict_option = click.option(
    "--strict", is_flag=True, help="Exit with 1 if a file is unreadable, or a cell failed or is missing."
)


data_root_option = click.option(
    "--data-root",
    default="data",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of data sets.",
)


class FiniteRange(click.FloatRange):
    """A range that holds no NaN and no infinity."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        found = super().convert(value, parameter, context)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", parameter, context)
        return found


class InterruptedRun(Exception):  # noqa: N818, it is no error
    """The user stopped a run; what is finished is kept."""


class Program(click.Group):
    """A group whose commands return their exit code, and whose mistakes are told in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        # A terminal that cannot show a character gets a question mark, and SIGTERM ends like Ctrl-C.
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115, it was closed
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            Path.cwd()
            code = super().main(*args, **(extra | {"standalone_mode": False}))
            sys.stdout.flush()
        except click.ClickException as error:
            code = say(error.format_message(), WRONG_USAGE)
        except UsageError as error:
            code = say(str(error), WRONG_USAGE)
        except RunError as error:
            code = say(str(error), SOME_FAILED)
        except InterruptedRun as error:
            code = say(str(error), INTERRUPTED)
        except OSError as error:
            code = self.unwritable(error)
        except click.Abort:
            code = say("interrupted", INTERRUPTED)
        sys.exit(code)

    def unwritable(self, error: OSError) -> int:
        """A folder that is gone, or output that goes nowhere; anything else is a defect of ours."""
        if error.filename is not None or error.errno not in LOST:
            raise error
        if isinstance(error, FileNotFoundError):
            return say("the current folder has been removed; change into another", WRONG_USAGE)
        with contextlib.suppress(OSError):  # what is left in the buffer cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return say(f"cannot write to standard output: {error.strerror}", SOME_FAILED)


def say(message: str, code: int) -> int:
    """One line on standard error; returns the exit code that goes with it."""
    line = " ".join(message.split())
    click.echo("ctxbench: " + "".join(mark for mark in line if mark.isprintable()), err=True)
    return code


@click.group(
    cls=Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="ctxbench")
@click.pass_context
def main(context: click.Context) -> None:
    """What a global-context block of a vision network costs, measured the same way for all."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command("blocks")
@click.argument("name", required=False)
@click.option("--resolutions", default="64", show_default=True, help="Sizes at which its cost is shown.")
@click.option("--channels", default="512", show_default=True, help="Channels of the input.")
@click.option("--batch", default="1", show_default=True, help="Batch sizes.")
@click.option("--dtypes", default="float32", show_default=True, help="float32, bfloat16, float16, float64.")
@click.option("--bibtex", is_flag=True, help="Print the BibTeX entry of the block's paper alone.")
@click.option("--json", "as_json", is_flag=True, help="Print what is known as JSON.")
@plugin_option
def blocks_command(
    *, name: str | None, bibtex: bool, as_json: bool, plugins: tuple[Path, ...], **axes: str
) -> int:
    """List the blocks, or show one in detail: its formula, options, paper, MACs and memory.

    NAME is a block's name, or a spec such as 'ham-nmf[rank=32]'.
    """
    prepare_torch()
    import blocks
    from ctxbench import catalogue, console

    load_plugins(plugins)
    if name is None:
        if bibtex:
            raise UsageError("--bibtex needs the name of a block: ctxbench blocks NAME --bibtex")
        infos = [blocks.info(each) for each in blocks.names()]
        if as_json:
            click.echo(json.dumps([catalogue.facts(info) for info in infos], indent=1))
        else:
            console.print_tables([catalogue.table(infos)])
        return OK
    description = catalogue.describe(name, **axes)
    if bibtex:
        if description.info.paper is None:
            raise UsageError(f"block {name!r} comes from no paper")
        click.echo(description.info.paper.bibtex)
    elif as_json:
        click.echo(json.dumps(description.to_json(), indent=1))
    else:
        console.show_block(description)
    return OK


@main.command("profile")
@click.option(
    "--blocks",
    "specs",
    multiple=True,
    help="Blocks: names, wildcards, all, name[option=a/b]; separated by commas.",
)
@click.option("--resolutions", help="Sizes such as 32,64x128 (default 32).")
@click.option("--channels", help="Channels of the input (default 512).")
@click.option("--batch", help="Batch sizes (default 1).")
@click.option("--modes", help="infer and/or train (default infer).")
@click.option("--dtypes", help="float32, bfloat16, float16, float64 (default float32).")
@click.option("--device", default="auto", help="auto, cpu or cuda.", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Measure the block under torch.compile.")
@click.option("--estimate", is_flag=True, help="Count MACs and predict memory; run nothing.")
@click.option(
    "--preset",
    help="A named grid, whose axes the other options replace: paper (Table 3 of the Hamburger paper).",
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="CPU threads; 1 is steadiest.",
)
@click.option(
    "--budget",
    type=FiniteRange(0, 3600),
    help="Seconds of timed calls per cell that does not settle before (default 2); at least 10 calls.",
)
@click.option(
    "--timeout",
    default=1800.0,
    show_default=True,
    type=FiniteRange(0, min_open=True),
    help="Seconds after which a cell is given up.",
)
@executor_option("slurm")
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1, 1000), help="Slurm jobs at most."
)
@click.option(
    "--slurm", multiple=True, help="A parameter of each job: partition=gpu, timeout_min=600, mem_gb=32."
)
@click.option("--shard", help="Do a part of the plan, as 0/2 and 1/2 on two hosts with one folder.")
@click.option(
    "--baseline", help="The block that ratios refer to (default self-attn if it is there, or else the first)."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run (default results/runs/<name>)."
)
@click.option("--fresh", is_flag=True, help="Measure again what the folder holds already.")
@click.option("--dry-run", is_flag=True, help="Print the cells and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON instead of tables.")
@plugin_option
def profile_command(
    *,
    specs: tuple[str, ...],
    device: str,
    compiled: bool,
    estimate: bool,
    preset: str | None,
    threads: int,
    budget: float | None,
    timeout: float,
    executor: str,
    jobs: int,
    slurm: tuple[str, ...],
    shard: str | None,
    baseline: str | None,
    out: Path | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
    plugins: tuple[Path, ...],
    **axes: str | None,
) -> int:
    """Measure MACs, memory and latency of blocks over a grid of inputs."""
    prepare_torch(executor if not dry_run else None)
    from ctxbench.cluster import Submission, parse_parameters
    from ctxbench.spec import share

    load_plugins(plugins)
    grid = make_grid(preset, blocks=",".join(specs) if specs else None, **axes)
    parameters = parse_parameters(slurm)
    if slurm and executor != "slurm":
        raise UsageError("--slurm is for --executor slurm")
    device = choose_device(device, elsewhere=executor == "slurm")
    grid = dataclasses.replace(grid, device=device, compiled=compiled, estimated=estimate)
    plan = grid.cells()
    cells = plan if shard is None else share(plan, shard)
    if baseline is not None and baseline not in (labels := [cell.label for cell in plan]):
        raise UsageError(
            f"--baseline: {baseline!r} is not measured; name one of {', '.join(dict.fromkeys(labels))}"
        )
    if dry_run:
        print_plan(cells, as_json)
        return OK
    if not cells:
        raise UsageError(f"--shard {shard}: the plan has too few inputs to be divided so often")
    from ctxbench.measure import Settings
    from ctxbench.runner import Run
    from ctxbench.store import RunStore

    folder = out or RUNS / default_name(plan, threads)
    files = tuple(path.resolve() for path in plugins)
    settings = Settings(threads=threads, budget_s=budget, timeout_s=timeout, plugins=files)
    store = RunStore.create(folder.absolute())
    whole = [cell.id for cell in plan]
    run = Run(cells, store, device, settings, WHERE.get(executor, "workers"), fresh, whole)
    records = execute(Submission(run, jobs, parameters) if executor == "slurm" else run)
    if as_json:
        click.echo(json.dumps([record.model_dump() for record in records], indent=1, allow_nan=False))
    else:
        print_leaderboards(records, baseline or default_baseline(cells))
        page = ["ctxbench", "report", str(folder), *(["--baseline", baseline] if baseline else [])]
        click.echo(f"records: {folder}   page: {shlex.join(page)}")
    return exit_code(records)


@main.command("task")
@click.argument("name", metavar="NAME")
@click.option("--blocks", "specs", multiple=True, help="Blocks, as in profile (default: the model's own).")
@click.option("--preset", help="Protocol: demo needs no data; paper, mmseg and others follow publications.")
@click.option("--model", "models", help="Networks by name (default: the preset's).")
@click.option(
    "--seeds", default="0", show_default=True, help="Seeds, separated by commas; paired over blocks."
)
@click.option("--cue", "cues", help="Area of the demo's cue in per cent: 1.6, 4, 8, 14 (default 14).")
@click.option(
    "--iterations", type=click.IntRange(0, 10_000_000), help="Instead of the preset's; 0 only scores."
)
@click.option(
    "--scoring", default="single", show_default=True, help="single, ms-flip-logits or ms-flip-softmax."
)
@click.option("--dtypes", default="float32", show_default=True, help="float32 or bfloat16 (mixed precision).")
@data_root_option
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="A file with the network's first weights."
)
@click.option("--backbone", type=click.Path(path_type=Path), help="A file with the backbone's first weights.")
@click.option("--device", default="auto", help="auto, cpu or cuda.", show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024), help="CPU threads.")
@click.option(
    "--timeout", type=FiniteRange(0, min_open=True), help="Seconds after which a training is given up."
)
@click.option(
    "--estimate", is_flag=True, help="Parameters, MACs and memory of whole networks; trains nothing."
)
@click.option("--inspect", is_flag=True, help="Also write what the blocks do to their maps, as PNG and CSV.")
@executor_option()
@click.option("--shard", help="Do a part of the plan, as 0/2 and 1/2 on two hosts with one folder.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run (default results/runs/<name>)."
)
@click.option("--fresh", is_flag=True, help="Train again what the folder holds already.")
@click.option("--dry-run", is_flag=True, help="Print the cells and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@plugin_option
def task_command(
    *,
    name: str,
    specs: tuple[str, ...],
    preset: str | None,
    data_root: Path,
    checkpoint: Path | None,
    backbone: Path | None,
    device: str,
    threads: int,
    timeout: float | None,
    estimate: bool,
    inspect: bool,
    executor: str,
    shard: str | None,
    out: Path | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
    plugins: tuple[Path, ...],
    **axes: Any,
) -> int:
    """Train networks that differ in the block alone, and score them.

    NAME: voc, pascal-context, ade20k or cityscapes.
    """
    prepare_torch(executor if not (dry_run or estimate) else None)
    from ctxbench import training
    from ctxbench.spec import share

    load_plugins(plugins)
    device = choose_device(device)
    axes |= {"device": device, "checkpoint": checkpoint, "backbone": backbone}
    grid = training.make_grid(name, preset, ",".join(specs), **axes)
    plan = grid.cells()
    cells = plan if shard is None else share(plan, shard)
    if dry_run:
        print_plan(cells, as_json)
        return OK
    if estimate:
        print_networks(training.estimate(cells), as_json)
        return OK
    if not cells:
        raise UsageError(f"--shard {shard}: the plan has too few cells to be divided so often")
    if missing := training.missing_data(cells, data_root):
        raise UsageError(missing)
    from ctxbench.measure import Settings
    from ctxbench.runner import Run
    from ctxbench.store import RunStore

    rank = training.join_processes(device)
    together = rank > 0 or training.processes() > 1
    if together:
        executor = "inline"
    folder = (out or RUNS / default_name(plan, threads, name)).absolute()
    settings = Settings(
        threads=threads,
        timeout_s=timeout or math.inf,
        plugins=tuple(path.resolve() for path in plugins),
        folder=folder,
        data_root=data_root.absolute(),
        checkpoint=checkpoint and checkpoint.absolute(),
        backbone=backbone and backbone.absolute(),
        together=together,
        rank=rank,
    )
    training.check_weights(cells, settings)
    store = RunStore.create(folder)
    if rank == 0:
        training.generate_data(cells, folder)
        if notice := training.missing_backbone(cells):
            say(notice, OK)
    run = Run(cells, store, device, settings, WHERE[executor], fresh, [cell.id for cell in plan])
    if rank > 0:
        training.take_part(cells, settings)
        return OK
    records = execute(run)
    if together:
        training.announced("")
    for path in training.inspect(cells, settings) if inspect else []:
        click.echo(
            f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", err=True
        )
    if as_json:
        click.echo(json.dumps([record.model_dump() for record in records], indent=1, allow_nan=False))
    else:
        print_leaderboards(records, None)
        shown = out or folder.relative_to(Path.cwd())
        click.echo(f"images, truth and predictions: {shown / 'panels'}   losses: {shown / 'curves'}")
        click.echo(f"records: {shown}   page: {shlex.join(['ctxbench', 'report', str(shown)])}")
    return exit_code(records)


@main.group("data")
def data_group() -> None:
    """Data sets: which are there, and how to get the others."""


@data_group.command("list")
@data_root_option
def data_list_command(data_root: Path) -> int:
    """List the data sets, and what is missing of each."""
    from ctxbench.console import print_tables
    from ctxbench.data import table

    print_tables([table(data_root)])
    return OK


@data_group.command("fetch")
@click.argument("name", metavar="NAME")
@data_root_option
def data_fetch_command(name: str, data_root: Path) -> int:
    """Download and unpack a data set: voc, pascal-context (images) or ade20k.

    It is checked against its digest; an interrupted download goes on where it stopped.
    """
    from ctxbench.console import LiveReporter
    from ctxbench.data import archive_of
    from ctxbench.fetch import fetch

    archive = archive_of(name)
    with LiveReporter() as reporter:
        click.echo(f"unpacked: {fetch(archive, data_root, reporter.working)}")
    return OK


def print_networks(costs: list[NetworkCost], as_json: bool) -> None:
    from ctxbench import networks
    from ctxbench.console import print_tables

    if as_json:
        click.echo(json.dumps([cost.to_json() for cost in costs], indent=1))
    else:
        print_tables([networks.table(costs), networks.parts_table(costs)])


@main.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path), default="report", show_default=True, help="Folder to write."
)
@baseline_option
@strict_option
def report_command(runs: tuple[Path, ...], out: Path, baseline: str | None, strict: bool) -> int:
    """Turn runs into a page, Markdown tables and figures.

    RUN is the folder of a run, or a JSON file that pytest-benchmark saved.
    """
    from ctxbench import benchmarks
    from ctxbench.report import Report
    from ctxbench.store import Reading

    files = [path for path in runs if benchmarks.is_benchmark_file(path)]
    reading = Reading.of([path for path in runs if path not in files])
    report = Report.of(reading, baseline, [benchmarks.read(path) for path in files])
    click.echo(f"report: {report.write(out)}")
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


@main.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON instead of a table.")
def doctor_command(as_json: bool) -> int:
    """Tell what is installed, what the machine is like for measuring, and what to type for the rest."""
    prepare_torch()
    from ctxbench import doctor

    found = doctor.examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(it) for it in found], indent=1))
    else:
        from ctxbench.console import print_tables

        print_tables(doctor.tables(found))
    return OK if doctor.healthy(found) else SOME_FAILED


@main.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default="report", show_default=True, help="Folder to write."
)
@click.option("--fresh", is_flag=True, help="Measure again what the folder holds already.")
@executor_option()
def demo_command(out: Path, fresh: bool, executor: str) -> int:
    """Profile a few blocks, train networks with three of them, and write a report: minutes, no download."""
    prepare_torch(executor)
    from ctxbench import training
    from ctxbench.measure import Settings
    from ctxbench.presets import DEMO, DEMO_SHOWN, DEMO_TRAINED
    from ctxbench.report import Report
    from ctxbench.runner import Run
    from ctxbench.store import Reading, RunStore

    device, folder = choose_device("auto"), out / "run"
    cells = [cell for grid in DEMO for cell in dataclasses.replace(grid, device=device).cells()]
    store = RunStore.create(folder.absolute())
    try:
        grid = training.make_grid("voc", "demo", DEMO_TRAINED, device=device)
        cells += grid.cells()
        training.generate_data(grid.cells(), store.folder)
    except UsageError as error:
        say(f"no networks are trained: {error}", OK)
    settings = Settings(folder=store.folder)
    records = execute(Run(cells, store, device, settings, WHERE[executor], fresh))
    print_leaderboards([record for record in records if record.height in DEMO_SHOWN], baseline="self-attn")
    click.echo(f"report: {Report.of(Reading.of([folder])).write(out)}")
    return exit_code(records)


def prepare_torch(executor: str | None = None) -> None:
    """Set what must be set before torch is first imported, and let the workers' server import it too."""
    from ctxbench.environment import wait_passively

    wait_passively()
    if executor == "local":
        from ctxbench.processes import start_server

        start_server()


def load_plugins(paths: tuple[Path, ...]) -> None:
    from ctxbench import plugins

    for path in paths:
        plugins.load(path)


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
            raise UsageError(f"{out} is a folder; name a file with --out")
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


def make_grid(preset: str | None, **axes: str | None) -> Grid:
    """The preset's grid with the axes that were typed, or the default one."""
    from ctxbench.presets import PRESETS
    from ctxbench.spec import Grid

    given: dict[str, Any] = {name: value for name, value in axes.items() if value is not None}
    if preset is None:
        if "blocks" not in given:
            raise UsageError("--blocks is missing; name some, for example: --blocks ham-nmf,self-attn")
        return Grid(**given)
    if preset not in PRESETS:
        raise UsageError(f"--preset: {preset!r} is not known; choose from {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[preset], **given)


def choose_device(wanted: str, elsewhere: bool = False) -> str:
    """The kind of device to measure; whether another machine has it, only its user knows."""
    import torch

    from ctxbench.spec import DEVICES

    if wanted not in ("auto", *DEVICES):
        raise UsageError(f"--device: {wanted!r} is not known; choose from auto, {', '.join(DEVICES)}")
    if elsewhere and wanted == "auto":
        raise UsageError("--executor slurm: say with --device cpu or cuda what the nodes have")
    if elsewhere:
        return wanted
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_baseline(cells: list[Cell]) -> str:
    """Self-attention, as in a report, or else the block that was named first."""
    from ctxbench.report import DEFAULT_BASELINE

    labels = [cell.label for cell in cells]
    return DEFAULT_BASELINE if DEFAULT_BASELINE in labels else labels[0]


def default_name(cells: list[Cell], threads: int, first: str = "") -> str:
    """The same command goes on in the same folder; another one gets its own."""
    plan = " ".join([str(threads), *(cell.id for cell in cells)])
    names = list(dict.fromkeys(cell.block for cell in cells))
    readable = "_".join([*([first] if first else []), *names[:3], *(["more"] if len(names) > 3 else [])])[:40]
    return f"{readable}-{hashlib.sha256(plan.encode()).hexdigest()[:8]}"


def execute(run: Run | Submission) -> list[Record]:
    from ctxbench.console import LiveReporter

    try:
        with LiveReporter() as reporter:
            return run.execute(reporter)
    except KeyboardInterrupt:
        raise InterruptedRun(f"interrupted; resume with: {resuming_command()}") from None


def resuming_command() -> str:
    """The command that was typed, but for what would start it over."""
    return shlex.join(["ctxbench", *(word for word in sys.argv[1:] if word != "--fresh")])


def print_plan(cells: list[Cell], as_json: bool) -> None:
    """The cells of a run, one a line or as JSON."""
    if as_json:
        click.echo(
            json.dumps(
                [
                    {"cell_id": cell.id} | dataclasses.asdict(cell) | {"options": dict(cell.options)}
                    for cell in cells
                ],
                indent=1,
            )
        )
        return
    for cell in cells:
        click.echo(f"{cell.id}  {cell.label}  {'x'.join(map(str, cell.shape))}  {cell.dtype}  {cell.mode}")


def print_leaderboards(records: list[Record], baseline: str | None) -> None:
    from ctxbench.console import print_tables
    from ctxbench.report import tables_of

    print_tables(tables_of([record.row for record in records], baseline))


def exit_code(records: list[Record]) -> int:
    from ctxbench.record import FAILED

    return SOME_FAILED if any(record.status in FAILED for record in records) else OK
