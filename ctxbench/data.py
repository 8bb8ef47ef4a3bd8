"""Which data sets there are, which of them are here, and how to get or make the others."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from ctxbench.errors import UsageError
from ctxbench.fetch import ARCHIVES, Archive
from ctxbench.tables import Column, Table
from tasks.segmentation.data import DATASETS, LEGEND, DataSet, is_there

FOLDER, TRAIN, REFERENCE = "imagenet", "train", "val"  # of what is generated: below the data root
NAMED = 3  # missing paths that are named


def known() -> list[DataSet]:
    """Those that are not generated."""
    return [each for each in DATASETS.values() if each is not LEGEND]


def missing_of(data: DataSet, root: Path) -> str:
    """What is missing of a data set, by its paths below the root; "" if nothing is."""
    missing = [str(path.relative_to(root)) for path in data.missing(root)]
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return ", ".join(missing[:NAMED]) + more


def state(data: DataSet, root: Path) -> str:
    if not is_there(Path.is_dir, root / data.folder):
        return "not there"
    missing = missing_of(data, root)
    return f"missing {missing}" if missing else "complete"


def table(root: Path) -> Table[DataSet]:
    columns = [
        Column[DataSet]("data set", lambda it: it.name, numeric=False),
        Column[DataSet]("folder", lambda it: str(root / it.folder), numeric=False),
        Column[DataSet]("state", lambda it: state(it, root), numeric=False),
        Column[DataSet]("how to get it", lambda it: it.advice if it.missing(root) else "", numeric=False),
    ]
    notes = [
        f"ctxbench task imagenet learns from any folder of images in {root / FOLDER}: from {TRAIN}, compared with "
        f"{REFERENCE}, where there are such folders."
    ]
    return Table(f"Data sets in {root}", columns, known(), notes)


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


def missing_data(data: DataSet, task: str, data_root: Path) -> str | None:
    """What is not where it should be, and how to get it; None if all is there."""
    if data is LEGEND or not (missing := missing_of(data, data_root)):
        return None
    return (
        f"{task}: missing in {data_root}: {missing}; to get it: {data.advice}; --data-root names "
        f"the folder that holds {data.folder}; without data: ctxbench task voc --preset demo"
    )


def generate_legend(cue: str, folder: Path) -> None:
    """Make the images of the legend diagnostic with this cue, once and as a whole."""
    from tasks import legend

    target, recipe = legend_folder(folder, cue), legend.Recipe(cue)
    if legend.is_complete(target, recipe):
        return
    partial = target.with_name(f"{target.name}-{secrets.token_hex(4)}")
    legend.generate(partial, recipe)
    if not legend.is_complete(target, recipe):
        shutil.rmtree(target, ignore_errors=True)  # of another design, or meddled with
    try:
        partial.rename(target)
    except OSError:  # another run was first
        shutil.rmtree(partial, ignore_errors=True)


def legend_folder(folder: Path, cue: str) -> Path:
    return folder / "data" / f"legend-{cue}"
