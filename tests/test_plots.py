"""Figures show cost over resolution truthfully: log-log, one look per block, names apart."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from ctxbench.figures.frontier import pareto
from ctxbench.figures.gallery import pictures
from ctxbench.figures.labels import spread, within
from ctxbench.figures.style import NAME, SMALL, Picture, drawing, ink
from ctxbench.record import Record
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
        "cell_id": cell_id(spec, side, fields),
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


def cell_id(spec: str, side: int, fields: dict[str, Any]) -> str:
    shape = {
        name: it
        for name, it in fields.items()
        if name in ("mode", "channels", "batch", "dtype", "width", "compiled")
    }
    return hashlib.sha256(f"{spec}{side}{shape}".encode()).hexdigest()[:16]


def failure(status: str, spec: str, side: int, **fields: Any) -> Record:
    identity = {
        "spec": spec,
        "block": spec,
        "family": FAMILIES.get(spec, "mine"),
        "height": side,
        "width": side,
    }
    return failed_record(
        status, "too large", **(identity | {"cell_id": cell_id(spec, side, fields)} | fields)
    )


def grid(*specs: str, sides: tuple[int, ...] = (8, 16, 32), **fields: Any) -> list[Record]:
    return [record(spec, side, **fields) for spec in specs for side in sides]


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def names(figure: Figure) -> list[Text]:
    """The names of blocks beside lines and points."""
    return [text for text in axes_of(figure).texts if text.get_fontsize() == NAME]


def lines(figure: Figure) -> dict[str, Any]:
    """The drawn line of each spec: the name in a line's colour and at its end belongs to it."""
    drawn = [line for line in axes_of(figure).get_lines() if line.get_linestyle() not in (":", "None")]
    found = {}
    for text in names(figure):
        (line,) = [
            line
            for line in drawn
            if (line.get_xdata()[-1], line.get_ydata()[-1]) == pytest.approx(text.xy)
            and ink(to_hex(line.get_color())) == to_hex(text.get_color())
        ]
        found[text.get_text()] = line
    return found


def lines_of(figure: Figure, style: str) -> list[Any]:
    return [line for line in axes_of(figure).get_lines() if line.get_linestyle() == style]


def crosses(figure: Figure) -> list[tuple[float, float]]:
    """Where failures are marked."""
    marked = [line for line in axes_of(figure).get_lines() if line.get_marker() == "x"]
    return sorted(point for line in marked for point in zip(line.get_xdata(), line.get_ydata(), strict=True))


def written(figure: Figure) -> Iterator[Text]:
    """All text that is seen."""
    for axes in figure.axes:
        yield from (*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label)
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)


def assert_legible(figure: Figure) -> None:
    """No text is small, leaves the figure or lies on another one."""
    with drawing():
        figure.draw_without_rendering()
    boxes = []
    for text in written(figure):
        box = Text.get_window_extent(text)
        if text.get_text() and box.width:
            assert text.get_fontsize() >= SMALL, text
            assert figure.bbox.x0 <= box.x0 + 1 and box.x1 - 1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 + 1 and box.y1 - 1 <= figure.bbox.y1, text
            if not text.get_rotation():
                boxes.append((text, box.padded(-1)))
    for (one, box), (other, next_to) in itertools.combinations(boxes, 2):
        assert not box.overlaps(next_to), (one, other)


KINDS = {
    "macs-infer-b1-c16-float32": "macs",
    "memory-infer-b1-c16-float32": "memory_predicted_bytes",
    "latency-infer-b1-c16-float32-012345": "latency_ms_median",
}


def gallery(*records: Record) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures([each.row for each in records])}


def figures(*records: Record) -> dict[str, Picture]:
    """Those over the resolution and of latency against memory."""
    found = gallery(*records).items()
    return {name: it for name, it in found if not name.startswith(("roofline", "ablation"))}


