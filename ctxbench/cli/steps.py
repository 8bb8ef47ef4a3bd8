"""What the commands that carry out a run are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ctxbench.cli.program import OK, SOME_FAILED, InterruptedRun, say
from ctxbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctxbench.cluster import Submission
    from ctxbench.measure import Settings
    from ctxbench.record import Record
    from ctxbench.runner import Run, Where
    from ctxbench.spec import Cell, Grid
    from ctxbench.taskcell import TaskCell


PREDICTED = "panels (image, truth, prediction), curves (losses), weights"
SAMPLED = "panels and samples (what is generated, at the end and on the way), curves (losses), weights"
KEPT = {"miou": PREDICTED, "context_iou": PREDICTED}


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


def default_baseline(cells: Sequence[Cell]) -> str:
    """Self-attention, as in a report, or else the block that was named first."""
    from ctxbench.reports.report import DEFAULT_BASELINE

    labels = [cell.label for cell in cells]
    return DEFAULT_BASELINE if DEFAULT_BASELINE in labels else labels[0]


def default_name(cells: Sequence[Cell], threads: int, first: str = "") -> str:
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


def train_all(  # noqa: PLR0917
    cells: Sequence[TaskCell], plan: list[str], device: str, settings: Settings, where: Where, fresh: bool
) -> list[Record]:
    """The records of these trainings; none in a process that only takes part in what the first one records."""
    from ctxbench import together, training
    from ctxbench.runner import Run
    from ctxbench.store import RunStore

    assert settings.folder is not None
    store = RunStore.create(settings.folder)
    if settings.rank > 0:
        training.take_part(cells, settings)
        return []
    prepare_data(cells, settings.folder)
    for notice in dict.fromkeys(cell.notice() for cell in cells):
        if notice:
            say(notice, OK)
    run = Run(cells, store, device, settings, "inline" if settings.together else where, fresh, plan)
    records = execute(run)
    if settings.together:
        together.broadcast_cell("")
    return records


def prepare_data(cells: Sequence[TaskCell], folder: Path) -> None:
    """Make the data that the cells need and that can be made."""
    for cell in {it.dataset: it for it in cells}.values():
        cell.prepare(folder)


def resuming_command() -> str:
    """The command that was typed, but for what would start it over."""
    return shlex.join(["ctxbench", *(word for word in sys.argv[1:] if word != "--fresh")])


def print_plan(cells: Sequence[Cell], as_json: bool) -> None:
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
        click.echo(f"{cell.id}  {cell.label}  {cell.details}")


def print_records(records: list[Record]) -> None:
    click.echo(json.dumps([record.model_dump() for record in records], indent=1, allow_nan=False))


def print_places(records: list[Record], folder: str) -> None:
    """Where a run lies, and what it holds beside its records."""
    kept = {KEPT.get(record.metric or "", SAMPLED) for record in records if record.kind == "task"}
    if any(record.status == "ok" for record in records):
        for words in sorted(kept):
            click.echo(f"in {folder}: {words}")
    click.echo(f"records: {folder}   page: {shlex.join(['ctxbench', 'report', folder])}")


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def print_networks(cells: Sequence[TaskCell], as_json: bool) -> None:
    """What whole networks with the cells' blocks cost."""
    from ctxbench import gans, networks
    from ctxbench.console import print_tables

    module: Any = networks if cells[0].code == "segmentation" else gans
    costs = module.estimate(cells)
    if as_json:
        click.echo(json.dumps([cost.to_json() for cost in costs], indent=1))
    else:
        print_tables(module.tables(costs))


def print_leaderboards(records: list[Record], baseline: str | None) -> None:
    from ctxbench.console import print_tables
    from ctxbench.reports.report import tables_of

    print_tables(tables_of([record.row for record in records], baseline))


def exit_code(records: list[Record]) -> int:
    from ctxbench.record import FAILED

    return SOME_FAILED if any(record.status in FAILED for record in records) else OK
