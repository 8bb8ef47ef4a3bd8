"""What a record was measured on, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ctxbench.record import Row

TELLING = ("driver", "cuda", "cudnn", "python", "ctxbench_version", "tf32", "cpu")


def input_facets(row: Row) -> dict[str, str]:
    return {
        "machine": "estimated" if row["estimated"] else machine(row),
        "mode": "inference" if row["mode"] == "infer" else "training",
        "input": f"batch {row['batch']}, {row['channels']} channels",
        "precision": row["dtype"] + (", compiled" if row["compiled"] else ""),
    }


def group_title(row: Row) -> str:
    """What the rows of a group share."""
    if row["kind"] == "step":
        what = f"{row['task']} ({row['preset']}): one update of both networks, {row['batch']} images"
        return f"{what}, {row['dtype']}, {machine(row)}"
    mode = "inference" if row["mode"] == "infer" else "training"
    parts = [shape(row), mode, row["dtype"], *(["compiled"] if row["compiled"] else [])]
    if row["estimated"]:
        return ", ".join([*parts, "estimated"])
    return ", ".join([*parts, machine(row)])


def shape(row: Row) -> str:
    return "x".join(str(row[side]) for side in ("batch", "channels", "height", "width"))


def labelled(rows: Iterable[Row]) -> list[Row]:
    """The rows with `machine`: the environment in words that tell it from the others that there are."""
    rows = list(rows)
    alike: dict[str, dict[str, Row]] = {}
    for row in rows:
        alike.setdefault(machine(row), {})[row["env_hash"]] = row
    labels = {
        env: ", ".join([name, *differences(row, list(environments.values()))])
        for name, environments in alike.items()
        for env, row in environments.items()
    }
    return [row | {"machine": labels[row["env_hash"]]} for row in rows]


def differences(row: Row, others: Sequence[Row]) -> list[str]:
    """In what an environment differs from others that have the same name."""
    if len(others) < 2:
        return []
    told = [name for name in TELLING if len({other[name] for other in others}) > 1]
    known = tuple(row[name] for name in told)
    enough = sum(tuple(other[name] for name in told) == known for other in others) == 1
    found = [f"{name.removesuffix('_version')} {row[name]}" for name in told]
    return found if enough else [*found, f"environment {row['env_hash'][:6]}"]


def commits(code: Iterable[tuple[str | None, bool | None]]) -> str:
    """The commits that records were made with, and how many with each; those of no known commit are left out."""
    names = (f"commit {commit}{' with changes' if dirty else ''}" for commit, dirty in code if commit)
    return ", ".join(f"{name} ({count})" for name, count in Counter(names).most_common())


def machine(row: Row) -> str:
    """The environment of a measurement, in short."""
    if "machine" in row:
        return str(row["machine"])
    threads = (
        f", {row['threads']} thread{'s' if row['threads'] > 1 else ''}" if row["device_type"] == "cpu" else ""
    )
    return f"{row['device_name']}{threads}, torch {row['torch'].partition('+')[0]}"