@pytest.mark.parametrize(("name", "column"), KINDS.items())
def test_a_cost_over_resolution_is_drawn_log_log_with_the_measured_values(name: str, column: str) -> None:
    data = [each.row for each in grid("ham-nmf", "self-attn")]
    figure = gallery(*grid("ham-nmf", "self-attn"))[name].figure
    axes = axes_of(figure)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8x8", "16x16", "32x32"]
    scale = {"macs": 1e9, "memory_predicted_bytes": 2**20, "latency_ms_median": 1}[column]
    for spec, line in lines(figure).items():
        expected = [row for row in data if row["spec"] == spec]
        assert list(line.get_xdata()) == [row["pixels"] for row in expected]
        assert list(line.get_ydata()) == pytest.approx([row[column] / scale for row in expected])
    assert set(lines(figure)) == {"ham-nmf", "self-attn"}


def test_axes_name_their_quantity_and_unit() -> None:
    found = figures(*grid("ham-nmf", "self-attn"))
    labels = [axes_of(found[name].figure).get_ylabel() for name in KINDS]
    assert labels == ["MACs (G)", "predicted peak (MiB)", "latency (ms)"]


def test_latency_is_drawn_with_its_interval() -> None:
    figure = figures(*grid("ham-nmf"))["latency-infer-b1-c16-float32-012345"].figure
    (bars,) = [each for each in axes_of(figure).collections if isinstance(each, LineCollection)]
    spans = [tuple(segment[:, 1]) for segment in bars.get_segments()]
    expected = [(each.latency_ms_ci_low, each.latency_ms_ci_high) for each in grid("ham-nmf")]
    assert spans == [pytest.approx(pair) for pair in expected]


def test_modes_channels_and_dtypes_have_figures_of_their_own() -> None:
    records = [
        *grid("none", sides=(8, 16)),
        *grid("none", sides=(8, 16), mode="train", macs_backward=10**6),
        *grid("none", sides=(8, 16), channels=32),
        *grid("none", sides=(8, 16), dtype="bfloat16"),
        *grid("none", sides=(8, 16), batch=4),
    ]
    found = {name for name in figures(*records) if name.startswith("macs")}
    assert found == {
        "macs-infer-b1-c16-float32",
        "macs-train-b1-c16-float32",
        "macs-infer-b1-c32-float32",
        "macs-infer-b1-c16-bfloat16",
        "macs-infer-b4-c16-float32",
    }


def test_one_resolution_makes_no_figure_over_resolution() -> None:
    assert [name for name in figures(*grid("none", "ham-nmf", sides=(8,))) if "pareto" not in name] == []


def test_a_failure_is_marked_at_its_predicted_cost_and_above_all_others_where_that_is_not_known() -> None:
    known = {"macs_counted": 10**13, "macs_formula": 10**13, "params": 1, "memory_predicted_bytes": 2**33}
    records = [*grid("ham-nmf"), record("ham-cd", 8), failure("oom", "ham-cd", 16, **known)]
    records += [record("mine", 8), failure("timeout", "mine", 16)]
    macs, memory, latency = (gallery(*records)[name].figure for name in KINDS)
    assert (256, 10**13 / 1e9) in crosses(macs)
    assert (256, 2**33 / 2**20) in crosses(memory)
    for figure in (macs, memory, latency):
        assert len(crosses(figure)) == 2
        assert [pixels for pixels, _ in crosses(figure)] == [256, 256]
        assert {text.get_text() for text in names(figure)} == {"ham-nmf", "ham-cd", "mine"}
        highest = max(max(line.get_ydata()) for line in lines_of(figure, "-"))
        assert max(height for _, height in crosses(figure)) > highest
        low, high = axes_of(figure).get_ylim()
        assert all(low < height < high for _, height in crosses(figure))
        words = [text.get_text() for text in axes_of(figure).texts if text not in names(figure)]
        assert words == ["1 oom, 1 timeout"]
        assert_legible(figure)
    assert "; x: failed (oom, timeout)" in gallery(*records)["macs-infer-b1-c16-float32"].caption


def test_a_cell_that_one_run_measured_is_not_marked_as_failed_in_another() -> None:
    later = failure("crashed", "ham-cd", 32, run_id="later", created_utc="2026-01-01T00:00:00+00:00")
    for picture in figures(*grid("ham-cd", "ham-nmf"), later).values():
        assert crosses(picture.figure) == []


