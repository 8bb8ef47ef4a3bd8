"""What is known of the blocks without running them: facts, options, and what they cost at a shape."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, get_args, get_type_hints

import blocks
from ctxbench.cost import estimate
from ctxbench.errors import RAISED, UsageError
from ctxbench.outcome import disagreement
from ctxbench.reports.inputs import shape
from ctxbench.reports.leaderboards import metric_column
from ctxbench.settle import cannot_run
from ctxbench.spec import BlockSpec, Cell, Grid, parse_blocks
from ctxbench.tables import MISSING, Column, Table

PROGRAMS: tuple[str, ...] = get_args(get_type_hints(blocks.ExportLimit)["program"])
ARGUMENTS = "\n\nArgs:\n"
COSTS = ("params", "macs", "macs_backward", "memory_predicted_bytes")


@dataclass(frozen=True)
class Description:
    """One block with its options, and what it costs.

    Attributes:
        costs: per shape, dtype and mode: the columns of `columns_of`.
    """

    spec: BlockSpec
    info: blocks.BlockInfo
    costs: list[dict[str, Any]]

    @property
    def explanations(self) -> list[str]:
        """What the docstrings of the block's classes say."""
        classes = [it for it in self.info.cls.__mro__ if issubclass(it, blocks.ContextBlock)]
        own = [it for it in classes if it is not blocks.ContextBlock]
        texts = [inspect.cleandoc(it.__doc__) for it in own if isinstance(it.__doc__, str)]
        whole = next((text for text in texts if ARGUMENTS in text), None)  # a subclass lists all
        return [text if text is whole else text.partition(ARGUMENTS)[0] for text in texts]

    @property
    def exports(self) -> dict[str, str]:
        """Whether it exports, to each kind of program, and what is lost."""
        options = self.info.resolve(dict(self.spec.options))
        return {
            program: verdict([it for it in self.info.limits if it.program == program], options)
            for program in PROGRAMS
        }

    def costs_table(self) -> Table[dict[str, Any]]:
        """The costs, in the units that tables show."""
        columns = [
            Column[dict[str, Any]]("input", shape, numeric=False),
            Column("mode", lambda row: row["mode"], numeric=False),
            Column("dtype", lambda row: row["dtype"], numeric=False),
            *map(metric_column, COSTS),
        ]
        if any(row["reason"] for row in self.costs):
            columns.append(Column("flags", lambda row: row["reason"] or "", numeric=False))
        notes = [
            f"Nothing was run. MACs of one forward; peak memory with the parameters, without the input; "
            f"{MISSING}: does not apply. Another shape: --resolutions, --channels, --batch, --dtypes."
        ]
        return Table(f"cost of {self.spec.label}", columns, self.costs, notes)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; memory is in bytes."""
        chosen = {"spec": self.spec.label, "chosen": dict(self.spec.options), "export": self.exports}
        return facts(self.info) | chosen | {"costs": self.costs}


def describe(text: str, **axes: Any) -> Description:
    """The one block that a spec selects; `axes` are those of `Grid`.

    Raises:
        UsageError: for what selects no block or several, and for axes that cannot be read.
    """
    specs = parse_blocks(text)
    if len(specs) > 1:
        raise UsageError(f"{text!r} selects {len(specs)} blocks; name one")
    cells = Grid(blocks=specs[0].label, modes="infer,train", estimated=True, **axes).cells()
    return Description(specs[0], blocks.info(specs[0].name), [columns_of(cell) for cell in cells])


def verdict(limits: list[blocks.ExportLimit], options: dict[str, Any]) -> str:
    """What the limits of one kind of program mean for a block with these options."""
    held = [it for it in limits if it.applies(options)]
    for it in held:
        if not it.sizes:
            return f"no: {it.why}"
    text = "yes, height and width may stay open"
    if held:
        text = f"yes, the example's height and width alone: {held[0].why}"
    others: dict[str, list[str]] = {}
    for it in limits:
        if it.only and it not in held:
            others.setdefault(it.why, []).append("=".join(map(str, it.only)))
    return "; ".join([text, *(f"not with {' or '.join(given)}: {why}" for why, given in others.items())])


def columns_of(cell: Cell) -> dict[str, Any]:
    """A cell's shape, dtype and mode with its cost; `reason` says what is wrong with that, or is None."""
    row: dict[str, Any] = {
        "batch": cell.batch,
        "channels": cell.channels,
        "height": cell.height,
        "width": cell.width,
        "dtype": cell.dtype,
        "mode": cell.mode,
    }
    try:
        cost = estimate(cell)
        verdict = disagreement(cost)
    except RAISED as error:
        return row | dict.fromkeys(COSTS) | {"reason": cannot_run(error, 0.0).columns["reason"]}
    return row | {
        "params": cost.params,
        "macs": cost.macs_counted,
        "macs_backward": cost.macs_backward,
        "memory_predicted_bytes": cost.memory_bytes,
        "reason": verdict.columns["reason"] if verdict else None,
    }


def facts(info: blocks.BlockInfo) -> dict[str, Any]:
    """A block's facts as plain data."""
    return {
        "name": info.name,
        "title": info.title,
        "family": info.family,
        "summary": info.summary,
        "complexity": info.complexity,
        "formula": info.formula,
        "options": {it.name: {"default": it.default, "kind": it.kind} for it in info.options.values()},
        "paper": asdict(info.paper) if info.paper else None,
        "export_limits": [asdict(it) for it in info.limits],
    }


def table(infos: list[blocks.BlockInfo]) -> Table[blocks.BlockInfo]:
    """The catalogue."""
    columns = [
        Column[blocks.BlockInfo]("block", lambda info: info.name, numeric=False),
        Column[blocks.BlockInfo]("family", lambda info: info.family, numeric=False),
        Column[blocks.BlockInfo]("complexity", lambda info: info.complexity, numeric=False),
        Column[blocks.BlockInfo]("what it does", lambda info: info.summary, numeric=False),
    ]
    return Table(f"{len(infos)} blocks", columns, infos)
