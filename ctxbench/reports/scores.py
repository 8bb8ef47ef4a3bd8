"""Leaderboards of trained networks: what a block is worth, over seeds, with its spread."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import mean
from typing import Any

from ctxbench.record import FAILED, Row
from ctxbench.reports.inputs import machine
from ctxbench.tables import MISSING, Column, Table, number

SHARED = (
    *("task", "preset", "model", "dataset", "train_iterations", "scoring", "first_weights"),
    *("dtype", "device_name", "torch", "program_hash", "protocol_json", "extractor"),
)


@dataclass(frozen=True)
class Score:
    """How a column of scores is shown, and which way is better."""

    column: str
    title: str
    scale: float = 1.0
    decimals: int = 2
    lower_is_better: bool = False

    @property
    def name(self) -> str:
        """The title without its unit."""
        return self.title.partition(" (")[0]

    def text(self, value: float | None) -> str:
        if value is None:
            return MISSING
        return f"{round(self.scale * value, self.decimals) + 0.0:.{self.decimals}f}"  # and no "-0.00"

    def with_unit(self, value: float | None) -> str:
        return self.text(value) + (" %" if "(%" in self.title and value is not None else "")


SCORES = {
    score.column: score
    for score in (
        Score("context_iou", "context IoU (%)", 100, 1),
        Score("miou", "mIoU (%)", 100, 1),
        Score("agreement", "agreement (kappa)"),
        Score("fid", "FID", lower_is_better=True),
        Score("kid", "KID", decimals=4, lower_is_better=True),
        Score("is_mean", "IS"),
        Score("precision", "precision"),
        Score("recall", "recall"),
        Score("relative_spread", "spread (% of real)", 100, 0),
        Score("accuracy", "right class (%)", 100, 1),
    )
}
SEGMENTED = ("context_iou", "miou")
DISTANCES = ("fid", "kid")
GENERATED = ("agreement", "fid", "kid", "is_mean", "precision", "recall", "relative_spread", "accuracy")
CHANCE = 1 / 3  # context IoU of a network that cannot see the cue, with perfect borders
NEAR_CHANCE = {"context_iou": 0.35, "agreement": 0.1}


@dataclass(frozen=True)
class Entry:
    """One block over all its seeds."""

    rows: list[Row]

    @property
    def spec(self) -> str:
        return str(self.rows[0]["spec"])

    @cached_property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row["status"] == "ok"]

    def scored(self, name: str) -> list[Row]:
        """The seeds that have this score."""
        return [row for row in self.done if row[name] is not None]

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.scored(name)]

    def middle(self, name: str) -> float | None:
        values = self.values(name)
        return mean(values) if values else None

    def range(self, name: str) -> tuple[float, float]:
        values = self.values(name)
        return min(values), max(values)

    @cached_property
    def collapsed(self) -> list[Row]:
        """Seeds whose generator makes images that are too much alike, or far from real."""
        return [row for row in self.done if row["collapsed"]]

    @property
    def sound(self) -> bool:
        """Whether its scores rank it: a distance of images that are too much alike, or far away, does not."""
        return all(map(is_sound, self.done))


def is_sound(row: Row) -> bool:
    """Whether the score of a seed ranks it; an agreement does in any case."""
    return not row["collapsed"] or row["metric"] not in DISTANCES


def score_tables(rows: list[Row]) -> list[Table[Any]]:
    """One table per task, protocol, network and data: the best blocks first, failures last; then its anchors."""
    found: list[Table[Any]] = []
    for members in groups_of(rows):
        found.append(score_table(members))
        if known := anchors_of(members):
            found.append(anchors_table(f"Anchors: {title_of(members[0])}", known))
    return found


def groups_of(rows: list[Row]) -> list[list[Row]]:
    """The rows of each table: of one protocol, network, machine, feature space and version of the code.

    A training that failed has no feature space: it stands with its like.
    """
    spaces = {shared(row)[:-1]: row["extractor"] for row in rows if row["extractor"] is not None}
    rows = [row | {"extractor": row["extractor"] or spaces.get(shared(row)[:-1])} for row in rows]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(
        rows, key=lambda row: (*map(natural, shared(row)), str(shared(row)), row["spec"], row["seed"])
    ):
        groups.setdefault(shared(row), []).append(row)
    return list(groups.values())


def shared(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in SHARED)


@cache
def natural(value: Any) -> list[tuple[float, str]]:
    """Sorts text with numbers in it by those: "legend-4" before "legend-14"."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", str(value)[:200])
    return [(float(part), "") if number % 2 else (-1.0, part) for number, part in enumerate(parts)]


