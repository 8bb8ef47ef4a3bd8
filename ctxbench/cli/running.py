"""Commands that carry out a run: profile, task, demo."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import click

from ctxbench.cli.options import RUNS, WHERE, FiniteRange, executor_option, run_options
from ctxbench.cli.program import OK, main, say
from ctxbench.cli.steps import (
    choose_device,
    default_baseline,
    default_name,
    execute,
    exit_code,
    load_plugins,
    make_grid,
    prepare_data,
    prepare_torch,
    print_leaderboards,
    print_plan,
    print_records,
)
from ctxbench.errors import UsageError


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
@click.option("--compile", "compiled", is_flag=True, help="Measure the block under torch.compile.")
@click.option("--estimate", is_flag=True, help="Count MACs and predict memory; run nothing.")
@click.option(
    "--preset",
    help="A named grid, whose axes the other options replace: paper (Table 3 of the Hamburger paper).",
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
@click.option(
    "--baseline", help="The block that ratios refer to (default self-attn if it is there, or else the first)."
)
@run_options
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
        print_records(records)
    else:
        print_leaderboards(records, baseline or default_baseline(cells))
        page = ["ctxbench", "report", str(folder), *(["--baseline", baseline] if baseline else [])]
        click.echo(f"records: {folder}   page: {shlex.join(page)}")
    return exit_code(records)


@main.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default="report", show_default=True, help="Folder to write."
)
@click.option("--fresh", is_flag=True, help="Measure again what the folder holds already.")
@executor_option()
def demo_command(out: Path, fresh: bool, executor: str) -> int:
    """Profile a few blocks, train networks and GANs with three of them, and write a report: minutes, no download."""
    prepare_torch(executor)
    from ctxbench import taskgrid
    from ctxbench.measure import Settings
    from ctxbench.presets import DEMO, DEMO_SHOWN, DEMO_TRAINED, DEMO_UPDATES
    from ctxbench.reports.report import Report
    from ctxbench.runner import Run
    from ctxbench.store import Reading, RunStore

    device, folder = choose_device("auto"), out / "run"
    cells = [cell for grid in DEMO for cell in dataclasses.replace(grid, device=device).cells()]
    store = RunStore.create(folder.absolute())
    for task, preset, iterations in (("voc", "demo", None), ("digits", "16x16", DEMO_UPDATES)):
        try:
            grid = taskgrid.make_grid(task, preset, DEMO_TRAINED, device=device, iterations=iterations)
            trainings = grid.cells()
            prepare_data(trainings, store.folder)
            cells += trainings
        except UsageError as error:
            say(f"{task} is left out: {error}", OK)
    settings = Settings(folder=store.folder)
    records = execute(Run(cells, store, device, settings, WHERE[executor], fresh))
    print_leaderboards([record for record in records if record.height in DEMO_SHOWN], baseline="self-attn")
    click.echo(f"report: {Report.of(Reading.of([folder])).write(out)}")
    return exit_code(records)
