"""Answers in a sentence or a small table: what is cheapest where, what overtakes what, what a score costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ctxbench.record import FAILED, METRICS, Row
from ctxbench.reports.contests import (
    CONTROL,
    LATENCY,
    MEMORY,
    Course,
    amount,
    course,
    failures,
    interval,
    leaders,
    named,
)
from ctxbench.reports.inputs import input_facets
from ctxbench.reports.scores import (
    SCORES,
    Entry,
    entries_of,
    flags,
    groups_of,
    leading,
    metric_of,
    ties,
    title_of,
    training_time,
)
from ctxbench.tables import MISSING, Column, Table, number

QUESTIONS = {"macs_total": "fewest MACs", "memory_predicted_bytes": "least memory", LATENCY: "fastest"}
OVERTAKING = {"macs_total": "fewer MACs", "memory_predicted_bytes": "less memory", LATENCY: "faster"}
MOST_ANSWERS = 5  # of a kind
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Scene:
    """What was found of one kind of input on one machine: at each resolution one row of a block, if any."""

    rows: list[Row]

    @cached_property
    def facets(self) -> dict[str, str]:
        measured = [row for row in self.rows if not row["estimated"]]
        return input_facets((measured or self.rows)[0])

    @property
    def title(self) -> str:
        return ", ".join(self.facets.values())

    @cached_property
    def sizes(self) -> dict[tuple[int, int], list[Row]]:
        """The rows of each resolution, by rising pixels."""
        found: dict[tuple[int, int], list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: (row["pixels"], row["height"], row["spec"])):
            found.setdefault((row["height"], row["width"]), []).append(row)
        return found

    @cached_property
    def columns(self) -> list[str]:
        """What there is to compare."""
        return [name for name in QUESTIONS if any(leaders(rows, name) for rows in self.sizes.values())]

    @cached_property
    def specs(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row["spec"], []).append(row)
        return found

    def of(self, spec: str) -> list[Row]:
        return self.specs.get(spec, [])

    def course(self, ours: str, theirs: str, column: str) -> Course:
        return course(self.of(ours), self.of(theirs), column)


def scenes(rows: Sequence[Row]) -> list[Scene]:
    """One for each machine, mode, width, batch and precision; the largest first.

    What is estimated holds on every machine, and completes what was measured there. Of several records of a
    cell the latest counts that did not fail.
    """
    estimated: dict[Key, list[Row]] = {}
    measured: dict[Key, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["created_utc"]):
        key = tuple(row[name] for name in ("mode", "batch", "channels", "dtype", "compiled"))
        if row["estimated"]:
            estimated.setdefault(key, []).append(row)
        else:
            measured.setdefault((*key, row["env_hash"]), []).append(row)
    groups = [[*estimated.get(key[:-1], []), *own] for key, own in measured.items()]
    groups += [own for key, own in estimated.items() if not any(it[:-1] == key for it in measured)]
    found = [Scene(one_each(group)) for group in groups]
    return sorted(found, key=lambda it: (-len(it.rows), it.title))


def one_each(rows: list[Row]) -> list[Row]:
    """The row that counts of each block and resolution."""
    ordered = sorted(
        rows, key=lambda row: (row["status"] not in FAILED, not row["estimated"], row["created_utc"])
    )
    return list({(row["spec"], row["height"], row["width"]): row for row in ordered}.values())


def cheapest(scene: Scene) -> Table[list[Row]]:
    """Which block is the cheapest at each resolution; blocks that do no work do not take part."""

    def winner(column: str) -> Column[list[Row]]:
        def cell(rows: list[Row]) -> str:
            best = leaders(rows, column)
            return ", ".join(f"{row['spec']} {amount(row, column)}" for row in best[:2]) + (
                f" and {len(best) - 2} more" if len(best) > 2 else "" if best else MISSING
            )

        return Column(QUESTIONS[column], cell, numeric=False)

    size = Column[list[Row]](
        "resolution", lambda rows: f"{rows[0]['height']}x{rows[0]['width']}", numeric=False
    )
    tied = any(len(leaders(rows, name)) > 1 for rows in scene.sizes.values() for name in scene.columns)
    note = (
        "Several blocks in a cell are not told apart: their intervals overlap, or their memory is within 1 %."
    )
    return Table(
        f"Cheapest at each resolution: {scene.title}",
        [size, *map(winner, scene.columns)],
        [rows for rows in scene.sizes.values() if any(leaders(rows, name) for name in scene.columns)],
        [*([note] if tied else []), *failed_notes(scene)],
        facets=scene.facets,
    )


def overtaking(scene: Scene, baseline: str) -> Table[str]:
    """From which resolution on each block is cheaper than the baseline, computed from what was measured."""

    def where(column: str) -> Column[str]:
        return Column(
            OVERTAKING[column], lambda spec: scene.course(spec, baseline, column).short, numeric=False
        )

    specs = {row["spec"]: row for row in scene.rows if row["spec"] != baseline and row["family"] != CONTROL}
    notes = [
        "Between two resolutions the costs are taken as powers of the number of pixels. Times count as "
        "different where their intervals do not overlap, predicted memory beyond 1 %. Nothing is said beyond what was measured.",
        *failed_notes(scene),
    ]
    return Table(
        f"Where each block is cheaper than {baseline}: {scene.title}",
        [Column[str]("block", lambda spec: spec, numeric=False), *map(where, scene.columns)],
        sorted(specs),
        notes,
        facets=scene.facets,
    )


def failed_notes(scene: Scene) -> list[str]:
    """Where which blocks did not run."""
    found = [(f"{h}x{w}", failures(rows)) for (h, w), rows in scene.sizes.items()]
    said = "; ".join(f"at {size}: {names}" for size, names in found if names)
    return [f"Failed {said}."] if said else []


def matrix(scene: Scene, unsettled: str = "") -> Table[str]:
    """What each block costs at each resolution: the latency where it was measured, else the MACs.

    Args:
        unsettled: follows a latency that did not settle.
    """
    column = next(name for name in (LATENCY, "macs_total", MEMORY) if name in scene.columns)
    found = {(row["spec"], row["height"], row["width"]): row for row in scene.rows if interval(row, column)}
    failed = {
        (row["spec"], row["height"], row["width"]): row for row in scene.rows if row["status"] in FAILED
    }

    def at(height: int, width: int) -> Column[str]:
        best = leaders(scene.sizes[height, width], column)

        def cell(spec: str) -> str:
            key = spec, height, width
            if key in found:
                open_ = column == LATENCY and found[key]["converged"] is False
                return number(found[key][column] / METRICS[column].scale) + (unsettled if open_ else "")
            return str(failed[key]["status"]) if key in failed else MISSING

        return Column(f"{height}x{width}", cell, best=lambda spec: [row["spec"] for row in best] == [spec])

    sizes = [size for size in scene.sizes if any(key[1:] == size for key in found)]
    last = {
        spec: max((row[column] for row in rows if interval(row, column)), default=0)
        for spec, rows in scene.specs.items()
    }
    specs = sorted(
        {key[0] for key in found} | {key[0] for key in failed}, key=lambda spec: (last[spec], spec)
    )
    metric = METRICS[column]
    return Table(
        f"{metric.title[0].upper()}{metric.title[1:]} at each resolution: {scene.title}",
        [Column[str]("block", lambda spec: spec, numeric=False), *(at(*size) for size in sizes)],
        specs,
        facets=scene.facets,
    )


@dataclass(frozen=True)
class Verdicts:
    """The tables that compare resolutions, each for every scene that has a contest at several."""

    cheapest: list[Table[Any]]
    matrices: list[Table[Any]]
    overtaking: list[Table[Any]]


def verdicts(rows: Sequence[Row], baseline: str | None) -> Verdicts:
    found = [scene for scene in scenes(rows) if scene.columns and len(scene.sizes) > 1]
    return Verdicts(
        [cheapest(scene) for scene in found],
        [matrix(scene) for scene in found],
        [overtaking(scene, baseline) for scene in found if baseline is not None and scene.of(baseline)],
    )


class Answer(NamedTuple):
    """What a reader should know first, and what it is about."""

    about: str
    said: str


def answers(rows: Sequence[Row], trained: Sequence[Row], baseline: str | None) -> list[Answer]:
    """A few sentences on costs, then on scores."""
    scores = (Answer(title_of(rows[0]), worth(rows)) for rows in groups_of(list(trained)))
    costs = (Answer(scene.title, in_short(scene, baseline)) for scene in scenes(rows))
    return [*first(costs, "costs"), *first(scores, "scores")]


def first(found: Iterable[Answer], kind: str) -> list[Answer]:
    said = [it for it in found if it.said]
    more = [Answer(f"{kind.capitalize()}, {len(said) - MOST_ANSWERS} more", "see below.")]
    return said[:MOST_ANSWERS] + (more if len(said) > MOST_ANSWERS else [])


def in_short(scene: Scene, baseline: str | None) -> str:
    """The cheapest block at the largest resolution, and since when it is cheaper than the baseline."""
    column = next((name for name in (LATENCY, "macs_total") if name in scene.columns), None)
    if column is None:
        return ""
    size, best = [(size, best) for size, rows in scene.sizes.items() if (best := leaders(rows, column))][-1]
    spec = best[0]["spec"]
    tied = [row["spec"] for row in best[1:]]
    said = f"{QUESTIONS[column][0].upper()}{QUESTIONS[column][1:]} at {size[0]}x{size[1]} is `{spec}` ({amount(best[0], column)}"
    said += f"; not told apart from {named(tied)})." if tied else ")."
    if baseline is None or spec == baseline or not scene.of(baseline):
        return said
    return f"{said} {scene.course(spec, baseline, column).sentence(spec, baseline, column)}"


def worth(rows: list[Row]) -> str:
    """What the seeds say of who is best, what must be known of it, and which blocks are worth their cost."""
    entries, metric = entries_of(rows), metric_of(rows)
    best = leading(entries, metric)
    doubts = [f"`{best[0].spec}`: {flags(best[0])}."] if best and flags(best[0]) else []
    return " ".join([*ties(entries, metric), *doubts, *worthwhile(entries, metric)])


def worthwhile(entries: list[Entry], metric: str) -> list[str]:
    """Blocks such that none has both a better mean score and a shorter training."""
    column, unit = training_time(entries)
    timed = [
        (cost, score, entry)
        for entry in entries
        if entry.sound and (score := entry.middle(metric)) is not None and (cost := entry.middle(column))
    ]
    sign = 1 if SCORES[metric].lower_is_better else -1
    timed.sort(key=lambda it: (it[0], sign * it[1], it[2].spec))
    frontier = [
        (cost, score, entry)
        for place, (cost, score, entry) in enumerate(timed)
        if all(sign * score < sign * other for _, other, _ in timed[:place])
    ]
    if len(timed) < 3:
        return []
    named = ", ".join(
        f"`{entry.spec}` ({SCORES[metric].with_unit(score)} for {cost:,.0f} s)"
        for cost, score, entry in frontier
    )
    return [f"Frontier of score and {unit}, by the means: {named}."]