def score_table(rows: list[Row]) -> Table[Entry]:
    entries, metric = entries_of(rows), metric_of(rows)
    column, unit = training_time(entries)
    best = [it.spec for it in leading(entries, metric)]
    others = SEGMENTED if metric in SEGMENTED else GENERATED
    names = [name for name in others if name != metric and any(row[name] is not None for row in rows)]
    columns = [
        Column[Entry]("block", lambda it: it.spec, numeric=False),
        Column[Entry]("seeds", lambda it: str(len(it.done))),
        replace(score_column(metric), best=lambda it: [it.spec] == best),
        Column[Entry]("seeds from - to", lambda it: ends(it, metric)),
        *map(score_column, names),
        Column[Entry](f"{unit} (s)", lambda it: number(it.middle(column), 3)),
    ]
    if any(flags(it) for it in entries):
        columns.append(Column("flags", flags, numeric=False, role="flags"))
    return Table(
        title_of(rows[0]),
        columns,
        entries,
        notes(rows, metric),
        verdict=" ".join(ties(entries, metric)),
        records=lambda it: it.rows,
        kind=lambda it: "" if it.done else "failed",
    )


def training_time(entries: list[Entry]) -> tuple[str, str]:
    """The column that says how long trainings took, and its name: on a CPU what others leave is not counted."""
    cuda = any(row["device_type"] == "cuda" for entry in entries for row in entry.rows)
    return ("train_s", "training time") if cuda else ("train_cpu_s", "CPU time")


def score_column(name: str) -> Column[Entry]:
    return Column(SCORES[name].title, lambda it: SCORES[name].text(it.middle(name)))


def metric_of(rows: list[Row]) -> str:
    """What the blocks are ranked by."""
    ranked = dict.fromkeys(row["metric"] for row in rows if row["metric"] is not None)
    failed = "fid" if rows[0]["scoring"] is None else "miou"
    return str(next((name for name in SCORES if name in ranked), failed))


def entries_of(rows: list[Row]) -> list[Entry]:
    """The blocks, best first, then those that collapsed, then those that failed in every seed.

    Of a seed the latest record counts.
    """
    metric = metric_of(rows)
    latest = {(row["spec"], row["seed"]): row for row in sorted(rows, key=lambda row: row["created_utc"])}
    of_specs: dict[str, list[Row]] = {}
    for (spec, _), row in sorted(latest.items(), key=lambda it: it[0]):
        of_specs.setdefault(spec, []).append(row)
    entries = [Entry(members) for members in of_specs.values()]
    sign = 1 if SCORES[metric].lower_is_better else -1
    return sorted(
        entries,
        key=lambda it: (
            not it.done,
            not it.sound,
            it.middle(metric) is None,
            sign * (it.middle(metric) or 0.0),
            it.spec,
        ),
    )


def ends(entry: Entry, metric: str) -> str:
    if len(entry.values(metric)) < 2:
        return MISSING
    return " - ".join(map(SCORES[metric].text, entry.range(metric)))


def flags(entry: Entry) -> str:
    """What became of seeds that are not scored, whether the cue was found, and how many generators collapsed."""
    chance = ["at chance"] if at_chance(entry) else []
    kinds = Counter(row["collapsed"].partition(":")[0] for row in entry.collapsed)
    doubts = [f"{kind} in {count} of {len(entry.done)} seeds" for kind, count in sorted(kinds.items())]
    if len(entry.done) == 1:
        doubts = [row["collapsed"] for row in entry.collapsed]
    return "; ".join([*failures(entry), *chance, *doubts])


def failures(entry: Entry) -> list[str]:
    return [
        f"seed {row['seed']} {row['status']}: {row['reason']}"
        for row in entry.rows
        if row["status"] in FAILED
    ]


def at_chance(entry: Entry) -> bool:
    """Whether the block did not bring what a diagnostic asks for."""
    return any(
        value is not None and value < bound
        for name, bound in NEAR_CHANCE.items()
        for value in [entry.middle(name)]
    )


