"""A study: attention against matrix decomposition, as the records tell it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ctxbench.errors import UsageError
from ctxbench.record import FAILED, METRICS, Row
from ctxbench.reports.contests import CONTROL, LATENCY, MEMORY, Course, Interval, Meeting, course, interval
from ctxbench.reports.inputs import machine
from ctxbench.reports.official import (
    OfficialRatio,
    official_gaps,
    official_notes,
    official_tables,
    speed_tables,
)
from ctxbench.reports.published import TABLE_3_INPUT, TIMES, Claim, claims
from ctxbench.reports.published_table import published_table
from ctxbench.reports.report import Report, bullets, write_pictures
from ctxbench.reports.verdicts import Scene, matrix, scenes
from ctxbench.store import make_folder, write_atomically
from ctxbench.tables import MISSING, Column, Table, escape_markdown, markdown, number

NAME = "attention-vs-decomposition"
TITLE = "Attention against matrix decomposition"
NAIVE, FUSED = "self-attn", "self-attn[impl=sdpa]"
ATTENTION = {
    NAIVE: "naive attention, which writes its n x n map to memory",
    FUSED: "the same attention by PyTorch's fused kernel, which never does",
}
MULTI_HEAD = "mhsa"
DECOMPOSITIONS = ("ham-nmf", "ham-cd", "ham-vq")
BPTT = "ham-nmf[gradient=bptt]"
RIVALS = (*ATTENTION, MULTI_HEAD)
UNSETTLED, APART = "†", "‡"
INTERVALS_NOTE = (
    f"In brackets, of times, what the 95 % intervals of both allow. {UNSETTLED}: one of the two did not settle. "
    f"{APART}: the two were not called in the same rounds, so that no interval tells how far the ratio may be off."
)
TIMES_NOTES = [
    "Bold: the one block whose interval is below those of all others there.",
    f"{UNSETTLED}: did not settle.",
]
FIGURES = ("latency-", "memory-", "roofline-")
PAPERS_SIDE = TABLE_3_INPUT["height"]


def quotient(over: Interval, under: Interval) -> Interval:
    """Of two costs, as wide as both intervals allow."""
    settled = over.settled and under.settled
    return Interval(over.low / under.high, over.middle / under.middle, over.high / under.low, settled)


def with_interval(value: Interval, *, together: bool) -> str:
    ends = number(value.low, 3), number(value.high, 3)
    middle = number(value.middle, 3) + ("" if value.settled else UNSETTLED)
    if not together:
        return middle + APART
    return middle if ends[0] == ends[1] else f"{middle} ({ends[0]} - {ends[1]})"


@dataclass(frozen=True)
class Against:
    """A decomposition on one machine, in one mode and precision: from where on it is cheaper than attention."""

    scene: Scene
    spec: str


@dataclass(frozen=True)
class Printed:
    """A ratio of two times in the paper: attention's over a decomposition's."""

    mode: str
    attention: Claim
    decomposition: Claim

    @property
    def ratio(self) -> float:
        return self.attention.number / self.decomposition.number


@dataclass(frozen=True)
class Study:
    """What records say of attention and decompositions.

    Attributes:
        report: of the runs.
        official: comparisons of blocks with official implementations, as `tests.bench.official` records them.
    """

    report: Report
    official: Sequence[OfficialRatio] = ()

    @cached_property
    def scenes(self) -> list[Scene]:
        """Those with attention and a decomposition, by title."""
        found = [
            scene
            for scene in scenes(self.rows)
            if any(scene.of(spec) for spec in ATTENTION) and any(scene.of(spec) for spec in DECOMPOSITIONS)
        ]
        return sorted(found, key=lambda scene: scene.title)

    @property
    def rows(self) -> list[Row]:
        """Costs of blocks that were run; estimates have no time."""
        return [row for row in self.report.blocks if not row["estimated"]]

    @property
    def measured(self) -> list[Scene]:
        return [scene for scene in self.scenes if LATENCY in scene.columns]

    def write(self, out: Path) -> Path:
        """Write NAME.md and its figures, in a folder of the same name; returns the text's path.

        Raises:
            UsageError: if no record compares the two, or `out` cannot be a folder.
            WriteError: if a file cannot be written.
        """
        if not self.scenes:
            raise UsageError(
                f"no record of both {' or '.join(ATTENTION)} and one of {', '.join(DECOMPOSITIONS)} at one input; "
                f"make some with ctxbench profile --blocks '{','.join([*ATTENTION, *DECOMPOSITIONS])}'"
            )
        folder = make_folder(out / NAME)
        pictures = [it for it in self.report.pictures() if it.name.startswith(FIGURES)]
        write_pictures(folder, pictures)
        figures = [f"![{escape_markdown(it.caption)}]({NAME}/{it.name}.png)\n" for it in pictures]
        text = out / f"{NAME}.md"
        write_atomically(text, self.markdown(figures))
        return text

    def markdown(self, figures: Iterable[str] = ()) -> str:
        """The text.

        Args:
            figures: Markdown of each.
        """
        roles = ", ".join(f"`{spec}` ({what})" for spec, what in ATTENTION.items())
        parts = [
            f"# {TITLE}",
            "",
            "Generated from records by `ctxbench study`. Beside them stand the numbers that the paper prints, with the "
            f"explanations of differences that `results/published` has. Attention is {roles} "
            f"and `{MULTI_HEAD}` (heads of 64 channels by that kernel, as transformers have it); decompositions are {', '.join(f'`{it}`' for it in DECOMPOSITIONS)}.",
            "",
            *bullets([*self.report.summary, *self.doubts]),
            "## In short",
            "",
            *bullets(self.short),
            "## What the paper claimed",
            "",
            *(markdown(table) for table in self.claimed),
            "## What holds today",
            "",
            markdown(self.parts),
            markdown(self.crossovers),
            *(markdown(growth(scene)) for scene in self.scenes),
            *(markdown(replace(matrix(scene, UNSETTLED), notes=TIMES_NOTES)) for scene in self.measured),
            *figures,
        ]
        fast: list[Table[Any]] = [*map(speeds, self.measured), *speed_tables(self.official)]
        if fast:
            parts += ["## Achieved speed", "", *map(markdown, fast)]
        if self.official:
            parts += [
                "## Against official implementations",
                "",
                *map(markdown, official_tables(self.official)),
                "What was set or replaced in their code:",
                "",
                *bullets(official_notes(self.official)),
            ]
        parts += ["## What was not measurable here", "", *bullets(self.gaps)]
        parts += ["## How it was measured", "", *bullets(self.report.method)]
        return "\n".join(parts).rstrip() + "\n"

    @property
    def short(self) -> Iterator[str]:
        """What part of the best attention's costs decompositions take, in each scene."""
        yield from verdict(self.measured)
        for scene in self.measured:
            if said := in_short(scene):
                yield f"{scene.title}: {said}."
        spared = [scene for scene in self.measured if scene.facets["mode"] == "training"]
        if any(scene.of(DECOMPOSITIONS[0]) for scene in spared):
            prices = [it for it in map(price_of_the_way_back, spared) if it]
            yield (
                "In training decompositions have the paper's one-step gradient, which spares them the way back through "
                "the iterations"
                + (f"; with it `{DECOMPOSITIONS[0]}` takes {'; '.join(prices)}." if prices else ".")
            )
        yield "This is of costs alone, and says nothing of what a block learns."

    @property
    def doubts(self) -> Iterator[str]:
        """How far the times can be relied on."""
        timed = [row for row in self.rows if row[LATENCY] is not None]
        if open_ := sum(row["converged"] is False for row in timed):
            yield f"{open_} of {len(timed)} times did not settle; ratios of such a time carry a {UNSETTLED}"
        pairs = [
            met
            for scene in self.measured
            for ours in DECOMPOSITIONS
            for theirs in RIVALS
            for met in scene.course(ours, theirs, LATENCY).meetings
        ]
        if apart := sum(not met.together for met in pairs):
            yield (
                f"{apart} of {len(pairs)} pairs of a decomposition and attention were not called in the same rounds: the "
                f"machine may have been faster for one of them, or its code older; ratios of such times carry a {APART}"
            )

    @property
    def parts(self) -> Table[Against]:
        """What part of attention's costs each decomposition takes."""

        def part(column: str, words: str, attention: str) -> Column[Against]:
            def cell(row: Against) -> str:
                course = row.scene.course(row.spec, attention, column)
                return (
                    f"{share(course, column)} at {course.meetings[-1].size}" if course.meetings else MISSING
                )

            return Column(f"{words} {attention}", cell)

        rows = [Against(scene, spec) for scene in self.measured for spec in DECOMPOSITIONS if scene.of(spec)]
        columns = [
            part(column, words, attention)
            for column, words in ((LATENCY, "time over"), (MEMORY, "predicted memory over"))
            for attention in RIVALS
        ]
        return Table(
            "Cost of a decomposition over that of attention, at the largest resolution that both have",
            [*identity(), *columns],
            rows,
            [INTERVALS_NOTE],
        )

    @property
    def claimed(self) -> list[Table[Any]]:
        """The paper's costs beside those found, and its ratios of times."""
        wanted = (NAIVE, *DECOMPOSITIONS)
        found = [
            it
            for it in self.report.comparisons
            if it.claim.table == "Table 3" and it.claim.spec in wanted and it.found is not None
        ]
        costs = [published_table(found, "Costs of Table 3 at 1x512x128x128", whole=False)] if found else []
        return [*costs, self.ratios] if self.timed_as_printed else costs

    @property
    def timed_as_printed(self) -> dict[tuple[str, str, str], Row]:
        """What was timed at the input of Table 3, by mode, block, and precision and machine."""
        return {
            (row["mode"], row["spec"], place(row)): row
            for row in self.rows
            if TABLE_3_INPUT | {"dtype": row["dtype"]} == {name: row[name] for name in TABLE_3_INPUT}
            and interval(row, LATENCY)
        }

    @property
    def ratios(self) -> Table[tuple[str, Printed]]:
        """How many times longer attention takes: printed, and measured on each machine."""
        timed = self.timed_as_printed
        places = sorted({here for _, spec, here in timed if spec in ATTENTION})

        def measured(attention: str) -> Column[tuple[str, Printed]]:
            def cell(row: tuple[str, Printed]) -> str:
                here, pair = row
                over = timed.get((pair.mode, attention, here))
                under = timed.get((pair.mode, pair.decomposition.spec, here))
                if not over or not under:
                    return MISSING
                return share(course([over], [under], LATENCY), LATENCY)

            return Column(attention, cell)

        return Table(
            f"How many times longer attention takes than a decomposition, at {PAPERS_SIDE}x{PAPERS_SIDE}",
            [
                Column(
                    "mode", lambda row: "inference" if row[1].mode == "infer" else "training", numeric=False
                ),
                Column("decomposition", lambda row: row[1].decomposition.spec, numeric=False),
                Column("precision and machine", lambda row: row[0], numeric=False),
                Column(f"{NAIVE}, printed (the authors' GPU)", lambda row: number(row[1].ratio, 3)),
                *map(measured, ATTENTION),
            ],
            [(here, pair) for pair in printed() for here in places],
            [INTERVALS_NOTE],
        )

    @property
    def crossovers(self) -> Table[Against]:
        """From which resolution on each decomposition is cheaper than attention, by machine, mode and precision."""
        rows = [Against(scene, spec) for scene in self.scenes for spec in DECOMPOSITIONS if scene.of(spec)]

        def where(column: str, words: str, attention: str) -> Column[Against]:
            def cell(row: Against) -> str:
                return row.scene.course(row.spec, attention, column).short

            return Column(f"{words} {attention}", cell, numeric=False)

        return Table(
            "From which resolution on a decomposition is cheaper than attention",
            [
                *identity(),
                *(where(LATENCY, "faster than", attention) for attention in RIVALS),
                *(where(MEMORY, "less predicted memory than", attention) for attention in RIVALS),
            ],
            rows,
            [
                "Between two resolutions the costs are taken as powers of the number of pixels. Times count as "
                "different where their intervals do not overlap, predicted memory beyond 1 %. "
                '"On" ends with the largest resolution that was measured.'
            ],
        )

    @property
    def gaps(self) -> Iterator[str]:
        """What these records cannot say."""
        rows = [row for row in self.rows if row[LATENCY] is not None]
        if not any(row["device_type"] == "cuda" for row in rows):
            count = sum(claim.metric in TIMES for claim in claims() if claim.spec in (NAIVE, *DECOMPOSITIONS))
            yield (
                f"No record comes from a GPU. The {count} times that the paper prints of these blocks, the backends "
                "of fused attention, CUDA graphs, TF32 and Triton's kernel for NMF wait for one."
            )
        dtypes = sorted({row["dtype"] for row in rows})
        yield f"Precisions: {', '.join(dtypes) or 'none'}; no others."
        if not any(row["compiled"] for row in rows):
            yield "No record is of compiled blocks."
        failed = [row for row in self.rows if row["status"] in FAILED]
        for row in sorted(failed, key=lambda it: (it["spec"], it["pixels"], it["mode"], it["dtype"])):
            mode = "inference" if row["mode"] == "infer" else "training"
            yield (
                f"`{row['spec']}` at {row['height']}x{row['width']}, {mode}, {row['dtype']}, on {machine(row)}: "
                f"{row['status']}."
            )
        if rows:
            yield (
                f"Batches: {listed(rows, 'batch')}; channels: {listed(rows, 'channels')}; CPU threads: "
                f"{listed(rows, 'threads')}; no others."
            )
            last = max(rows, key=lambda row: row["pixels"])
            yield f"Nothing was measured beyond {last['height']}x{last['width']}."
        yield from official_gaps(self.official)


