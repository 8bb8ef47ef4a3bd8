"""All figures that records allow, the most telling first."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ctxbench.figures import ablations, claims
from ctxbench.figures.costs import MACS, latency_against_memory, over_resolution
from ctxbench.figures.inputs import by_input, by_machine
from ctxbench.figures.predictions import predictions
from ctxbench.figures.rooflines import roofline
from ctxbench.figures.scores import cues, scores
from ctxbench.figures.style import Looks, Picture, looks
from ctxbench.figures.tradeoffs import tradeoff
from ctxbench.figures.updates import updates
from ctxbench.record import Row
from ctxbench.reports.contests import LATENCY, MEMORY
from ctxbench.reports.repeatability import pooled
from ctxbench.reports.scores import groups_of

FIRST = 2  # of each kind: inference and training
Kind = Sequence[Picture | None]
TELLING = (  # what puts rows into an order of their own
    *("created_utc", "kind", "spec", "mode", "batch", "channels", "height", "width", "dtype", "compiled"),
    *("seed", "status", "run_id", "cell_id", "env_hash", "rounds_id", LATENCY, MEMORY, "macs_counted"),
    *("train_cpu_s", "context_iou", "miou", "agreement", "fid", "kid"),
)


def pictures(
    rows: list[Row], folders: Mapping[str, Path] | None = None, comparisons: Sequence[claims.Compared] = ()
) -> list[Picture]:
    """Every figure, undrawn: the first of each kind, then the others, of each kind those of larger groups first.

    Names are unique and fit for files.

    Args:
        folders: of the runs, by `run_id`, where sheets of predictions lie.
        comparisons: of published numbers with those found here.
    """
    rows = sorted(rows, key=lambda row: [str(row[name]) for name in TELLING])
    look = looks((row["spec"], row["family"]) for row in rows)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("task", "step", "profile")}
    profiles, numbers = pooled(kinds["profile"]), Counter[str]()
    found = [
        *of_trainings(kinds["task"], folders or {}, look, numbers),
        list(updates(pooled(kinds["step"]), look)),
        *of_profiles(profiles, look),
        [claims.differences(comparisons)],
        [it for group in by_input(profiles) for it in ablations.of_costs(group, numbers)],
    ]
    drawn = [[picture for picture in pictures if picture is not None] for pictures in found]
    first, others = [it[:FIRST] for it in drawn], [it[FIRST:] for it in drawn]
    return unique(itertools.chain(*first, *others))


def of_trainings(
    rows: list[Row], folders: Mapping[str, Path], look: Looks, numbers: Counter[str]
) -> list[Kind]:
    """Figures of trainings, numbered as their tables are."""
    groups = sorted(enumerate(groups_of(rows)), key=lambda it: -len(it[1]))
    return [
        [scores(members, number, look) for number, members in groups],
        [tradeoff(members, number, look) for number, members in groups],
        cues(rows, look),
        [predictions(members, number, folders) for number, members in groups],
        [it for _, members in groups for it in ablations.of_scores(members, numbers)],
    ]


def of_profiles(rows: list[Row], look: Looks) -> list[Kind]:
    """Figures of what was measured on each machine, and of what is counted or predicted for all."""
    inputs, machines = by_input(rows), by_machine(rows)
    return [
        [over_resolution(group, LATENCY, look) for group in machines],
        [over_resolution(group, MEMORY, look) for group in inputs],
        [over_resolution(group, MACS, look) for group in inputs],
        [latency_against_memory(group, look) for group in machines],
        [roofline(group, look) for group in machines],
    ]


def unique(found: Iterable[Picture]) -> list[Picture]:
    """The pictures; a name that was there before gets a number."""
    seen = Counter[str]()
    named = []
    for picture in found:
        seen[picture.name] += 1
        again = f"-again-{seen[picture.name]}" if seen[picture.name] > 1 else ""
        named.append(dataclasses.replace(picture, name=picture.name + again))
    return named
