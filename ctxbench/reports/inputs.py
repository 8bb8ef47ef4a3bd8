"""What a record was measured on, in words."""

from __future__ import annotations

from ctxbench.record import Row


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


def machine(row: Row) -> str:
    """The environment of a measurement, in short."""
    threads = (
        f", {row['threads']} thread{'s' if row['threads'] > 1 else ''}" if row["device_type"] == "cpu" else ""
    )
    return f"{row['device_name']}{threads}, torch {row['torch'].partition('+')[0]}"