def listed(rows: Sequence[Row], name: str) -> str:
    """The values of a column, each once."""
    return ", ".join(map(str, sorted({row[name] for row in rows})))


def place(row: Row) -> str:
    """Precision and machine of a measurement."""
    return f"{row['dtype']}, {machine(row)}"


def identity() -> list[Column[Against]]:
    """What a row is about."""

    def facet(name: str) -> Column[Against]:
        return Column(name, lambda row: row.scene.facets[name], numeric=False)

    return [
        *map(facet, ("machine", "mode", "input", "precision")),
        Column("block", lambda row: row.spec, numeric=False),
    ]


def in_short(scene: Scene) -> str:
    """What part decompositions take of the costs of the attention that is best there; empty without both."""
    ours, *others = DECOMPOSITIONS
    best, least = (best_rival(scene, ours, column) for column in (LATENCY, MEMORY))
    if best is None:
        return ""
    fastest = best[0]
    over_time = scene.course(ours, fastest, LATENCY)
    text = (
        f"at {over_time.meetings[-1].size} `{ours}` takes {share(over_time, LATENCY)} of the time of `{fastest}`, the fastest attention "
        f"there, and is faster than that {over_time.short}"
    )
    for other in others:
        if (course := scene.course(other, fastest, LATENCY)).meetings:
            text += f"; `{other}` takes {share(course, LATENCY)}"
    if least is not None:
        leanest = least[0]
        course = scene.course(ours, leanest, MEMORY)
        text += f"; `{ours}` has {share(course, MEMORY)} of the predicted memory of `{leanest}`, the leanest"
    return text


