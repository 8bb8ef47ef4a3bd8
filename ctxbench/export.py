"""Records in the formats of other programs: CSV, JSON, Parquet, and leaderboards for a paper."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ctxbench.errors import UsageError
from ctxbench.record import Record, Row
from ctxbench.reports.latex import latex
from ctxbench.reports.report import tables_of

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = tuple(Record.model_fields)
ORDER = ("pixels", "batch", "channels", "dtype", "mode", "spec", "cell_id", "created_utc", "env_hash")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a text begins that a spreadsheet would execute
DTYPES = {int: "Int64", float: "float64", bool: "boolean", str: "string"}
LARGEST_INT64 = 2**63 - 1


def export(rows: list[Row], format: str, baseline: str | None = None) -> str | bytes:
    """The records behind `rows` as the content of a file: bytes for Parquet, text otherwise.

    All formats but LaTeX hold every column of a record, units in their names, in the same order
    whatever the order of `rows`. LaTeX holds the leaderboards.

    Args:
        rows: `Record.row` of each record.
        format: one of `FORMATS`.
        baseline: the spec that the ratios of the leaderboards refer to.

    Raises:
        UsageError: for an unknown format, a baseline that no row has, and Parquet without pyarrow.
    """
    if format not in FORMATS:
        raise UsageError(f"no format {format!r}; there are: {', '.join(FORMATS)}")
    if format == "latex":
        return latex(tables_of(rows, baseline))
    ordered = sorted(rows, key=lambda row: [row[name] for name in ORDER])
    return WRITERS[format]([{name: row[name] for name in COLUMNS} for row in ordered])


def to_csv(rows: list[Row]) -> str:
    """One header, null as nothing, lines that end as RFC 4180 wants; no text that starts a formula."""
    # With another end of line, Python 3.11 would leave a lone carriage return in a text unquoted.
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([harmless(value) for value in row.values()] for row in rows)
    return file.getvalue()


def harmless(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula: an apostrophe comes before what looks like one."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def to_json(rows: list[Row]) -> str:
    """A list of records, each value as it is."""
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def to_parquet(rows: list[Row]) -> bytes:
    """A table whose columns have the types of a record, whatever was measured.

    Raises:
        UsageError: if pyarrow is missing or too old for pandas.
    """
    import pandas as pd

    frame = pd.DataFrame({name: typed([row[name] for row in rows], name) for name in COLUMNS})
    try:
        return frame.to_parquet(engine="pyarrow", index=False)
    except ImportError:
        raise UsageError('the format parquet needs pyarrow: pip install "ctxbench[parquet]"') from None


def typed(values: list[Any], name: str) -> pd.Series[Any]:
    """A column of a record with its type; whole numbers too large for 64 bits as floats."""
    import pandas as pd

    kind = scalar(Record.model_fields[name].annotation)
    if kind is int and any(not -LARGEST_INT64 - 1 <= (value or 0) <= LARGEST_INT64 for value in values):
        values = [None if value is None else float(value) for value in values]
        kind = float
    return pd.Series(values, dtype=DTYPES[kind])


def scalar(annotation: Any) -> type:
    """The int, float, bool or str of a field that may be annotated, optional or one of some choices."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if not parts:
        return annotation
    return type(parts[0]) if get_origin(annotation) is Literal else scalar(parts[0])


WRITERS: dict[str, Callable[[list[Row]], str | bytes]] = {
    "csv": to_csv,
    "json": to_json,
    "parquet": to_parquet,
}
FORMATS = (*WRITERS, "latex")