def test_a_block_that_broke_a_rule_has_no_memory() -> None:
    cost = {"memory_predicted_bytes": 1, "macs_counted": 10**9, "macs_formula": 1, "params": 1}
    found = figures(*grid("ham-nmf"), failure("invalid", "bad", 16, **cost))
    ((_, height),) = crosses(found["memory-infer-b1-c16-float32"].figure)
    assert height > 1
    assert crosses(found["macs-infer-b1-c16-float32"].figure) == [(256, 1.0)]


def test_many_blocks_and_failures_are_legible() -> None:
    """35 blocks at six resolutions, a third of which stop fitting at the last two."""
    specs = [
        f"{family}-{number}[rank={number}]" for family in ("attention", "pooling") for number in range(17)
    ]
    records = []
    for number, spec in enumerate(["x" * 200, *specs]):
        sides = (8, 16, 32, 64) if number % 3 == 0 else (8, 16, 32, 64, 128, 256)
        records += grid(spec, sides=sides, family=spec.partition("-")[0])
        records += [failure("oom", spec, side) for side in (128, 256) if side not in sides]
    found = gallery(*records)
    for name in KINDS:
        figure = found[name].figure
        assert_legible(figure)
        assert len(names(figure)) == 35
        assert len(crosses(figure)) == 24
        assert figure.get_figheight() > 6
    assert_legible(found["pareto-infer-b1-c16-float32-012345"].figure)


def test_a_run_in_which_everything_failed_has_no_figures() -> None:
    assert figures(failed_record("oom", "too large")) == {}


def test_a_skipped_cell_adds_its_predicted_cost() -> None:
    skipped = record("ham-nmf", 64, status="skipped", **no_times())
    found = figures(*grid("ham-nmf"), skipped)
    _, memory, latency = (lines(found[name].figure)["ham-nmf"] for name in KINDS)
    assert list(memory.get_xdata())[-1] == 64**2
    assert list(latency.get_xdata())[-1] == 32**2


def test_environments_never_share_a_figure_of_what_was_measured() -> None:
    other = grid("ham-nmf", env_hash="ba9876543210", threads=2, device_name="other")
    compiled = grid("ham-nmf", compiled=True)
    found = figures(*grid("ham-nmf"), *other, *compiled)
    latencies = {name: it.caption for name, it in found.items() if name.startswith("latency")}
    assert set(latencies) == {
        "latency-infer-b1-c16-float32-012345",
        "latency-infer-b1-c16-float32-ba9876",
        "latency-infer-b1-c16-float32-compiled-012345",
    }
    assert "other, 2 threads" in latencies["latency-infer-b1-c16-float32-ba9876"]
    assert "memory-infer-b1-c16-float32" in found


def test_what_the_allocator_measured_is_not_mixed_with_predictions() -> None:
    measured = record("ham-nmf", 8, memory_measured_bytes=7 * 2**20, memory_source="allocator")
    figure = figures(measured, record("ham-nmf", 16))["memory-infer-b1-c16-float32"].figure
    assert lines(figure)["ham-nmf"].get_ydata()[0] == measured.memory_predicted_bytes / 2**20


def test_the_frontier_stands_at_the_largest_measured_resolution() -> None:
    records = [*grid("ham-cd", "ham-nmf", "self-attn"), record("ham-cd", 64, **no_times())]
    picture = figures(*records)["pareto-infer-b1-c16-float32-012345"]
    axes = axes_of(picture.figure)
    assert axes.get_title(loc="left").endswith(", at 32x32")
    assert {text.get_text() for text in axes.texts} == {"ham-cd", "ham-nmf", "self-attn"}
    assert "Latency against predicted peak memory" in picture.caption


def test_the_control_does_no_work_and_enters_no_contest() -> None:
    found = figures(*grid("none", "ham-nmf", "self-attn"))["pareto-infer-b1-c16-float32-012345"].figure
    assert {text.get_text() for text in axes_of(found).texts} == {"ham-nmf", "self-attn"}
    assert "pareto-infer-b1-c16-float32-012345" not in figures(*grid("none", "ham-nmf"))