def verdict(measured: Sequence[Scene]) -> Iterator[str]:
    """The first decomposition against the attention that is fastest, where most is at stake and where least is."""
    ours = DECOMPOSITIONS[0]
    for which, largest in (("largest", True), ("smallest", False)):
        best = [it for scene in measured if (it := best_rival(scene, ours, LATENCY, largest=largest))]
        met = [meeting for _, meeting in best]
        if met:
            sizes = " or ".join(dict.fromkeys(it.size for it in sorted(met, key=lambda it: it.pixels)))
            parts = sorted(it.ours.middle / it.theirs.middle for it in met)
            ends = " to ".join(dict.fromkeys(number(it, 2) for it in (parts[0], parts[-1])))
            faster, slower = (sum(it.sign == sign for it in met) for sign in (-1, 1))
            yield (
                f"At the {which} resolution, {sizes}, `{ours}` takes {ends} times as long as the fastest attention: it is "
                f"faster in {faster} of {len(met)} settings and slower in {slower}."
            )


def best_rival(scene: Scene, spec: str, column: str, *, largest: bool = True) -> tuple[str, Meeting] | None:
    """The attention of least cost at the largest or smallest resolution that `spec` shares with any, and both costs."""
    courses = {it: scene.course(spec, it, column).meetings for it in RIVALS}
    ends = {it: meetings[-1 if largest else 0] for it, meetings in courses.items() if meetings}
    if not ends:
        return None
    pixels = (max if largest else min)(met.pixels for met in ends.values())
    there = [(it, met) for it, met in ends.items() if met.pixels == pixels]
    return min(there, key=lambda it: it[1].theirs.middle)


