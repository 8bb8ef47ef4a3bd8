"""Who is cheaper: comparisons that count only what intervals tell apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ctxbench.record import FAILED, METRICS, Row
from ctxbench.tables import number

LATENCY, MEMORY = "latency_ms_median", "memory_predicted_bytes"
UNSEEN = 0.005  # of a predicted memory: work space inside kernels is not seen, and is more
CONTROL = "control"  # the family of what does no work, and would win every contest
MOST_NAMED = 3
CHEAPEST = {"macs_total": "Fewest MACs", "memory_predicted_bytes": "Least memory", LATENCY: "Fastest"}
WORDS = {
    "macs_total": ("fewer MACs than", "more MACs than"),
    "memory_predicted_bytes": ("less memory than", "more memory than"),
    LATENCY: ("less time than", "more time than"),
}


@dataclass(frozen=True)
class Interval:
    """A cost and what it may be; counted ones are exact. `settled`: as narrow as was asked for."""

    low: float
    middle: float
    high: float
    settled: bool = True

    def __lt__(self, other: Interval) -> bool:
        """Whether it is below the other one for sure."""
        return self.high < other.low


def interval(row: Row, column: str) -> Interval | None:
    """The cost of a row; None where it was not measured, or is nothing."""
    value = row[column]
    if value is None or value <= 0 or row["status"] not in ("ok", "skipped"):
        return None
    if column == MEMORY:
        return Interval(value * (1 - UNSEEN), value, value * (1 + UNSEEN))
    if column != LATENCY:
        return Interval(value, value, value)
    low, high = min(row["latency_ms_ci_low"], value), max(row["latency_ms_ci_high"], value)
    return Interval(low, value, high, settled=row["converged"] is not False)


def leaders(rows: Sequence[Row], column: str) -> list[Row]:
    """The cheapest of those that do work, then those not told apart from it, each once; [] if there is no contest.

    One that failed has lost.
    """
    working = [row for row in rows if row["family"] != CONTROL]
    found = [(cost, row) for row in working if (cost := interval(row, column))]
    found.sort(key=lambda it: (it[0].middle, it[1]["spec"]))
    lost = {row["spec"] for row in working if row["status"] in FAILED}
    if not found or len({row["spec"] for _, row in found} | lost) < 2:
        return []
    best, seen = found[0][0], dict[str, Row]()
    for cost, row in found:
        if not best < cost:
            seen.setdefault(row["spec"], row)
    return list(seen.values())


def failures(rows: Sequence[Row]) -> str:
    """Which blocks failed, and how."""
    statuses = {row["spec"]: row["status"] for row in rows if row["status"] in FAILED}
    names = [f"`{spec}` ({status})" for spec, status in statuses.items()]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def amount(row: Row, column: str) -> str:
    """A cost with its unit."""
    metric = METRICS[column]
    return f"{number(row[column] / metric.scale)} {metric.unit}"


def named(specs: Sequence[str]) -> str:
    """Some of these names, and how many more there are."""
    shown = [f"`{spec}`" for spec in dict.fromkeys(specs)]
    more = f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
    return ", ".join(shown[:MOST_NAMED]) + more


@dataclass(frozen=True)
class Meeting:
    """The costs of two blocks at one resolution.

    Attributes:
        together: whether both were called in the same interleaved rounds.
    """

    height: int
    width: int
    ours: Interval
    theirs: Interval
    together: bool = True

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def sign(self) -> int:
        """-1 if ours is cheaper, 1 if it is dearer, 0 if they are not told apart."""
        return (self.theirs < self.ours) - (self.ours < self.theirs)

    @property
    def distance(self) -> float:
        """Of the logarithms: positive where ours is dearer."""
        return math.log(self.ours.middle) - math.log(self.theirs.middle)


@dataclass(frozen=True)
class Course:
    """How the cost of one block compares with that of another over resolutions, by rising pixels."""

    meetings: list[Meeting]

    @property
    def told(self) -> list[Meeting]:
        """Where the two are told apart."""
        return [it for it in self.meetings if it.sign]

    @property
    def turns(self) -> list[tuple[Meeting, Meeting]]:
        """The neighbours, of those told apart, between which the cheaper one changes."""
        return [(one, next_) for one, next_ in itertools.pairwise(self.told) if one.sign != next_.sign]

    @property
    def crossover(self) -> float | None:
        """The pixels at which the costs are equal; None unless the cheaper one changes exactly once.

        Between two resolutions the logarithm of the ratio is taken as linear in that of the pixels,
        which is exact for powers.
        """
        if len(self.turns) != 1:
            return None
        before, after = self.turns[0]
        inside = self.meetings[self.meetings.index(before) : self.meetings.index(after) + 1]
        for one, next_ in itertools.pairwise(inside):
            if one.distance * before.sign > 0 >= next_.distance * before.sign:
                part = one.distance / (one.distance - next_.distance)
                return float(one.pixels * (next_.pixels / one.pixels) ** part)
        return None

    @property
    def place(self) -> str:
        """The crossover as a resolution; the measured ones around it, if they are alike at one between."""
        pixels = self.crossover
        assert pixels is not None
        if self.is_wide:
            before, after = self.turns[0]
            return f"between {before.size} and {after.size}"
        square = all(it.height == it.width for turn in self.turns for it in turn)
        found = f"{math.sqrt(pixels):.0f}x{math.sqrt(pixels):.0f}" if square else f"{pixels:,.0f} pixels"
        before, after = self.turns[0]
        return {before.size: f"just above {found}", after.size: f"just below {found}"}.get(
            found, f"about {found}"
        )

    @property
    def is_wide(self) -> bool:
        """Whether the two are alike at a resolution at which the cheaper one changes."""
        return any(
            self.meetings.index(after) - self.meetings.index(before) > 1 for before, after in self.turns
        )

    @property
    def measured(self) -> str:
        """The resolutions compared, from the first to the last."""
        ends = dict.fromkeys((self.meetings[0].size, self.meetings[-1].size))
        return f"at {' to '.join(ends)}"

    @property
    def short(self) -> str:
        """From or up to where ours is the cheaper one, for a table."""
        if not self.meetings:
            return "not compared"
        if not self.told:
            return f"not told apart {self.measured}"
        but = "" if len(self.told) == len(self.meetings) else f" (alike at {self.sizes(0)})"
        if not self.turns:
            everywhere = "everywhere" if self.told[0].sign < 0 else "nowhere"
            return f"{everywhere} {self.measured}{but}"
        if self.crossover is None:
            return f"changes {len(self.turns)} times: cheaper at {self.sizes(-1)}{but}"
        return (f"from {self.place} on" if self.told[-1].sign < 0 else f"up to {self.place}") + but

    def sentence(self, ours: str, theirs: str, column: str) -> str:
        """The same in words."""
        less, more = WORDS[column]
        if not self.meetings:
            return f"`{ours}` and `{theirs}` have no resolution in common."
        if not self.told:
            return f"`{ours}` and `{theirs}` are not told apart {self.measured}."
        but = "" if len(self.told) == len(self.meetings) else f" (not told apart at {self.sizes(0)})"
        if not self.turns:
            relation = less if self.told[0].sign < 0 else more
            return f"`{ours}` takes {relation} `{theirs}` {self.measured}{but}."
        if self.crossover is None:
            return f"`{ours}` takes {less} `{theirs}` at {self.sizes(-1)}, and {more} it at {self.sizes(1)}{but}."
        before, after = self.turns[0]
        where = f"from {self.place} on" if self.told[-1].sign < 0 else f"up to {self.place}"
        measured = "" if self.is_wide else f" (measured: between {before.size} and {after.size})"
        return f"`{ours}` takes {less} `{theirs}` {where}{measured}{but}."

    def sizes(self, sign: int) -> str:
        return ", ".join(it.size for it in self.meetings if it.sign == sign)


def course(ours: Sequence[Row], theirs: Sequence[Row], column: str) -> Course:
    """Both blocks at every resolution that both have: one row of each is expected there.

    Of several shapes with as many pixels the squarest counts.
    """
    rivals = {(row["height"], row["width"]): (cost, row) for row in theirs if (cost := interval(row, column))}
    found = []
    for row in ours:
        size = row["height"], row["width"]
        if size in rivals and (cost := interval(row, column)):
            rival, other = rivals[size]
            found.append(Meeting(*size, cost, rival, row["rounds_id"] == other["rounds_id"]))
    squarest = sorted(found, key=lambda it: (it.pixels, -(it.height + it.width), it.height))
    return Course(list({it.pixels: it for it in squarest}.values()))
