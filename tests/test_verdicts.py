"""Verdicts: what is cheapest, what overtakes what, and from which resolution on."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxbench.record import Row
from ctxbench.reports.contests import LATENCY, Course, Interval, Meeting, course, leaders, named
from ctxbench.reports.verdicts import answers, cheapest, overtaking, scenes, verdicts
from ctxbench.tables import markdown
from tests.factories import make_record


def timed(spec: str, side: int, milliseconds: float, off: float = 0.01, **fields: Any) -> Row:
    """A profile whose latency is known to so many parts of it; memory and MACs are in proportion."""
    cost = {
        "latency_ms_median": milliseconds,
        "latency_ms_ci_low": milliseconds * (1 - off),
        "latency_ms_ci_high": milliseconds * (1 + off),
        "macs_counted": int(1e6 * milliseconds),
        "macs_formula": int(1e6 * milliseconds),
        "memory_predicted_bytes": int(1e6 * milliseconds),
    }
    size = {"height": side, "width": side, "spec": spec, "block": spec, "family": "attention"}
    return make_record(**(cost | size | fields)).row


def powers(spec: str, factor: float, power: float, sides: list[int], **fields: Any) -> list[Row]:
    """Costs that are a power of the number of pixels."""
    return [timed(spec, side, factor * (side * side) ** power, **fields) for side in sides]


SIDES = [8, 16, 32, 64, 128]


@given(st.floats(9.0, 120.0), st.floats(1.5, 2.5), st.floats(0.5, 1.2))
def test_the_crossover_of_two_powers_is_where_they_are_equal(side: float, steep: float, flat: float) -> None:
    pixels = side * side
    attention = powers("attention", 1.0, steep, SIDES, off=0.0)
    linear = powers("linear", pixels ** (steep - flat), flat, SIDES, off=0.0)
    found = course(linear, attention, LATENCY)
    assert found.crossover == pytest.approx(pixels, rel=1e-9)
    assert found.short == f"from {found.place} on"
    back = course(attention, linear, LATENCY)
    assert back.crossover == pytest.approx(pixels, rel=1e-9)
    assert back.short == f"up to {back.place}"


def test_the_crossover_is_told_with_the_resolutions_between_which_it_lies() -> None:
    # 1 us a pixel against 1 ns a pixel squared: equal at 1,000 pixels, 31.6 x 31.6.
    linear = powers("linear", 1e-3, 1.0, SIDES)
    attention = powers("self-attn", 1e-6, 2.0, SIDES)
    said = course(linear, attention, LATENCY).sentence("linear", "self-attn", LATENCY)
    assert said == (
        "`linear` takes less time than `self-attn` from just below 32x32 on (measured: between 16x16 and 32x32)."
    )
    assert "up to just below 32x32" in course(attention, linear, LATENCY).sentence(
        "self-attn", "linear", LATENCY
    )


def meeting(side: int, ours: tuple[float, float], theirs: tuple[float, float]) -> Meeting:
    (a, b), (c, d) = ours, theirs
    return Meeting(side, side, Interval(a, math.sqrt(a * b), b), Interval(c, math.sqrt(c * d), d))


def test_intervals_that_overlap_are_not_told_apart() -> None:
    same = Course([meeting(8, (1, 2), (1.5, 3)), meeting(16, (4, 5), (4.5, 6))])
    assert (same.crossover, same.short) == (None, "not told apart at 8x8 to 16x16")
    assert "are not told apart at 8x8 to 16x16" in same.sentence("a", "b", LATENCY)


def test_one_that_is_never_overtaken_is_said_to_be_cheaper_where_it_was_measured() -> None:
    low = Course([meeting(8, (1, 1), (2, 2)), meeting(16, (3, 3), (9, 9))])
    assert (low.crossover, low.short) == (None, "everywhere at 8x8 to 16x16")
    high = Course([meeting(8, (2, 2), (1, 1))])
    assert high.short == "nowhere at 8x8"
    assert high.sentence("a", "b", LATENCY) == "`a` takes more time than `b` at 8x8."


def test_costs_that_cross_twice_have_no_one_crossover() -> None:
    twice = Course([meeting(8, (1, 1), (2, 2)), meeting(16, (3, 3), (2, 2)), meeting(32, (4, 4), (9, 9))])
    assert twice.crossover is None
    assert twice.short == "changes 2 times: cheaper at 8x8, 32x32"
    assert "less time than `b` at 8x8, 32x32, and more time than it at 16x16" in twice.sentence(
        "a", "b", LATENCY
    )


def test_a_crossover_within_resolutions_that_are_not_told_apart_lies_among_them() -> None:
    course_ = Course(
        [
            meeting(8, (4, 4), (1, 1)),
            meeting(16, (8, 12), (7, 11)),
            meeting(32, (8, 12), (9, 13)),
            meeting(64, (1, 1), (4, 4)),
        ]
    )
    assert 16 * 16 < (course_.crossover or 0) < 32 * 32
    assert "(not told apart at 16x16, 32x32)" in course_.sentence("a", "b", LATENCY)


def test_blocks_without_a_common_resolution_are_not_compared() -> None:
    none = course([timed("a", 8, 1.0)], [timed("b", 16, 1.0)], LATENCY)
    assert none.short == "not compared"
    assert "no resolution in common" in none.sentence("a", "b", LATENCY)


def test_sizes_that_are_no_squares_are_told_in_pixels() -> None:
    ours = [timed("a", 8, cost) | {"width": 16, "height": height} for height, cost in ((4, 3.0), (64, 3.0))]
    theirs = [timed("b", 8, cost) | {"width": 16, "height": height} for height, cost in ((4, 1.0), (64, 9.0))]
    assert course(ours, theirs, LATENCY).short == "from about 256 pixels on"


def test_leaders_are_the_cheapest_and_whoever_is_not_told_from_it() -> None:
    rows = [
        timed("a", 8, 1.0),
        timed("b", 8, 1.015),
        timed("c", 8, 1.5),
        timed("none", 8, 0.1, family="control"),
    ]
    assert [row["spec"] for row in leaders(rows, LATENCY)] == ["a", "b"]
    assert [row["spec"] for row in leaders(rows, "memory_predicted_bytes")] == ["a"]
    assert leaders(rows[:1], LATENCY) == [], "one block is no contest"


def test_a_block_that_failed_takes_no_part() -> None:
    failed = timed("a", 8, 1.0) | {"status": "oom"}
    assert [row["spec"] for row in leaders([failed, timed("b", 8, 2.0), timed("c", 8, 3.0)], LATENCY)] == [
        "b"
    ]


def test_names_beyond_a_few_are_counted() -> None:
    assert named(["a", "b", "b"]) == "`a`, `b`"
    assert named(list("abcde")) == "`a`, `b`, `c` and 2 more"


def test_what_is_estimated_completes_what_was_measured_on_each_machine() -> None:
    measured = [timed(spec, side, side * k) for k, spec in ((1, "a"), (2, "self-attn")) for side in (8, 16)]
    none: dict[str, Any] = dict.fromkeys(("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high"))
    beyond = [
        timed(spec, 64, 64 * k) | none | {"estimated": True} for k, spec in ((1, "a"), (2, "self-attn"))
    ]
    other = [row | {"env_hash": "ba9876543210", "device_name": "another"} for row in measured]
    found = scenes([*measured, *beyond, *other])
    assert [len(scene.rows) for scene in found] == [6, 6]
    table = markdown(cheapest(found[0]))
    assert "| 64x64 | a " in table
    assert "–" in table, "nobody was timed at 64x64"
    table = markdown(overtaking(found[0], "self-attn"))
    assert "everywhere at 8x8 to 16x16 |" in table
    assert "everywhere at 8x8 to 64x64 |" in table


def test_where_the_baseline_failed_is_said() -> None:
    rows = powers("a", 1e-3, 1.0, SIDES) + powers("self-attn", 1e-6, 2.0, SIDES)
    rows[-1] |= {"status": "oom"}
    (scene,) = scenes(rows)
    assert "Failed at 128x128: `self-attn` (oom)." in overtaking(scene, "self-attn").notes


def test_answers_name_the_fastest_and_since_when_it_is() -> None:
    rows = powers("linear", 1e-3, 1.0, SIDES) + powers("self-attn", 1e-6, 2.0, SIDES)
    (answer,) = answers(rows, [], "self-attn")
    assert answer.said.startswith("Fastest at 128x128 is `linear` (16.38 ms). `linear` takes less time than")
    assert "a processor, 1 thread" in answer.about
    assert answers(rows[:5], [], "self-attn") == [], "one block is no contest"


def test_there_are_no_verdicts_without_two_resolutions() -> None:
    found = verdicts([timed("a", 8, 1.0), timed("self-attn", 8, 2.0)], "self-attn")
    assert found.cheapest == found.matrices == found.overtaking == []


def test_a_matrix_has_every_block_at_every_resolution_and_says_what_failed() -> None:
    rows = powers("linear", 1e-3, 1.0, SIDES) + powers("self-attn", 1e-6, 2.0, SIDES)
    rows[-1] |= {"status": "oom"}
    (table,) = verdicts(rows, "self-attn").matrices
    assert table.title.startswith("Latency (ms) at each resolution")
    assert table.text == [
        ["linear", "0.064", "0.256", "1.024", "4.096", "16.38"],
        ["self-attn", "0.004096", "0.06554", "1.049", "16.78", "oom"],
    ]
    bold = [[column.best(row) for column in table.columns[1:]] for row in table.rows]
    assert bold == [[False, False, True, True, True], [True, True, False, False, False]]


def test_predicted_memory_that_differs_by_less_than_kernels_take_is_not_told_apart() -> None:
    rows = [timed("a", 8, 1.0), timed("b", 8, 1.0) | {"memory_predicted_bytes": 1_008_000}]
    assert [row["spec"] for row in leaders(rows, "memory_predicted_bytes")] == ["a", "b"]


def test_a_crossover_next_to_a_resolution_does_not_claim_it() -> None:
    ours = [timed("a", side, cost) for side, cost in ((16, 1.03), (32, 1.0))]
    theirs = [timed("b", side, cost) for side, cost in ((16, 1.0), (32, 9.0))]
    assert course(ours, theirs, LATENCY).short == "from just above 16x16 on"