def title_of(row: Row) -> str:
    precision = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    scored = "" if row["scoring"] in (None, "single") else f", scored {row['scoring']}"
    trained = f"{row['train_iterations']:,} iterations" if row["train_iterations"] else "not trained"
    network = f"{row['task']} ({row['preset']}): {row['model']} on {row['dataset']}"
    return f"{network}, {trained}{precision}{scored}"


def notes(rows: list[Row], metric: str) -> list[str]:
    found = [f"Trained on {', '.join(dict.fromkeys(machine(row) for row in rows))}."]
    if metric == "context_iou":
        found.append(
            "Context IoU: mean of the two classes of discs, which a cue tells apart that a local network cannot "
            "see. Guessing gives a third with perfect borders, and less without; below 35 % a block is flagged as "
            "at chance: it has not found the cue, or was not trained long enough to. mIoU holds the local classes "
            "beside them."
        )
    if metric not in SEGMENTED:
        found += generation_notes(rows, metric)
    found += protocol_lines(rows[0]["protocol_json"])
    found.append(f"Version of the code of blocks and training: {rows[0]['program_hash'] or 'unknown'}.")
    return found


def generation_notes(rows: list[Row], metric: str) -> list[str]:
    """How the scores of generators are to be read."""
    found = []
    if metric == "agreement":
        found.append(
            "Agreement: how often the two digits are of one class, beyond chance (Cohen's kappa): 1 always, 0 as "
            "often as independent ones. The class is told to the left half of the generator's first map alone, and "
            "its convolutions do not reach the right digit: without context the halves are independent."
        )
    if metric == "kid":
        found.append("Too few images for a Frechet distance: two for each of the features at least.")
    spaces = dict.fromkeys(row["extractor"] for row in rows if row["extractor"] is not None)
    counts = dict.fromkeys(f"{row['images_scored']:,}" for row in rows if row["images_scored"] is not None)
    if spaces:
        found.append(f"{' and '.join(counts)} images scored, in the feature space of {' and '.join(spaces)}.")
    return found


def anchors_of(rows: list[Row]) -> dict[str, Any]:
    """What the records say of real images in the same feature space; {} if nothing that can be read."""
    for row in rows:
        try:
            found = json.loads(row["anchors_json"] or "{}")
            values = [found[name][column] for name, _ in ANCHORS for column in ANCHORED]
            values += [found["accuracy"], found["inception_score"]]
        except (KeyError, TypeError, ValueError):
            continue
        if all(value is None or type(value) in (int, float) for value in values):
            return dict(found)
    return {}


ANCHORS = (
    ("bootstrap", "real images, drawn again with replacement"),
    ("halves", "half of the real images against the other half"),
    ("repeated", "the mean image of each class, repeated"),
)
ANCHORED = {
    "fid": "fid",
    "kid": "kid",
    "inception_score": "is_mean",
    "precision": "precision",
    "recall": "recall",
}


def anchors_table(title: str, known: dict[str, Any], first: tuple[Any, ...] = ()) -> Table[tuple[str, Any]]:
    """What the scores would be of images that are real, and of a generator that has collapsed.

    Args:
        first: rows before these, as pairs of a name and its scores.
    """

    def score_of(name: str, column: str) -> Column[tuple[str, Any]]:
        return Column(SCORES[column].title, lambda it: SCORES[column].text(it[1][name]))

    columns = [
        Column[tuple[str, Any]]("images", lambda it: it[0], numeric=False),
        *(score_of(name, column) for name, column in ANCHORED.items()),
    ]
    seen = (
        "" if known["accuracy"] is None else f", and {100 * known['accuracy']:.1f} % are seen as their class"
    )
    notes = [f"Of all real images the IS is {SCORES['is_mean'].text(known['inception_score'])}{seen}."]
    return Table(title, columns, [*first, *((words, known[name]) for name, words in ANCHORS)], notes)


def protocol_lines(text: str) -> list[str]:
    """What the record says of each stage, if it can be read."""
    try:
        protocol = json.loads(text)
        if "stages" not in protocol:
            return [*generation_lines(protocol)]
        found = [protocol_line(stage) for stage in protocol["stages"]]
        together = f"; {protocol['processes']:d} processes" if protocol["processes"] != 1 else ""
        return [*found, f"Data {protocol['data_digest'] or 'unknown'}{together}."]
    except (KeyError, TypeError, ValueError):
        return []