def share(course: Course, column: str) -> str:
    """Our cost over theirs at the largest resolution of both; memory's has no interval, as work space is not seen."""
    met = course.meetings[-1]
    ratio = quotient(met.ours, met.theirs)
    return with_interval(ratio, together=met.together) if column == LATENCY else number(ratio.middle, 3)


def price_of_the_way_back(scene: Scene) -> str:
    """How many times longer training takes with the gradient through all iterations; empty where not measured."""
    course = scene.course(BPTT, DECOMPOSITIONS[0], LATENCY)
    if not course.meetings:
        return ""
    where = f"{course.meetings[-1].size} ({scene.facets['precision']}, {scene.facets['machine']})"
    return f"{share(course, LATENCY)} times as long at {where}"


def printed() -> Iterator[Printed]:
    """The paper's pairs of times."""
    times = {(it.spec, it.metric): it for it in claims() if it.metric in TIMES and it.table == "Table 3"}
    for metric, mode in TIMES.items():
        for spec in DECOMPOSITIONS:
            if (NAIVE, metric) in times and (spec, metric) in times:
                yield Printed(mode, times[NAIVE, metric], times[spec, metric])


def growth(scene: Scene) -> Table[str]:
    """With which power of the number of pixels the costs rose between the two largest resolutions."""

    def power(column: str) -> Column[str]:
        def cell(spec: str) -> str:
            rows = sorted(scene.of(spec), key=lambda row: (row["pixels"], -row["height"] - row["width"]))
            found = {row["pixels"]: it for row in rows if (it := interval(row, column))}
            if len(found) < 2:
                return MISSING
            (before, less), (after, more) = list(found.items())[-2:]
            mark = "" if less.settled and more.settled else UNSETTLED
            return f"{math.log(more.middle / less.middle) / math.log(after / before):.2f}{mark}"

        return Column(METRICS[column].title.partition(" (")[0], cell)

    specs = [spec for spec, rows in scene.specs.items() if rows[0]["family"] != CONTROL]
    return Table(
        f"Growth with the number of pixels: {scene.title}",
        [Column[str]("block", lambda spec: spec, numeric=False), *map(power, scene.columns)],
        sorted(specs),
        ["1 is growth in proportion, 2 with the square; between the two largest resolutions of a block."],
    )


