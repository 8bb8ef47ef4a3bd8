"""An option's worth is drawn where specs of a block differ in nothing else."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from ctxbench.figures.ablations import lines_of, places_of
from ctxbench.figures.gallery import pictures
from ctxbench.figures.style import Picture
from ctxbench.record import Row
from tests.factories import no_times
from tests.test_plots import assert_legible, axes_of, names, record
from tests.test_scores import trained


def profile(block: str, side: int = 8, *, latency: float | None = 1.0, **options: Any) -> Row:
    """A profile of a block with all its options."""
    spec = f"{block}[{','.join(f'{name}={it}' for name, it in options.items())}]"
    times = dict.fromkeys(("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high"), latency)
    fields = {"options_json": json.dumps(options), "block": block} | (times if latency else no_times())
    return record(spec, side, **fields).row


def ablations(rows: list[Row]) -> dict[str, Picture]:
    return {it.name: it for it in pictures(rows) if it.name.startswith("ablation")}


def test_lines_join_specs_that_differ_in_one_option() -> None:
    rows = [profile("a", rank=rank, steps=steps) for rank in (8, 16) for steps in (1, 2)]
    rows += [profile("b", rank=8, steps=1), profile("b", rank=16, steps=2), profile("c", rank=8)]
    found = lines_of(rows)
    assert {
        option: [(it.block, it.others, list(it.specs)) for it in lines] for option, lines in found.items()
    } == {
        "rank": [("a", (("steps", "1"),), ["16", "8"]), ("a", (("steps", "2"),), ["16", "8"])],
        "steps": [("a", (("rank", "16"),), ["1", "2"]), ("a", (("rank", "8"),), ["1", "2"])],
    }


def test_a_cost_is_drawn_over_numbers_with_its_interval_at_the_largest_common_resolution() -> None:
    rows = [profile("a", side, latency=rank * side, rank=rank) for rank in (1, 4, 64) for side in (8, 16)]
    rows += [profile("a", 32, latency=1.0, rank=1)]
    picture = ablations(rows)["ablation-rank-0"]
    axes = axes_of(picture.figure)
    (line,) = axes.lines
    assert list(line.get_xdata()) == [1, 4, 64]
    assert list(line.get_ydata()) == [16, 64, 1024]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4", "64"]
    assert "Latency over rank" in picture.caption
    assert "at 16x16" in picture.caption
    assert axes.collections, "the intervals"


def test_where_no_latency_was_measured_the_macs_are_drawn() -> None:
    picture = ablations([profile("a", latency=None, rank=rank) for rank in (8, 16)])["ablation-rank-0"]
    assert axes_of(picture.figure).get_ylabel() == "MACs (G)"
    assert axes_of(picture.figure).get_ylim()[0] == 0, "bars of a cost begin at nothing"


def test_lines_of_one_block_are_told_apart_by_their_other_options() -> None:
    rows = [profile("a", rank=rank, steps=steps, same=1) for rank in (8, 16) for steps in (1, 2)]
    figure = ablations([*rows, profile("b", rank=8), profile("b", rank=16)])["ablation-rank-0"].figure
    assert {text.get_text() for text in names(figure)} == {"a, steps=1", "a, steps=2", "b"}
    assert_legible(figure)


def test_a_score_is_drawn_with_every_seed() -> None:
    scores = {"one-step": (0.2, 0.3), "bptt": (0.6, 0.7)}
    rows = [
        trained(f"a[gradient={value}]", seed, score, block="a", options_json=json.dumps({"gradient": value}))
        for value, found in scores.items()
        for seed, score in enumerate(found)
    ]
    axes = axes_of(ablations(rows)["ablation-gradient-0"].figure)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["bptt", "one-step"]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([65, 25])
    (name,) = axes.texts
    at_the_end = axes.transAxes.inverted().transform(axes.transData.transform((1, 25)))
    assert name.get_position()[1] == pytest.approx(at_the_end[1])
    dots = [tuple(point) for it in axes.collections for point in it.get_offsets()]
    assert dots == [pytest.approx(it) for it in [(0, 60), (0, 70), (1, 20), (1, 30)]]


def test_numbers_stand_by_size_and_other_values_side_by_side() -> None:
    assert places_of({"8", "0.5"}) == {"8": 8.0, "0.5": 0.5}
    assert places_of({"null", "8", "16", "true", '"a"'}) == {"8": 0, "16": 1, '"a"': 2, "null": 3, "true": 4}
    assert places_of({"1e400", "1"}) == {"1": 0, "1e400": 1}


@pytest.mark.parametrize("option", ["../../etc/passwd", "<script>", "$x$", "漢" * 100, "", "a\x00b"])
def test_hostile_options_are_drawn_and_named_safely(option: str) -> None:
    values = [1, 2.5, None, True, "$\\frac{$", ["<b>"], 10**39, "v" * 1000, -1, 0]
    rows = []
    for number, value in enumerate(values):
        fields = {"options_json": json.dumps({option: value}), "block": "a"}
        rows.append(record(f"a[{number}]", 8, **fields).row)
    (picture,) = ablations(rows).values()
    assert set(picture.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert_legible(picture.figure)


def test_options_that_cannot_be_read_make_no_line() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    rows = [profile("a", rank=rank) | {"options_json": deep} for rank in (8, 16)]
    assert lines_of(rows) == {}
    assert Counter(ablations(rows)) == {}
