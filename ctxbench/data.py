"""Which data sets there are, which of them are here, and how to get the others."""

from __future__ import annotations

from pathlib import Path

from ctxbench.errors import UsageError
from ctxbench.fetch import ARCHIVES, Archive
from ctxbench.tables import Column, Table
from tasks.segmentation.data import DATASETS, LEGEND, DataSet, is_there

NAMED = 3  # missing paths that are named


def known() -> list[DataSet]:
    """Those that are not generated."""
    return [each for each in DATASETS.values() if each is not LEGEND]


def state(data: DataSet, root: Path) -> str:
    """What is missing of a data set, in words."""
    missing = data.missing(root)
    if not missing:
        return "complete"
    names = [str(path.relative_to(root / data.folder)) for path in missing[:NAMED]]
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return f"missing {', '.join(names)}{more}" if is_there(Path.is_dir, root / data.folder) else "not there"


def table(root: Path) -> Table[DataSet]:
    columns = [
        Column[DataSet]("data set", lambda it: it.name, numeric=False),
        Column[DataSet]("folder", lambda it: str(root / it.folder), numeric=False),
        Column[DataSet]("state", lambda it: state(it, root), numeric=False),
        Column[DataSet]("how to get it", lambda it: it.advice if it.missing(root) else "", numeric=False),
    ]
    return Table(f"Data sets in {root}", columns, known())


def archive_of(name: str) -> Archive:
    """What is to be fetched for a data set.

    Raises:
        UsageError: for one that is not known, or whose owners want a login.
    """
    names = [each.name for each in known()]
    if name not in names:
        raise UsageError(f"{name!r} is no data set to fetch; there are {', '.join(names)}")
    if name not in ARCHIVES:
        raise UsageError(f"{name} needs an account: {DATASETS[name].advice}")
    return ARCHIVES[name]
