"""The command that trains networks, or scores what others have made."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

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
from ctxbench.errors import RunError, UsageError

if TYPE_CHECKING:
    from ctxbench.measure import Settings
    from ctxbench.record import Record
    from ctxbench.taskcell import TaskCell
    from tasks.generation.scoring import Assessment

MODES = ("estimate", "score", "speed")  # what is done instead of training
FOLDER_TASK = "imagenet"  # whose images may be any
AXES = (
    *("models", "seeds", "cues", "iterations", "batch", "scoring", "dtypes"),
    *("data_root", "checkpoint", "backbone", "reference"),
)
ONLY_TRAINED = ("timeout", "inspect", "reference", "checkpoint", "backbone", "weights", "download")
MEANINGLESS = {  # parameters that a mode does not heed
    "score": ("specs", "preset", "shard", "out", "fresh", *AXES, "timeout", "budget"),
    "speed": (*ONLY_TRAINED[1:], "iterations", "seeds"),
    "estimate": ("out", "fresh", "budget", *ONLY_TRAINED[:4], "weights", "download"),
}


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
    "--budget", type=FiniteRange(0, 3600), help="With --speed: seconds of timed calls per block (default 2)."
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
def task_command(**given: Any) -> int:
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
    asked = Asked(**given)
    runs_nothing = asked.dry_run or asked.estimate or asked.score
    prepare_torch()
    asked.refuse_misplaced()
    prepare_torch(None if runs_nothing else asked.executor)
    load_plugins(asked.plugins)
    if asked.score:
        compare_folders(asked)
        return OK
    plan = asked.plan()
    if asked.estimate:
        print_networks(plan.cells, asked.as_json)
        return OK
    if asked.dry_run:
        print_plan(plan.cells, asked.as_json)
        return OK
    return time_updates(asked, plan) if asked.speed else train_networks(asked, plan)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        cells: here; `ids`: of these and of those that other shards do.
        folder: of the run.
    """

    cells: list[Any]
    ids: list[str]
    folder: Path


@dataclass(frozen=True)
class Asked:
    """What was typed; see the options of the command."""

    name: str
    specs: tuple[str, ...]
    preset: str | None
    models: str | None
    seeds: str
    cues: str | None
    iterations: int | None
    batch: int | None
    scoring: str | None
    dtypes: str
    data_root: Path
    checkpoint: Path | None
    backbone: Path | None
    timeout: float | None
    budget: float | None
    estimate: bool
    inspect: bool
    speed: bool
    score: tuple[Path, Path] | None
    save_reference: Path | None
    reference: Path | None
    weights: Path | None
    download: bool
    executor: str
    device: str
    threads: int
    shard: str | None
    out: Path | None
    fresh: bool
    dry_run: bool
    as_json: bool
    plugins: tuple[Path, ...]

    def refuse_misplaced(self) -> None:
        """Whether an option was given that means nothing here.

        Raises:
            UsageError: naming it.
        """
        from ctxbench.taskgrid import is_generation

        generates, by_inception = is_generation(self.name), self.name == FOLDER_TASK
        meaningless = {
            "--inspect": self.inspect and generates,
            "--speed": self.speed and not generates,
            "--budget": self.budget is not None and not generates,
            "--score": self.score and not by_inception,
            "--weights": self.weights and not by_inception,
            "--download": self.download and not by_inception,
        }
        if wrong := [option for option, given in meaningless.items() if given]:
            raise UsageError(f"{', '.join(wrong)}: not for {self.name}")
        if self.budget is not None and not self.speed:
            raise UsageError("--budget goes with --speed")
        if self.save_reference and not self.score:
            raise UsageError("--save-reference goes with --score IMAGES REAL, and keeps what REAL holds")
        modes = [name for name in MODES if getattr(self, name)]
        if len(modes) > 1:
            raise UsageError(f"--{modes[0]} and --{modes[1]}: one of them, please")
        context = click.get_current_context()
        for name in context.params if modes else ():
            typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if typed and name in MEANINGLESS.get(modes[0], ()):
                option = next(it for it in context.command.params if it.name == name).opts[0]
                raise UsageError(f"{option}: not with --{modes[0]}")

    def plan(self) -> Plan:
        """The cells.

        Raises:
            UsageError: for whatever is not known or cannot be read.
        """
        from ctxbench import taskgrid, together
        from ctxbench.spec import share
        from ctxbench.updates import cells_of

        axes = {name: getattr(self, name) for name in AXES}
        axes |= {"device": choose_device(self.device), "processes": together.count_processes()}
        specs = ",".join(self.specs) if self.specs else None
        whole: Any = taskgrid.make_grid(self.name, self.preset, specs, **axes).cells()
        if self.speed:
            whole = cells_of(whole)
        cells = whole if self.shard is None else share(whole, self.shard)
        if not cells:
            raise UsageError(f"--shard {self.shard}: the plan has too few cells to be divided so often")
        name = default_name(whole, self.threads, f"{self.name}-speed" if self.speed else self.name)
        return Plan(cells, [cell.id for cell in whole], (self.out or RUNS / name).absolute())

    def settings(self, folder: Path) -> Settings:
        from ctxbench.measure import Settings

        return Settings(
            threads=self.threads,
            budget_s=self.budget,
            timeout_s=self.timeout or math.inf,
            plugins=tuple(path.resolve() for path in self.plugins),
            folder=folder,
            data_root=self.data_root.absolute(),
            checkpoint=self.checkpoint and self.checkpoint.absolute(),
            backbone=self.backbone and self.backbone.absolute(),
            weights=self.weights and self.weights.absolute(),
            reference=self.reference and self.reference.absolute(),
        )