def speeds(scene: Scene) -> Table[Row]:
    """Achieved speed at the largest resolution, against a matrix product in the same rounds."""
    timed = [row for row in scene.rows if row[LATENCY] and row["reference_gflops"]]
    largest = max((row["pixels"] for row in timed), default=0)
    rows = [row for row in timed if row["pixels"] == largest and row["macs_total"]]

    def gflops(row: Row) -> float:
        return float(2 * row["macs_total"] / (row["latency_cpu_ms_median"] or row[LATENCY]) / 1e6)

    size = f"{rows[0]['height']}x{rows[0]['width']}" if rows else "no resolution"
    return Table(
        f"GFLOP/s at {size}: {scene.title}",
        [
            Column("block", lambda row: row["spec"], numeric=False),
            Column("GFLOP/s", lambda row: number(gflops(row), 3)),
            Column(
                "of a matrix product's", lambda row: f"{100 * gflops(row) / row['reference_gflops']:.0f} %"
            ),
            Column(METRICS[LATENCY].title, lambda row: number(row[LATENCY])),
        ],
        sorted(rows, key=lambda row: -gflops(row)),
        [
            "Two operations for each counted MAC; element-wise work counts nothing. The product is torch's own, as "
            "attention calls it, and not the processor's peak: products of other shapes and convolutions may exceed it."
        ],
    )
