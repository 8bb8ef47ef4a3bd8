"""The command that trains networks, or scores what others have made."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxbench.cli.options import RUNS, WHERE, FiniteRange, data_root_option, executor_option, run_options
from ctxbench.cli.program import OK, main
from ctxbench.cli.steps import (
    choose_device,
    default_name,
    execute,
    exit_code,
    load_plugins,
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

if TYPE_CHECKING:
    from ctxbench.measure import Settings
    from ctxbench.record import Record


@main.command("task")
@click.argument("name", metavar="NAME")
@click.option("--blocks", "specs", multiple=True, help="Blocks, as in profile (default: the preset's own).")
@click.option("--preset", help="Protocol (default: paper, or else the first below); demo needs no data.")
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
    "--batch", type=click.IntRange(2, 65_536), help="Images of a GAN's batch, instead of the preset's."
)
@click.option("--scoring", help="single (default), ms-flip-logits or ms-flip-softmax.")
@click.option("--dtypes", default="float32", show_default=True, help="float32 or bfloat16 (mixed precision).")
@data_root_option
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="A file with the networks' first weights."
)
@click.option("--backbone", type=click.Path(path_type=Path), help="A file with the backbone's first weights.")
@click.option(
    "--timeout", type=FiniteRange(0, min_open=True), help="Seconds after which a training is given up."
)
@click.option(
    "--estimate", is_flag=True, help="Parameters, MACs and memory of whole networks; trains nothing."
)
@click.option("--inspect", is_flag=True, help="Also write what the blocks do to their maps, as PNG and CSV.")
@click.option(
    "--speed", is_flag=True, help="Time one update of both networks of a GAN with each block; trains nothing."
)
@click.option(
    "--score",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="IMAGES REAL",
    help="Score a folder of images against another, or a file of --save-reference; trains nothing.",
)
@click.option(
    "--save-reference",
    type=click.Path(path_type=Path),
    help="With --score: keep the features of REAL, with their anchors, in this file.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="A file of --save-reference: what generated images are compared with.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="The file with Inception's weights.")
@click.option("--download", is_flag=True, help="Fetch Inception's weights if they are not here (96 MB).")
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
    reference: Path | None,
    device: str,
    threads: int,
    timeout: float | None,
    estimate: bool,
    inspect: bool,
    speed: bool,
    score: tuple[Path, Path] | None,
    save_reference: Path | None,
    weights: Path | None,
    download: bool,
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
    digits          16x16, 32x32
    twins           8x32
    imagenet        hamgan-baby, hamgan-strong, sagan

    digits and twins bring their data along.
    """
    prepare_torch(executor if not (dry_run or estimate) else None)
    from ctxbench import taskgrid, together, training
    from ctxbench.generation import GenerationGrid, find_weights
    from ctxbench.measure import Settings
    from ctxbench.runner import Run
    from ctxbench.spec import share
    from ctxbench.store import RunStore
    from ctxbench.updates import cells_of

    load_plugins(plugins)
    device = choose_device(device)
    count = together.count_processes()
    axes |= {"device": device, "data_root": data_root, "checkpoint": checkpoint, "backbone": backbone}
    axes |= {"processes": count, "reference": reference}
    grid = taskgrid.make_grid(name, preset, ",".join(specs) if specs else None, **axes)
    generates = isinstance(grid, GenerationGrid)
    judging = {"--weights": weights, "--download": download, "--score": score, "--speed": speed}
    refuse_misplaced(name, judging if not generates else {"--inspect": inspect})
    fetches = generates and download and not dry_run
    found = find_weights(weights, fetches, lambda text: click.echo(text, err=True)) if generates else None
    if score is not None:
        assert found is not None
        if dry_run:
            click.echo(f"scores {score[0]} against {score[1]}")
        else:
            score_folders(name, score, found, device=device, keep=save_reference, as_json=as_json)
        return OK
    refuse_misplaced("training; it goes with --score", {"--save-reference": save_reference})
    plan = grid.cells()
    cells = plan if shard is None else share(plan, shard)
    if not cells:
        raise UsageError(f"--shard {shard}: the plan has too few cells to be divided so often")
    folder = (out or RUNS / default_name(plan, threads, f"{name}-speed" if speed else name)).absolute()
    settings = Settings(
        threads=threads,
        timeout_s=timeout or math.inf,
        plugins=tuple(path.resolve() for path in plugins),
        folder=folder,
        data_root=data_root.absolute(),
        checkpoint=checkpoint and checkpoint.absolute(),
        backbone=backbone and backbone.absolute(),
        weights=found and found.absolute(),
        reference=reference and reference.absolute(),
        together=count > 1,
    )
    if estimate:
        print_networks(cells, as_json)
        return OK
    timed = cells_of(cells) if speed else []
    if dry_run:
        print_plan(timed or cells, as_json)
        return OK
    if timed:
        run = Run(timed, RunStore.create(folder), device, settings, WHERE[executor], fresh)
        return print_outcome(execute(run), folder, as_json)
    for cell in cells:
        if missing := cell.missing(data_root):
            raise UsageError(missing)
    if count > 1 and timeout is not None:
        raise UsageError("--timeout is for a single process; several cannot do without one of them")
    settings = dataclasses.replace(settings, rank=together.join_others(device))
    training.check_weights(cells, settings)
    records = train_all(cells, [cell.id for cell in plan], device, settings, WHERE[executor], fresh)
    if settings.rank > 0:
        return OK
    if inspect:
        inspect_all(cells, settings)
    return print_outcome(records, folder, as_json)


def refuse_misplaced(where: str, options: dict[str, Any]) -> None:
    """Whether an option was given that means nothing here.

    Raises:
        UsageError: naming them.
    """
    if wrong := [option for option, given in options.items() if given]:
        raise UsageError(f"{', '.join(wrong)}: not for {where}")


def inspect_all(cells: list[Any], settings: Settings) -> None:
    from ctxbench.segmentation import inspect

    for path in inspect(cells, settings):
        click.echo(f"wrote {shown(path)}", err=True)


def print_outcome(records: list[Record], folder: Path, as_json: bool) -> int:
    if as_json:
        print_records(records)
    else:
        print_leaderboards(records, None)
        print_places(records, shown(folder))
    return exit_code(records)


def score_folders(
    name: str, folders: tuple[Path, Path], weights: Path, *, device: str, keep: Path | None, as_json: bool
) -> None:
    """Score one folder of images against another."""
    from ctxbench import generation
    from ctxbench.console import print_tables
    from ctxbench.scores import anchors_table

    if name != "imagenet":
        raise UsageError(f"--score: for imagenet, whose extractor takes any images; not for {name}")
    found, extractor = generation.score_folders(*folders, weights, device, keep)
    about = {
        "count": found.count,
        "extractor": extractor,
        "relative_spread": found.relative_spread,
        "collapsed": found.collapsed,
    }
    scores, anchors = dataclasses.asdict(found.scores), found.anchors.to_dict()
    if as_json:
        click.echo(json.dumps(about | {"scores": scores, "anchors": anchors}, indent=1, allow_nan=False))
        return
    table = anchors_table(
        f"{folders[0]} against {folders[1]}", anchors, ((f"scored ({found.count:,})", scores),)
    )
    table.notes.append(f"Feature space: {extractor}.")
    if found.scores.fid is None:
        table.notes.append("Too few images for a Frechet distance: two for each of the features at least.")
    if found.collapsed:
        table.notes.append(f"Collapsed: {found.collapsed}.")
    print_tables([table])