def train_networks(asked: Asked, plan: Plan) -> int:
    """Train and score all cells."""
    from ctxbench import together, training

    cells: list[TaskCell] = plan.cells
    for cell in cells:
        if missing := cell.missing(asked.data_root):
            raise UsageError(missing)
    together_, device = cells[0].processes > 1, cells[0].device
    if together_ and asked.timeout is not None:
        raise UsageError("--timeout is for a single process; several cannot do without one of them")
    settings = replace(asked.settings(plan.folder), together=together_, rank=together.join_others(device))
    if settings.rank == 0:
        if asked.download:
            find_weights(True)
        training.check_weights(cells, settings)
    records = train_all(cells, plan.ids, device, settings, WHERE[asked.executor], asked.fresh)
    if settings.rank > 0:
        return OK
    if asked.inspect:
        inspect_all(cells, settings)
    return print_outcome(records, plan.folder, asked.as_json)


def time_updates(asked: Asked, plan: Plan) -> int:
    """Time one update of both networks with each block, side by side."""
    from ctxbench.runner import Run
    from ctxbench.store import RunStore

    device, settings = plan.cells[0].device, asked.settings(plan.folder)
    if plan.cells[0].processes > 1:
        raise UsageError("--speed is for a single process; several would disturb one another")
    store, where = RunStore.create(plan.folder), WHERE[asked.executor]
    records = execute(Run(plan.cells, store, device, settings, where, asked.fresh, plan.ids))
    return print_outcome(records, plan.folder, asked.as_json)


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


def find_weights(download: bool) -> Path:
    """The place of Inception's weights, to which they are fetched if that was asked for."""
    from ctxbench import generation

    return generation.find_weights(download, lambda text: click.echo(text, err=True))


def compare_folders(asked: Asked) -> None:
    """Score one folder of images against another, and keep what the other one holds if that was asked for."""
    from ctxbench import generation
    from ctxbench.taskgrid import make_grid

    assert asked.score is not None
    images, real = asked.score
    make_grid(asked.name, None, None)  # whether the packages are there
    if asked.dry_run:
        words = f"scores {images} against {real}"
        click.echo(json.dumps({"scores": str(images), "against": str(real)}) if asked.as_json else words)
        return
    if asked.save_reference is not None:
        check_place(asked.save_reference, real)
    weights = asked.weights or find_weights(asked.download)
    found, reference = generation.compare_folders(images, real, weights, choose_device(asked.device))
    print_comparison(f"{images} against {real}", found, reference.extractor, asked.as_json)
    if asked.save_reference is not None:
        try:
            reference.save(asked.save_reference)
        except OSError as error:
            raise RunError(
                f"--save-reference: cannot write {asked.save_reference}: {error.strerror}"
            ) from None


def check_place(path: Path, real: Path) -> None:
    """Whether the features of `real` can be kept there, before they are worked out."""
    if real.is_file():
        raise UsageError(f"--save-reference: {real} is a saved reference already")
    if path.is_dir():
        raise UsageError(f"--save-reference: {path} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"--save-reference: cannot write to {path.parent}: {error.strerror}") from None


def print_comparison(title: str, found: Assessment, extractor: str, as_json: bool) -> None:
    """The scores of one folder of images, beside their anchors."""
    from ctxbench.console import print_tables
    from ctxbench.reports.scores import anchors_table

    about = {
        "count": found.count,
        "real_count": found.real_count,
        "extractor": extractor,
        "relative_spread": found.relative_spread,
        "collapsed": found.collapsed,
    }
    scores, anchors = asdict(found.scores), found.anchors.to_dict()
    if as_json:
        click.echo(json.dumps(about | {"scores": scores, "anchors": anchors}, indent=1, allow_nan=False))
        return
    scored = f"{found.count:,} images against {found.real_count:,} real ones"
    table = anchors_table(title, anchors, ((scored, scores),))
    table.notes.append(f"Feature space: {extractor}.")
    if found.count != found.real_count:
        table.notes.append("The anchors are of other numbers of images: distances hang on these.")
    if found.scores.fid is None:
        table.notes.append("Too few images for a Frechet distance: two for each of the features at least.")
    if found.collapsed:
        table.notes.append(f"{found.collapsed[0].upper()}{found.collapsed[1:]}.")
    print_tables([table])
