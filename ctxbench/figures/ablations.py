"""What one option of a block changes: its cost or score over the option's values, all others equal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from ctxbench.figures.costs import MACS, WHAT, fewer
from ctxbench.figures.inputs import Group, by_machine, courses, resolution
from ctxbench.figures.labels import label_ends
from ctxbench.figures.style import MOST, WIDTH, Looks, Picture, height_for, look_of, short, slug
from ctxbench.figures.ticks import heading, named_ticks, plain_numbers, titled
from ctxbench.record import METRICS, Row
from ctxbench.reports.contests import LATENCY
from ctxbench.reports.scores import SCORES, entries_of, metric_of, title_of

LARGEST = 1e15  # of a number on an axis
SPAN = 10  # values so many times apart stand on a logarithmic axis


@dataclass(frozen=True)
class Line:
    """A block whose specs differ in one option alone.

    Attributes:
        others: all other options, as pairs of a name and JSON.
        specs: by the option's value, as JSON.
    """

    block: str
    family: str
    others: tuple[tuple[str, str], ...]
    specs: dict[str, str]

    def among(self, specs: Iterable[str]) -> Line:
        """The line through these specs alone."""
        kept = set(specs)
        found = {value: spec for value, spec in self.specs.items() if spec in kept}
        return Line(self.block, self.family, self.others, found)


def lines_of(rows: Iterable[Row]) -> dict[str, list[Line]]:
    """For each option that tells specs of a block apart the lines through them."""
    known = {row["spec"]: row for row in rows}
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], Line] = {}
    for spec, row in sorted(known.items()):
        options = options_of(row)
        for index, (name, value) in enumerate(options):
            others = options[:index] + options[index + 1 :]
            line = Line(row["block"], row["family"], others, {})
            found.setdefault((name, row["block"], others), line).specs[value] = spec
    lines: dict[str, list[Line]] = {}
    for (name, _, _), line in sorted(found.items(), key=lambda it: it[0]):
        if len(line.specs) > 1:
            lines.setdefault(name, []).append(line)
    return lines


def options_of(row: Row) -> tuple[tuple[str, str], ...]:
    """Each option with its value as JSON; none where they cannot be read."""
    try:
        return tuple((name, json.dumps(it)) for name, it in sorted(json.loads(row["options_json"]).items()))
    except (ValueError, RecursionError):
        return ()


@dataclass(frozen=True)
class Found:
    """What was found of a spec: the middle, and what scatters around it: an interval, or every seed."""

    middle: float
    interval: tuple[float, float] | None = None
    seeds: tuple[float, ...] = ()


def of_scores(rows: list[Row], numbers: Counter[str]) -> list[Picture]:
    """The score over each option, of the trainings of one table.

    Args:
        numbers: how many figures each option has by now.
    """
    metric = metric_of(rows)
    scored = [row for row in rows if row["status"] == "ok" and row[metric] is not None]
    title = short(title_of(rows[0]), 200)
    found = []
    for option, lines in lines_of(scored).items():
        caption = f"{title}: {SCORES[metric].name} over {short(option)}, every seed and the mean"
        draw = partial(draw_scores, rows, metric, option, lines[:MOST])
        found.append(picture(option, caption, lines, draw, numbers))
    return found


def of_costs(group: Group, numbers: Counter[str]) -> list[Picture]:
    """The latency over each option on every machine where it was measured, or else the MACs."""
    found = []
    machines = by_machine(group.rows)
    for option, lines in lines_of(group.rows).items():
        drawn = [cost(it, LATENCY, option, lines, numbers) for it in machines]
        measured = [it for it in drawn if it is not None]
        counted = None if measured else cost(group, MACS, option, lines, numbers)
        found += measured or ([counted] if counted else [])
    return found


def cost(group: Group, column: str, option: str, lines: list[Line], numbers: Counter[str]) -> Picture | None:
    """The cost at the largest resolution at which most values of the option have one."""
    metric = METRICS[column]
    specs = {spec for line in lines for spec in line.specs.values()}
    members = [row for row in group.rows if row["spec"] in specs]
    by_size: dict[int, dict[str, Row]] = {}
    for course in courses(members, column):
        for row in course.good:
            by_size.setdefault(row["pixels"], {})[course.spec] = row
    if not by_size:
        return None
    rows = by_size[max(by_size, key=lambda pixels: (len(by_size[pixels]), pixels))]
    kept = [it for line in lines if len((it := line.among(rows)).specs) > 1]
    if not kept:
        return None
    found = {}
    for spec, row in rows.items():
        interval = (row["latency_ms_ci_low"], row["latency_ms_ci_high"]) if column == LATENCY else None
        found[spec] = Found(row[column] / metric.scale, interval)
    about = f"{group.about}, at {resolution(next(iter(rows.values())))}"
    caption = f"{WHAT[column][1]} over {short(option)} ({about})"
    draw = partial(draw_lines, kept[:MOST], found, option, metric.title, heading(about))
    return picture(option, caption, kept, draw, numbers)


def picture(
    option: str, caption: str, lines: list[Line], draw: Callable[[], Figure], numbers: Counter[str]
) -> Picture:
    stem = slug(option)
    numbers[stem] += 1
    equal = "; a line joins specs that differ in nothing else"
    name = f"ablation-{stem}-{numbers[stem] - 1}"
    return Picture(name, caption + equal + fewer(min(MOST, len(lines)), len(lines)), draw)


def draw_scores(rows: list[Row], metric: str, option: str, lines: list[Line]) -> Figure:
    score = SCORES[metric]
    found = {}
    for entry in entries_of(rows):
        if values := [score.scale * value for value in entry.values(metric)]:
            found[entry.spec] = Found(sum(values) / len(values), seeds=tuple(values))
    return draw_lines(lines, found, option, score.title, title_of(rows[0]))


def draw_lines(lines: list[Line], found: dict[str, Found], option: str, ylabel: str, title: str) -> Figure:
    """A line per block over the option's values: numbers on an axis of numbers, others side by side."""
    look = looks_of(lines)
    places = places_of({value for line in lines for value in line.specs})
    figure = Figure(figsize=(WIDTH, height_for(len(lines))))
    axes = figure.subplots()
    ends = []
    for name, line in zip(look, lines, strict=True):
        colour = look[name]["color"]
        points = [(places[value], found[spec]) for value, spec in line.specs.items()]
        points.sort(key=lambda point: point[0])
        x = [place for place, _ in points]
        axes.plot(x, [it.middle for _, it in points], **look[name])
        for place, it in points:
            if it.interval:
                axes.vlines(place, *it.interval, color=colour, linewidth=1)
            axes.scatter([place] * len(it.seeds), it.seeds, s=9, color=colour, alpha=0.5, linewidths=0)
        ends.append((x[-1], points[-1][1].middle, name))
    middles = [found[spec].middle for line in lines for spec in line.specs.values()]
    if not any(it.seeds for it in found.values()):  # a cost
        if min(middles) > 0 and max(middles) > SPAN * min(middles):
            axes.set_yscale("log")
            plain_numbers(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
    values = sorted(places, key=lambda value: places[value])
    if not is_numeric(values):
        axes.margins(x=0.2)
    elif min(places.values()) > 0 and max(places.values()) > SPAN * min(places.values()):
        axes.set_xscale("log")
    axes.set_xlabel(short(option), parse_math=False)
    axes.set_ylabel(ylabel)
    titled(axes, title)
    label_ends(axes, ends, look)
    named_ticks(axes, [places[value] for value in values], [short(shown(value), 16) for value in values])
    return figure


def looks_of(lines: list[Line]) -> Looks:
    """The look of each line by its name: the block, and what tells it from the block's other lines."""
    found: Looks = {}
    counted = Counter[str]()
    for line in lines:
        others = [set(it.others) for it in lines if it.block == line.block]
        common = set.intersection(*others)
        own = [f"{name}={shown(value)}" for name, value in line.others if (name, value) not in common]
        name = ", ".join([line.block, *own])
        if name in found:  # a number and a text that reads alike
            name += f" ({counted[line.block]})"
        found[name] = look_of(line.block, line.family, counted[line.block])
        counted[line.block] += 1
    return found


def places_of(values: set[str]) -> dict[str, float]:
    """Where each value stands: numbers where they are, others side by side."""
    if is_numeric(values):
        return {value: float(json.loads(value)) for value in values}
    return {value: float(place) for place, value in enumerate(sorted(values, key=rising))}


def rising(value: str) -> tuple[bool, float, str]:
    """Numbers by size, then text."""
    return (False, float(json.loads(value)), value) if is_numeric([value]) else (True, 0.0, value)


def is_numeric(values: Iterable[str]) -> bool:
    read = [json.loads(value) for value in values]
    return all(type(it) in (int, float) and abs(it) < LARGEST for it in read)


def shown(value: str) -> str:
    """A value as a user types it."""
    read = json.loads(value)
    return read if isinstance(read, str) else str(read)
