"""Figures show cost over resolution truthfully: log-log, one look per block, names apart."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ctxbench.figures import costs as plots
from ctxbench.figures.costs import pareto
from ctxbench.figures.labels import spread
from ctxbench.figures.style import FAMILY_COLOURS, styles
from ctxbench.record import Record
from ctxbench.store import to_frame
from tests.factories import failed_record, make_record, no_times

FAMILIES = {
    "ham-nmf": "decomposition",
    "ham-cd": "decomposition",
    "self-attn": "attention",
    "none": "control",
}


def record(spec: str, side: int, **fields: Any) -> Record:
    """Costs that grow with the pixels, and with the length of the name."""
    macs, latency = len(spec) * 10**7 * side**2, len(spec) * side**2 / 1000
    grown = {
        "spec": spec,
        "block": spec.partition("[")[0],
        "family": FAMILIES.get(spec.partition("[")[0], "mine"),
        "height": side,
        "width": side,
        "macs_counted": macs,
        "macs_formula": macs,
        "memory_predicted_bytes": 1000 * len(spec) * side**2,
        "latency_ms_median": latency,
        "latency_ms_ci_low": 0.9 * latency,
        "latency_ms_ci_high": 1.2 * latency,
    }
    return make_record(**(grown | fields))


def frame(*records: Record) -> pd.DataFrame:
    return to_frame([each.row for each in records])


def grid(*specs: str, sides: tuple[int, ...] = (8, 16, 32), **fields: Any) -> list[Record]:
    return [record(spec, side, **fields) for spec in specs for side in sides]


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def lines(figure: Figure) -> dict[str, Any]:
    """The drawn line of each spec: the name in a line's colour and at its end belongs to it."""
    axes = axes_of(figure)
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
    found = {}
    for text in axes.texts:
        (line,) = [
            line
            for line in drawn
            if (line.get_xdata()[-1], line.get_ydata()[-1]) == pytest.approx(text.xy)
            and to_hex(line.get_color()) == to_hex(text.get_color())
        ]
        found[text.get_text()] = line
    return found


KINDS = {
    "macs-infer-b1-c16-float32": "macs",
    "memory-infer-b1-c16-float32": "memory_predicted_bytes",
    "latency-infer-b1-c16-float32-012345": "latency_ms_median",
}


def figures(data: pd.DataFrame) -> dict[str, tuple[str, Figure]]:
    """File name -> (caption, figure)."""
    found = plots.figures(data)
    assert len({picture.name for picture in found}) == len(found)
    return {picture.name: (picture.caption, picture.figure) for picture in found}


@pytest.mark.parametrize(("name", "column"), KINDS.items())
def test_a_cost_over_resolution_is_drawn_log_log_with_the_measured_values(name: str, column: str) -> None:
    data = frame(*grid("ham-nmf", "self-attn"))
    figure = figures(data)[name][1]
    axes = axes_of(figure)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8x8", "16x16", "32x32"]
    scale = {"macs": 1e9, "memory_predicted_bytes": 2**20, "latency_ms_median": 1}[column]
    for spec, line in lines(figure).items():
        expected = data[data["spec"] == spec].sort_values("pixels")
        assert list(line.get_xdata()) == list(expected["pixels"])
        assert list(line.get_ydata()) == pytest.approx(list(expected[column] / scale))
    assert set(lines(figure)) == {"ham-nmf", "self-attn"}


def test_axes_name_their_quantity_and_unit() -> None:
    found = figures(frame(*grid("ham-nmf", "self-attn")))
    labels = [axes_of(found[name][1]).get_ylabel() for name in KINDS]
    assert labels == ["MACs (G)", "predicted peak (MiB)", "latency (ms)"]


def test_latency_is_drawn_with_its_interval() -> None:
    figure = figures(frame(*grid("ham-nmf")))["latency-infer-b1-c16-float32-012345"][1]
    (bars,) = [each for each in axes_of(figure).collections if isinstance(each, LineCollection)]
    spans = [tuple(segment[:, 1]) for segment in bars.get_segments()]
    expected = [(each.latency_ms_ci_low, each.latency_ms_ci_high) for each in grid("ham-nmf")]
    assert spans == [pytest.approx(pair) for pair in expected]


def test_a_block_looks_the_same_in_every_figure() -> None:
    specs = ("ham-nmf", "ham-cd", "self-attn", "none")
    some = grid(*specs[1:], mode="train")
    found = figures(frame(*grid(*specs), *some))
    looks: dict[str, set[tuple[str, str, str]]] = {}
    for name, (_, figure) in found.items():
        if not name.startswith("pareto"):
            for spec, line in lines(figure).items():
                look = to_hex(line.get_color()), line.get_marker(), line.get_linestyle()
                looks.setdefault(spec, set()).add(look)
    assert set(looks) == set(specs)
    assert all(len(look) == 1 for look in looks.values()), looks
    assert len(set.union(*looks.values())) == len(specs), "no two blocks look alike"


