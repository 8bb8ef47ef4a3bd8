"""Numbers printed in papers and model zoos, and how the measured ones compare with them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ctxbench.record import GIGA, MEBI, MIB, Row
from ctxbench.tables import Column, Table

TABLE_3_INPUT = {
    "batch": 1,
    "channels": 512,
    "height": 128,
    "width": 128,
    "dtype": "float32",
    "compiled": False,
}
TOLERANCE = 0.01  # relative; the printed digits allow no finer judgement

# Published metric of a profile -> column of a record, factor into the printed unit, mode.
PROFILE_METRICS = {
    "params": ("params", MEBI, None),
    "macs": ("macs", GIGA, None),
    "gpu_memory_infer": ("memory_predicted_bytes", MIB, "infer"),
    "gpu_memory_train": ("memory_predicted_bytes", MIB, "train"),
}
LABELS = {
    "params": "parameters (2^20)",
    "macs": "MACs (10^9)",
    "gpu_memory_infer": "memory, inference (MiB)",
    "gpu_memory_train": "memory, training (MiB)",
}


@dataclass(frozen=True)
class Comparison:
    """One published number beside the one found here, in the published unit."""

    method: str
    spec: str
    metric: str
    published: float
    digits: int
    found: float
    source: str
    explanation: str

    @property
    def difference(self) -> float:
        """Relative to the published number."""
        return self.found / self.published - 1

    @property
    def agrees(self) -> bool:
        return abs(self.difference) <= TOLERANCE


def folder() -> Path:
    """Where the CSV files are: in the installed package, or in the checkout's results."""
    packaged = Path(str(resources.files("ctxbench"))) / "published"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "results" / "published"


def load(name: str) -> list[dict[str, str]]:
    """The rows of a file of published numbers: "paper", "mmseg_zoo", "generation", "explanations"."""
    with (folder() / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def compare_profile(rows: list[Row]) -> list[Comparison]:
    """Records of the paper's Table 3 input, in float32, beside its numbers; in the table's order."""
    here = [
        row
        for row in rows
        if row["status"] in ("ok", "skipped")
        and all(row[name] == value for name, value in TABLE_3_INPUT.items())
    ]
    why = {(row["spec"], row["metric"]): row["explanation"] for row in load("explanations")}
    found = []
    for printed in load("paper"):
        key = printed["spec"], printed["metric"]
        found_here = value_here(here, *key) if printed["table"] == "Table 3" else None
        if found_here is not None:
            found.append(
                Comparison(
                    method=printed["method"],
                    spec=printed["spec"],
                    metric=printed["metric"],
                    published=float(printed["value"]),
                    digits=len(printed["value"].partition(".")[2]),
                    found=found_here,
                    source=printed["source"],
                    explanation=why.get(key, ""),
                )
            )
    return found


def value_here(rows: list[Row], spec: str, metric: str) -> float | None:
    """The number found here, in the published unit; None where there is none to compare."""
    if metric not in PROFILE_METRICS:
        return None
    column, scale, mode = PROFILE_METRICS[metric]
    values = (row[column] for row in rows if row["spec"] == spec and mode in (None, row["mode"]))
    value = next((value for value in values if value is not None), None)
    return None if value is None else value / scale


def published_table(comparisons: list[Comparison]) -> Table[Comparison]:
    """Published numbers beside those found here; where they differ, the reason if it is known."""
    columns = [
        Column[Comparison]("paper's name", lambda it: it.method, numeric=False),
        Column[Comparison]("block", lambda it: it.spec, numeric=False),
        Column[Comparison]("quantity", lambda it: LABELS[it.metric], numeric=False),
        Column[Comparison]("printed", lambda it: f"{it.published:,.{it.digits}f}"),
        Column[Comparison]("here", lambda it: f"{it.found:,.{max(it.digits, 1)}f}"),
        Column[Comparison]("difference", lambda it: f"{100 * it.difference:+.1f}%"),
        Column[Comparison]("verdict", verdict, numeric=False),
    ]
    sources = sorted({it.source for it in comparisons})
    notes = [f"Printed: {source}, Table 3, input 1x512x128x128." for source in sources]
    notes.append(
        "Here: counted parameters and MACs, and predicted memory with the block's parameters and "
        f"without its input. They agree where they are within {100 * TOLERANCE:.0f} %. The printed "
        "times are of another machine and are not compared."
    )
    notes += [
        f"{it.spec}, {LABELS[it.metric]}: {100 * it.difference:+.1f}%. {it.explanation}"
        for it in comparisons
        if it.explanation
    ]
    return Table("Numbers of the paper beside those found here", columns, comparisons, notes)


def verdict(it: Comparison) -> str:
    if it.agrees:
        return "agrees"
    return "differs, see note" if it.explanation else "differs"
