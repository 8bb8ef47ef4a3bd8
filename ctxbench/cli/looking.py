"""Commands that look at what there is: blocks, data sets, the machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from ctxbench.cli.options import data_root_option, plugin_option
from ctxbench.cli.program import OK, SOME_FAILED, main
from ctxbench.cli.steps import load_plugins, prepare_torch
from ctxbench.errors import UsageError


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