def test_a_family_has_one_colour_and_its_blocks_differ_in_marker_and_line() -> None:
    look = styles(frame(*grid("ham-nmf", "ham-cd", "self-attn", "none", "mine")))
    assert look["ham-nmf"]["color"] == look["ham-cd"]["color"] == FAMILY_COLOURS["decomposition"]
    assert look["ham-nmf"]["marker"] != look["ham-cd"]["marker"]
    assert look["ham-nmf"]["linestyle"] != look["ham-cd"]["linestyle"]
    assert len({style["color"] for style in look.values()}) == 4


def test_modes_channels_and_dtypes_have_figures_of_their_own() -> None:
    records = [
        *grid("none", sides=(8, 16)),
        *grid("none", sides=(8, 16), mode="train"),
        *grid("none", sides=(8, 16), channels=32),
        *grid("none", sides=(8, 16), dtype="bfloat16"),
        *grid("none", sides=(8, 16), batch=4),
    ]
    found = {name for name in figures(frame(*records)) if name.startswith("macs")}
    assert found == {
        "macs-infer-b1-c16-float32",
        "macs-train-b1-c16-float32",
        "macs-infer-b1-c32-float32",
        "macs-infer-b1-c16-bfloat16",
        "macs-infer-b4-c16-float32",
    }


def test_one_resolution_makes_no_figure_over_resolution() -> None:
    assert [
        name for name in figures(frame(*grid("none", "ham-nmf", sides=(8,)))) if "pareto" not in name
    ] == []


def test_failures_are_not_drawn() -> None:
    failed = [failed_record("oom", "too large", spec="ham-cd", height=side, width=side) for side in (8, 16)]
    found = figures(frame(*grid("none"), *failed))
    for name, (_, figure) in found.items():
        if not name.startswith("pareto"):
            assert set(lines(figure)) == {"none"}


def test_a_run_in_which_everything_failed_has_no_figures() -> None:
    assert figures(frame(failed_record("oom", "too large"))) == {}


def test_a_skipped_cell_adds_its_predicted_cost() -> None:
    skipped = record("ham-nmf", 64, status="skipped", **no_times())
    found = figures(frame(*grid("ham-nmf"), skipped))
    _, memory, latency = (lines(found[name][1])["ham-nmf"] for name in KINDS)
    assert list(memory.get_xdata())[-1] == 64**2
    assert list(latency.get_xdata())[-1] == 32**2


def test_environments_never_share_a_figure_of_what_was_measured() -> None:
    other = grid("ham-nmf", env_hash="ba9876543210", threads=2, device_name="other")
    compiled = grid("ham-nmf", compiled=True)
    found = figures(frame(*grid("ham-nmf"), *other, *compiled))
    latencies = {name: caption for name, (caption, _) in found.items() if name.startswith("latency")}
    assert set(latencies) == {
        "latency-infer-b1-c16-float32-012345",
        "latency-infer-b1-c16-float32-ba9876",
        "latency-infer-b1-c16-float32-compiled-012345",
    }
    assert "other, 2 threads" in latencies["latency-infer-b1-c16-float32-ba9876"]
    assert "memory-infer-b1-c16-float32" in found


def test_what_the_allocator_measured_is_not_mixed_with_predictions() -> None:
    measured = record("ham-nmf", 8, memory_measured_bytes=7 * 2**20, memory_source="allocator")
    figure = figures(frame(measured, record("ham-nmf", 16)))["memory-infer-b1-c16-float32"][1]
    assert lines(figure)["ham-nmf"].get_ydata()[0] == measured.memory_predicted_bytes / 2**20


def test_the_frontier_stands_at_the_largest_measured_resolution() -> None:
    records = [*grid("ham-cd", "ham-nmf", "self-attn"), record("ham-cd", 64, **no_times())]
    caption, figure = figures(frame(*records))["pareto-infer-b1-c16-float32-012345"]
    axes = axes_of(figure)
    assert axes.get_title(loc="left").endswith(", at 32x32")
    assert {text.get_text() for text in axes.texts} == {"ham-cd", "ham-nmf", "self-attn"}
    assert "Latency against predicted peak memory" in caption


