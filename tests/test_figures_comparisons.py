"""Rooflines, quality against cost, updates, and published numbers: axes, frontiers and marks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from ctxbench.figures.claims import differences
from ctxbench.figures.frontier import pareto
from ctxbench.figures.gallery import pictures
from ctxbench.figures.style import Picture
from ctxbench.record import Row
from tests.test_plots import assert_legible, axes_of, gallery, grid, lines_of, names, record
from tests.test_scores import failed, gan, gans, trained

ROOFLINE = "roofline-infer-b1-c16-float32-012345"


# Rooflines


def test_a_roofline_has_the_achieved_speed_over_the_work_for_a_byte() -> None:
    data = [record("ham-nmf", side, reference_gflops=5000.0 + side, params=1000) for side in (8, 16)]
    picture = gallery(*data)[ROOFLINE]
    axes = axes_of(picture.figure)
    (line,) = lines_of(picture.figure, "-")[:1]
    flops = [2 * each.macs_counted for each in data]
    moved = [4 * (2 * 16 * each.height * each.width + 1000) for each in data]
    assert list(line.get_xdata()) == pytest.approx(list(np.array(flops) / moved))
    assert list(line.get_ydata()) == pytest.approx(
        [flop / each.latency_ms_median / 1e6 for flop, each in zip(flops, data, strict=True)]
    )
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert "bandwidth was not measured" in picture.caption
    (ceiling,) = [line for line in axes.lines if to_hex(line.get_color()) == "#333333"]
    assert list(ceiling.get_ydata()) == [5012, 5012]
    assert "matrix product: 5,012 GFLOP/s" in [text.get_text() for text in axes.texts]


def test_the_ceiling_of_several_threads_is_that_of_each_times_their_number() -> None:
    """On a CPU the matrix product is measured in CPU time."""
    figure = gallery(*grid("ham-nmf", reference_gflops=100.0, threads=4))[ROOFLINE].figure
    assert "matrix product: 400 GFLOP/s" in [text.get_text() for text in axes_of(figure).texts]


def test_a_training_counts_both_passes_and_without_the_second_is_left_out() -> None:
    both = [record("ham-nmf", 8, mode="train", macs_backward=10**9), record("ham-cd", 8, mode="train")]
    figure = gallery(*both)[ROOFLINE.replace("infer", "train")].figure
    assert [text.get_text() for text in names(figure)] == ["ham-nmf"]
    (line,) = lines_of(figure, "-")
    work = 2 * (both[0].macs_counted + 10**9)
    assert list(line.get_ydata()) == pytest.approx([work / both[0].latency_ms_median / 1e6])


def test_blocks_without_counted_work_have_no_roofline() -> None:
    free = grid("mine", macs_counted=0, macs_formula=0)
    assert ROOFLINE not in gallery(*grid("none"), *free)


# Quality against cost


def tradeoff(rows: list[Row]) -> Picture | None:
    return next((it for it in pictures(rows) if it.name == "tradeoff-0"), None)


def seeds(spec: str, seconds: float, *scores: float) -> list[Row]:
    return [trained(spec, seed, score, train_cpu_s=seconds) for seed, score in enumerate(scores)]


def frontier(picture: Picture) -> list[tuple[float, float]]:
    (line,) = [it for it in axes_of(picture.figure).lines if to_hex(it.get_color()) == "#999999"]
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_a_tradeoff_has_mean_scores_with_their_range_over_mean_times() -> None:
    rows = [*seeds("a", 10.0, 0.5, 0.7), *seeds("b", 20.0, 0.4), *seeds("c", 40.0, 0.8), failed("d", 0)]
    picture = tradeoff(rows)
    assert picture is not None
    axes = axes_of(picture.figure)
    points = {text.get_text(): text.xy for text in names(picture.figure)}
    assert points == {
        name: pytest.approx(at) for name, at in {"a": (10, 60), "b": (20, 40), "c": (40, 80)}.items()
    }
    bars = [tuple(bar[:, 1]) for it in axes.collections for bar in it.get_segments()]
    assert pytest.approx((50, 70)) in bars
    assert axes.get_xscale() == "linear"
    corners = frontier(picture)
    assert {(10, 60), (40, 80)} <= {(x, round(y, 6)) for x, y in corners}
    assert (20, 40) not in corners
    assert_legible(picture.figure)


def test_times_far_apart_stand_on_a_logarithmic_axis() -> None:
    picture = tradeoff([*seeds("a", 1.0, 0.5), *seeds("b", 20.0, 0.4)])
    assert picture is not None
    assert axes_of(picture.figure).get_xscale() == "log"


def test_of_distances_the_lower_is_better_and_a_collapsed_generator_is_hollow_and_not_on_the_frontier() -> (
    None
):
    rows = gans(a=(2.0,), b=(3.0,))
    rows += [gan("c", 0, 0.5, collapsed="collapsed: recall 0.01")]
    times = {"a": 5.0, "b": 3.0, "c": 4.0}
    picture = tradeoff([row | {"train_cpu_s": times[row["spec"]]} for row in rows])
    assert picture is not None
    assert {(3.0, 3.0), (5.0, 2.0)} <= set(frontier(picture))
    hollow = [
        line.get_xdata()[0] for line in axes_of(picture.figure).lines if line.get_markerfacecolor() == "white"
    ]
    assert hollow == [4.0]
    assert "hollow: collapsed" in picture.caption


@pytest.mark.parametrize("seconds", [0.0, None])
def test_without_times_there_is_no_tradeoff(seconds: float | None) -> None:
    rows = [trained(spec, 0, 0.5, train_cpu_s=seconds) for spec in "ab"]
    assert tradeoff(rows) is None


def test_a_frontier_of_what_should_be_high() -> None:
    assert pareto([(3, 3), (1, 1), (2, 2), (2, 0), (4, 3)], higher=True) == [(1, 1), (2, 2), (3, 3)]


# Updates


def test_updates_are_dots_with_intervals_the_fastest_on_top() -> None:
    steps = {"kind": "step", "task": "digits", "preset": "16x16", "mode": "train"}
    rows = [
        record(
            spec, 8, latency_ms_median=ms, latency_ms_ci_low=ms - 1, latency_ms_ci_high=ms + 1, **steps
        ).row
        for spec, ms in (("ham-nmf", 5.0), ("none", 3.0))
    ]
    (picture,) = pictures(rows)
    assert picture.name == "updates-0"
    axes = axes_of(picture.figure)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["none", "ham-nmf"]
    assert [tuple(line.get_xdata()) for line in axes.lines] == [(3.0,), (5.0,)]
    assert [tuple(bar[:, 0]) for it in axes.collections for bar in it.get_segments()] == [(2, 4), (4, 6)]
    assert axes.get_xlim()[0] == 0
    assert_legible(picture.figure)


# Published numbers


def claim(published: float, found: float | None, **fields: Any) -> Any:
    agrees = found is not None and math.isclose(found, published, rel_tol=0.01)
    default = {"method": "SA", "spec": "self-attn", "label": "MACs (10^9)", "agrees": agrees}
    return SimpleNamespace(published=published, found=found, **(default | fields))


def test_differences_are_drawn_by_quantity_and_those_that_disagree_are_hollow() -> None:
    claims = [claim(100, 100.5), claim(100, 103, method="DA"), claim(10, 10, label="a <b>$\\frac{$")]
    picture = differences([*claims, claim(1, None)])
    assert picture is not None
    assert "2 of 3 agree" in picture.caption
    axes = axes_of(picture.figure)
    shown = ["MACs (10^9)", "DA, self-attn", "SA, self-attn", "a <b>$\\frac{$", "SA, self-attn"]
    assert [text.get_text() for text in axes.get_yticklabels()] == shown
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert {round(line.get_xdata()[0], 6): line.get_markerfacecolor() == "white" for line in dots} == {
        3: True,
        0.5: False,
        0: False,
    }
    assert_legible(picture.figure)


def test_what_differs_by_more_than_everything_is_an_arrow_with_its_number() -> None:
    picture = differences([claim(1, 3.5), claim(0, 1), claim(-1, -1e9), claim(1, 1)])
    assert picture is not None
    axes = axes_of(picture.figure)
    arrows = sorted(
        (line.get_marker(), line.get_xdata()[0]) for line in axes.lines if line.get_marker() in "<>"
    )
    assert arrows == [("<", -100), (">", 100), (">", 100)]
    assert {text.get_text() for text in axes.texts} == {"+250 %", "published: 0", "-1e+11 %"}
    assert_legible(picture.figure)


def test_nothing_compared_is_no_figure() -> None:
    assert differences([]) is None
    assert differences([claim(1, None)]) is None
