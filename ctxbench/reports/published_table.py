"""Published numbers beside those found here, as a table, and what is to be said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ctxbench.record import Row
from ctxbench.reports.published import (
    ENOUGH,
    KINDS,
    PROFILE_METRICS,
    SCORED,
    TIME_TOLERANCE,
    TIMES,
    TOLERANCE,
    Comparison,
    checked,
)
from ctxbench.tables import MISSING, Column, Table, number

MOST_REASONS = 3  # that are told


def published_table(comparisons: Sequence[Comparison], title: str, whole: bool = True) -> Table[Comparison]:
    """Published numbers beside those found here; where they differ, the reason if it is known.

    Args:
        whole: with what each was measured on, its reason and its source as columns; else the reasons are notes.
    """
    columns = [
        Column[Comparison]("published as", lambda it: it.method, numeric=False),
        Column[Comparison]("block", lambda it: it.spec or MISSING, numeric=False),
        Column[Comparison]("quantity", lambda it: it.label, numeric=False),
        Column[Comparison]("printed", lambda it: f"{it.published:,.{it.claim.digits}f}"),
        Column[Comparison]("here", here),
        Column[Comparison]("difference", difference),
        Column[Comparison]("state", lambda it: it.state, numeric=False, role="state"),
    ]
    explained = list(notes(comparisons))
    if whole:
        columns += [
            Column("because", because, numeric=False),
            Column("on", lambda it: it.claim.dataset, numeric=False),
            Column("source", lambda it: it.claim.origin.name, numeric=False, role="source"),
        ]
    else:
        names = dict.fromkeys(f"{it.claim.origin.name}, {it.claim.dataset}" for it in comparisons)
        explained = [f"Printed: {'; '.join(names)}.", *explained]
        explained += [
            f"{it.spec}, {it.label}: {difference(it)}. {it.explanation}"
            for it in comparisons
            if it.explanation
        ]
    return Table(
        title,
        columns,
        list(comparisons),
        explained,
        source=lambda it: it.claim.origin,
        kind=lambda it: KINDS[it.state],
    )


def here(it: Comparison) -> str:
    return MISSING if it.found is None else f"{it.found:,.{max(it.claim.digits, 1)}f}"


def difference(it: Comparison) -> str:
    return MISSING if it.difference is None else f"{100 * it.difference:+.1f}%"


def because(it: Comparison) -> str:
    return (it.explanation if not it.agrees else "") or it.reason or it.claim.note


def notes(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What agreement means, for the kinds of numbers that were found."""
    found = checked(comparisons)
    yield summary(comparisons)
    if any(it.claim.metric in PROFILE_METRICS for it in found):
        yield (
            "Costs of blocks: counted parameters and MACs, and predicted memory with the block's parameters and "
            f"without its input. They are reproduced where they are within {100 * TOLERANCE:.0f} %."
        )
    if any(it.claim.metric in TIMES for it in found):
        yield (
            "Times are compared as multiples of self-attention's, whose printed time is set equal; reproduced "
            f"within {100 * TIME_TOLERANCE:.0f} %."
        )
    if any(it.claim.metric in SCORED for it in found):
        yield (
            f"Scores are reproduced within {100 * TOLERANCE:.0f} % of the mean, or of the range of at least {ENOUGH} "
            "seeds. Data and first weights are taken for what they are called."
        )


def summary(comparisons: Sequence[Comparison]) -> str:
    """How many numbers there are in each state."""
    states = [it.state for it in comparisons]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(set(states))))
    return f"{number(len(states))} published numbers: {counted or 'none'}."


def related(comparisons: Sequence[Comparison], rows: Sequence[Row]) -> list[Comparison]:
    """Those of the tasks that the records are of, with a block that the records have."""
    kinds: set[Any] = {"profile" if row["kind"] == "profile" else row["task"] for row in rows}
    specs = {row["spec"] for row in rows} | {row["block"] for row in rows}
    return [it for it in comparisons if it.claim.task in kinds and it.spec in specs]


def unchecked(comparisons: Sequence[Comparison]) -> list[str]:
    """Why the others cannot be checked, each reason once."""
    reasons = Counter(it.reason for it in comparisons if it.found is None)
    return [
        f"{count} more published numbers of these blocks cannot be checked here: {reason}."
        for reason, count in reasons.most_common(MOST_REASONS)
    ]