def generation_lines(protocol: dict[str, Any]) -> list[str]:
    first, second = protocol["learning_rates"]
    beta, gamma = protocol["betas"]
    ema = f"mean of the generator's weights (decay {protocol['ema']:g})" if protocol["ema"] else "generator"
    together = f"; {protocol['processes']:d} processes" if protocol["processes"] != 1 else ""
    data, reference = protocol["data_digest"], protocol["reference_digest"]
    against = "the same images" if data == reference else reference
    trained = (
        f"Protocol: {protocol['iterations']:,} updates of each network, {protocol['batch']} images, "
        f"{protocol['optimizer']} {first:g} (G) and {second:g} (D), betas {beta:g} and {gamma:g}"
        if protocol["iterations"]
        else "Scored as they are"
    )
    return [
        f"{trained}; {ema} scored, last checkpoint; first weights: {protocol['first_weights']}. {protocol['note']}",
        f"Data {protocol['data_digest']}, compared with {against}{together}.",
    ]


def protocol_line(stage: dict[str, Any]) -> str:
    first = f"first weights: {stage['first_weights']}. {stage['note']}"
    if not stage["iterations"]:
        return f"Scored as they are, {stage['scoring']}; {first}"
    crop = "x".join(map(str, stage["crop"]))
    return (
        f"Protocol: {stage['train']}, {stage['iterations']:,} iterations of {stage['batch']} crops {crop}, "
        f"{stage['optimizer']} {stage['learning_rate']:g}, scored {stage['scoring']}, last checkpoint; {first}"
    )


def leading(entries: list[Entry], metric: str) -> list[Entry]:
    """The best block, then those that the seeds do not tell from it; [] where the scores rank nothing."""
    scored = [it for it in entries if it.values(metric)]
    sound = [it for it in scored if it.sound]
    if len(sound) < 2 or min(len(it.values(metric)) for it in scored) < 2:
        return []
    best = scored[0]
    if failures(best) or at_chance(best):
        return []
    return [best, *(it for it in sound[1:] if overlap(it, best, metric))]


def ties(entries: list[Entry], metric: str) -> list[str]:
    """What the seeds say of who is best."""
    scored = [it for it in entries if it.values(metric)]
    if len(scored) < 2:
        return []
    best, sound = scored[0], [it for it in scored if it.sound]
    found = []
    if len({tuple(sorted(row["seed"] for row in it.done)) for it in scored}) > 1:
        found.append("Not all blocks have the same seeds: what differs may be the seeds.")
    if len(sound) < 2:
        why = f"`{sound[0].spec}` alone has none" if sound else "every block has one"
        return [*found, f"The scores rank nothing: of generators that collapsed or are far from real, {why}."]
    if failures(best) or at_chance(best):
        return found
    if min(len(it.values(metric)) for it in scored) < 2:
        return [*found, "One seed tells no scatter: small differences mean nothing."]
    tied = [it.spec for it in leading(entries, metric)[1:]]
    return [*found, verdict(best, tied, len(sound) < len(scored), metric)]


def verdict(best: Entry, tied: list[str], others_failed: bool, metric: str) -> str:
    """Which blocks the seeds do not tell from the best one.

    Args:
        others_failed: whether there are blocks whose scores rank nothing.
    """
    start = "No block wins. " if "none" in (best.spec, *tied) else ""
    score = f"{SCORES[metric].name} {SCORES[metric].with_unit(best.middle(metric))}"
    if tied:
        names = ", ".join(f"`{it}`" for it in tied)
        return f"{start}`{best.spec}` has the best mean ({score}); the seeds do not tell it from {names}."
    better = "below" if SCORES[metric].lower_is_better else "above"
    others = "the others that are ranked" if others_failed else "the others"
    return f"{start}Every seed of `{best.spec}` (mean {score}) is {better} all seeds of {others}."


def overlap(entry: Entry, best: Entry, metric: str) -> bool:
    """Whether the best seed of one block is no worse than the worst one of the best."""
    (low, high), (best_low, best_high) = entry.range(metric), best.range(metric)
    return low <= best_high if SCORES[metric].lower_is_better else high >= best_low
