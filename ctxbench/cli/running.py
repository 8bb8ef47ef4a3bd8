"""Commands that carry out a run: profile, task, demo."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import click

from ctxbench.cli.options import RUNS, WHERE, FiniteRange, data_root_option, executor_option, run_options
from ctxbench.cli.program import OK, main, say
from ctxbench.cli.steps import (
    choose_device,
    default_baseline,
    default_name,
    execute,
    exit_code,
    load_plugins,
    make_grid,
    prepare_torch,
    print_leaderboards,
    print_networks,
    print_places,
    print_plan,
    print_records,
    shown,
    train_all,
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


@main.command("task")
@click.argument("name", metavar="NAME")
@click.option("--blocks", "specs", multiple=True, help="Blocks, as in profile (default: the model's own).")
@click.option("--preset", help="Protocol (default: paper, or else mmseg); demo needs no data.")
@click.option("--model", "models", help="Networks by name (default: the preset's).")
@click.option(
    "--seeds", default="0", show_default=True, help="Seeds, separated by commas; paired over blocks."
)
@click.option(
    "--cue", "cues", help="The demo's cue, in per cent of the image: 1.6, 4, 8, 14 (default), 14-corners."
)
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
@click.option(
    "--timeout", type=FiniteRange(0, min_open=True), help="Seconds after which a training is given up."
)
@click.option(
    "--estimate", is_flag=True, help="Parameters, MACs and memory of whole networks; trains nothing."
)
@click.option("--inspect", is_flag=True, help="Also write what the blocks do to their maps, as PNG and CSV.")
@executor_option()
@run_options
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

    \b
    NAME            PRESETS
    voc             demo, paper, paper-trainval, mmseg, mmseg-40k
    pascal-context  paper, mmseg, mmseg-80k
    ade20k          paper, mmseg, mmseg-160k
    cityscapes      mmseg, mmseg-80k
    """
    prepare_torch(executor if not (dry_run or estimate) else None)
    from ctxbench import data, networks, taskgrid, together, training
    from ctxbench.spec import share

    load_plugins(plugins)
    device = choose_device(device)
    count = together.count_processes()
    axes |= {"device": device, "data_root": data_root, "checkpoint": checkpoint, "backbone": backbone}
    axes |= {"processes": count}
    grid = taskgrid.make_grid(name, preset, ",".join(specs) if specs else None, **axes)
    plan = grid.cells()
    cells = plan if shard is None else share(plan, shard)
    if dry_run:
        print_plan(cells, as_json)
        return OK
    if estimate:
        print_networks(networks.estimate(cells), as_json)
        return OK
    if not cells:
        raise UsageError(f"--shard {shard}: the plan has too few cells to be divided so often")
    if missing := data.missing_data(cells, data_root):
        raise UsageError(missing)
    if count > 1 and timeout is not None:
        raise UsageError("--timeout is for a single process; several cannot do without one of them")
    from ctxbench.measure import Settings

    folder = (out or RUNS / default_name(plan, threads, name)).absolute()
    settings = Settings(
        threads=threads,
        timeout_s=timeout or math.inf,
        plugins=tuple(path.resolve() for path in plugins),
        folder=folder,
        data_root=data_root.absolute(),
        checkpoint=checkpoint and checkpoint.absolute(),
        backbone=backbone and backbone.absolute(),
        together=count > 1,
        rank=together.join_others(device),
    )
    training.check_weights(cells, settings)
    records = train_all(cells, [cell.id for cell in plan], device, settings, WHERE[executor], fresh)
    if settings.rank > 0:
        return OK
    for path in training.inspect(cells, settings) if inspect else []:
        click.echo(f"wrote {shown(path)}", err=True)
    if as_json:
        print_records(records)
    else:
        print_leaderboards(records, None)
        print_places(records, shown(folder))
    return exit_code(records)


@main.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default="report", show_default=True, help="Folder to write."
)
@click.option("--fresh", is_flag=True, help="Measure again what the folder holds already.")
@executor_option()
def demo_command(out: Path, fresh: bool, executor: str) -> int:
    """Profile a few blocks, train networks with three of them, and write a report: minutes, no download."""
    prepare_torch(executor)
    from ctxbench import data, taskgrid
    from ctxbench.measure import Settings
    from ctxbench.presets import DEMO, DEMO_SHOWN, DEMO_TRAINED
    from ctxbench.report import Report
    from ctxbench.runner import Run
    from ctxbench.store import Reading, RunStore

    device, folder = choose_device("auto"), out / "run"
    cells = [cell for grid in DEMO for cell in dataclasses.replace(grid, device=device).cells()]
    store = RunStore.create(folder.absolute())
    try:
        grid = taskgrid.make_grid("voc", "demo", DEMO_TRAINED, device=device)
        cells += grid.cells()
        data.generate_data(grid.cells(), store.folder)
    except UsageError as error:
        say(f"no networks are trained: {error}", OK)
    settings = Settings(folder=store.folder)
    records = execute(Run(cells, store, device, settings, WHERE[executor], fresh))
    print_leaderboards([record for record in records if record.height in DEMO_SHOWN], baseline="self-attn")
    click.echo(f"report: {Report.of(Reading.of([folder])).write(out)}")
    return exit_code(records)