def test_the_control_does_no_work_and_enters_no_contest() -> None:
    found = figures(frame(*grid("none", "ham-nmf", "self-attn")))["pareto-infer-b1-c16-float32-012345"][1]
    assert {text.get_text() for text in axes_of(found).texts} == {"ham-nmf", "self-attn"}
    assert "pareto-infer-b1-c16-float32-012345" not in figures(frame(*grid("none", "ham-nmf")))


def test_a_block_without_memory_or_work_of_its_own_spoils_no_figure() -> None:
    """A logarithm has no zero: what costs nothing is left out, and the rest is drawn."""
    free = grid("mine", macs_counted=0, memory_predicted_bytes=0)
    found = figures(frame(*free, *grid("ham-nmf", "self-attn")))
    for name, (_, figure) in found.items():
        figure.canvas.draw()
        shown = {text.get_text() for text in axes_of(figure).texts}
        assert {"ham-nmf", "self-attn"} <= shown
        assert ("mine" in shown) == name.startswith("latency"), name


def test_names_are_drawn_as_they_are() -> None:
    """A name is no formula."""
    hostile = r"ham-nmf[x=$\frac{1}$]"
    for name, (_, figure) in figures(frame(*grid(hostile, "none"))).items():
        figure.canvas.draw()
        texts = [text for text in axes_of(figure).texts if text.get_text() == hostile]
        assert len(texts) == 1, name
        assert texts[0].get_parse_math() is False


# The frontier

points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(points)
def test_the_frontier_is_what_nothing_else_beats(found: list[tuple[int, int]]) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in found)

    assert pareto(found) == sorted({point for point in found if not beaten(point)})


def test_a_known_frontier() -> None:
    assert pareto([(3, 3), (1, 5), (2, 2), (5, 1), (4, 2), (1, 6)]) == [(1, 5), (2, 2), (5, 1)]


# Names beside lines

gaps = st.floats(0.001, 0.2)
places = st.lists(st.floats(0, 1), max_size=15).map(sorted)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(places, gaps)
def test_names_are_apart_and_in_order(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap)
    assert len(found) == len(wanted)
    for one, other in itertools.pairwise(found):
        assert other - one >= gap - 1e-9


@settings(max_examples=300, deadline=None, derandomize=True)
@given(places, gaps)
def test_names_with_room_stay_where_they_are_and_crowded_ones_around_their_middle(
    wanted: list[float], gap: float
) -> None:
    found = spread(wanted, gap)
    if all(other - one >= gap for one, other in itertools.pairwise(wanted)):
        assert found == pytest.approx(wanted)
    assert sum(found) == pytest.approx(sum(wanted), abs=1e-6)


def test_a_known_spread() -> None:
    assert spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert spread([], 0.1) == []


def test_captions_say_what_is_shown_and_for_which_input() -> None:
    captions = [caption for caption, _ in figures(frame(*grid("self-attn", "ham-nmf"))).values()]
    assert len(captions) == len(set(captions)) == 4
    assert all(re.search(r"inference, batch 1, 16 channels, float32", caption) for caption in captions)


def test_a_devices_name_is_no_formula() -> None:
    for name, (_, figure) in figures(frame(*grid("a2", device_name=r"$\\frac{$"))).items():
        figure.canvas.draw()
        assert name


@pytest.mark.parametrize("latency", [0.0, 5e-324, 9e14])
def test_a_latency_that_no_axis_can_show_spoils_no_figure(latency: float) -> None:
    times = dict.fromkeys(("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high"), latency)
    for _, figure in figures(frame(*grid("a2", "ham-nmf", **times), *grid("ham-cd"))).values():
        figure.canvas.draw()


def test_of_shapes_with_as_many_pixels_the_squarest_is_drawn_for_all_and_the_others_are_named() -> None:
    records = [record(spec, side) for spec in ("a2", "ham-nmf") for side in (8, 16)]
    records += [record("a2", 8, height=4, width=16), record("a2", 8, height=2, width=32)]
    for name, (caption, figure) in figures(frame(*records)).items():
        labels = [text.get_text() for text in axes_of(figure).get_xticklabels()]
        if not name.startswith("pareto"):
            assert labels == ["8x8", "16x16"]
            assert caption.endswith("; as many pixels, and not shown: 4x16, 2x32")


def test_of_two_versions_of_the_code_the_newer_is_drawn() -> None:
    older = grid("a2", "ham-nmf", latency_ms_median=1.0, latency_ms_ci_low=1.0, latency_ms_ci_high=1.0)
    newer = grid("a2", created_utc="2026-01-02T03:04:05+00:00")
    lines = axes_of(figures(frame(*older, *newer))["latency-infer-b1-c16-float32-012345"][1]).lines
    assert sorted(tuple(line.get_ydata()) != (1.0, 1.0, 1.0) for line in lines) == [False, True]
