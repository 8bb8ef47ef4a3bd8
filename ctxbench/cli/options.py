"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctxbench.runner import Where


RUNS = Path("results/runs")


WHERE: dict[str, Where] = {"local": "workers", "inline": "inline"}


class FiniteRange(click.FloatRange):
    """A range that holds no NaN and no infinity."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        found = super().convert(value, parameter, context)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", parameter, context)
        return found


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A Python file that registers blocks of your own; may be given again.",
)


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


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that carries out a plan of the user's."""
    options = (
        click.option("--device", default="auto", help="auto, cpu or cuda.", show_default=True),
        click.option(
            "--threads",
            default=1,
            show_default=True,
            type=click.IntRange(1, 1024),
            help="CPU threads; 1 is steadiest.",
        ),
        click.option("--shard", help="Do a part of the plan, as 0/2 and 1/2 on two hosts with one folder."),
        click.option(
            "--out", type=click.Path(path_type=Path), help="Folder of the run (default results/runs/<name>)."
        ),
        click.option("--fresh", is_flag=True, help="Do again what the folder holds already."),
        click.option("--dry-run", is_flag=True, help="Print the cells and stop."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables."),
        plugin_option,
    )
    for option in reversed(options):
        command = option(command)
    return command