def test_a_block_without_memory_or_work_of_its_own_spoils_no_figure() -> None:
    """A logarithm has no zero: what costs nothing is left out, and the rest is drawn."""
    free = grid("mine", macs_counted=0, memory_predicted_bytes=0)
    found = figures(*free, *grid("ham-nmf", "self-attn"))
    for name, picture in found.items():
        shown = {text.get_text() for text in names(picture.figure)}
        assert {"ham-nmf", "self-attn"} <= shown
        assert ("mine" in shown) == name.startswith("latency"), name


def test_names_are_drawn_as_they_are() -> None:
    """A name is no formula."""
    hostile = r"ham-nmf[x=$\frac{1}$]"
    for name, picture in figures(*grid(hostile, "none")).items():
        texts = [text for text in names(picture.figure) if text.get_text() == hostile]
        assert len(texts) == 1, name
        assert texts[0].get_parse_math() is False


def test_figures_are_the_same_bytes_for_the_same_records_in_any_order_and_process() -> None:
    code = "from tests.test_plots import digest; print(digest(backwards=True))"
    environ = {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environ
    )
    assert done.stdout.strip() == digest()


def digest(backwards: bool = False) -> str:
    """Of figures of some records as SVG, PNG and PDF."""
    records = grid("ham-nmf[rank=8]", "ham-nmf", "self-attn", sides=(8, 16))
    found = gallery(*(records[::-1] if backwards else records))
    chosen = [found[f"{kind}-infer-b1-c16-float32-012345"] for kind in ("latency", "roofline")]
    parts = [part for it in chosen for part in (it.svg.encode(), it.png(), it.pdf())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


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
def test_names_that_fit_stand_between_the_ends(wanted: list[float], gap: float) -> None:
    found = within(spread(wanted, gap), gap)
    for one, other in itertools.pairwise(found):
        assert other - one >= gap - 1e-9
    if gap * (len(wanted) - 1) <= 1:
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in found)


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
    captions = [it.caption for it in figures(*grid("self-attn", "ham-nmf")).values()]
    assert len(captions) == len(set(captions)) == 4
    assert all(re.search(r"inference, batch 1, 16 channels, float32", caption) for caption in captions)


def test_a_devices_name_is_no_formula() -> None:
    for picture in figures(*grid("a2", device_name=r"$\\frac{$")).values():
        assert_legible(picture.figure)


@pytest.mark.parametrize("latency", [0.0, 5e-324, 9e14])
def test_a_latency_that_no_axis_can_show_spoils_no_figure(latency: float) -> None:
    times = dict.fromkeys(("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high"), latency)
    for picture in figures(*grid("a2", "ham-nmf", **times), *grid("ham-cd")).values():
        assert_legible(picture.figure)


def test_of_shapes_with_as_many_pixels_the_squarest_is_drawn_for_all_and_the_others_are_named() -> None:
    records = [record(spec, side) for spec in ("a2", "ham-nmf") for side in (8, 16)]
    records += [record("a2", 8, height=4, width=16), record("a2", 8, height=2, width=32)]
    for name, picture in figures(*records).items():
        labels = [text.get_text() for text in axes_of(picture.figure).get_xticklabels()]
        if not name.startswith("pareto"):
            assert labels == ["8x8", "16x16"]
            assert picture.caption.endswith("; as many pixels, and not shown: 4x16, 2x32")


def test_of_two_versions_of_the_code_the_newer_is_drawn() -> None:
    older = grid("a2", "ham-nmf", latency_ms_median=1.0, latency_ms_ci_low=1.0, latency_ms_ci_high=1.0)
    newer = grid("a2", created_utc="2026-01-02T03:04:05+00:00")
    lines = axes_of(figures(*older, *newer)["latency-infer-b1-c16-float32-012345"].figure).lines
    assert sorted(tuple(line.get_ydata()) != (1.0, 1.0, 1.0) for line in lines) == [False, True]
