"""The gallery holds every figure that the records allow, undrawn, the most telling first."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from ctxbench.figures.gallery import pictures
from ctxbench.figures.style import Picture
from ctxbench.panels import path_of, sheet
from ctxbench.record import Row
from tasks.legend import CLASSES
from tests.test_figures_ablations import profile
from tests.test_figures_comparisons import claim
from tests.test_plots import assert_legible, failure, grid, record
from tests.test_scores import failed, trained

HOSTILE = (
    r"$\frac{$",
    "<script>alert(1)</script>",
    "x" * 10_000,
    "\u202eabc\u05d0\u05d1\u0627\u0644",
    "a\x00b\nc",
    "漢字" * 100,
    "",
    "a[b[c",
)


def everything() -> list[Row]:
    """Records of every kind, in several groups."""
    records = [*grid("ham-nmf", "self-attn"), *grid("ham-nmf", "self-attn", mode="train", macs_backward=1)]
    records += grid("ham-nmf", "ham-cd", "self-attn", channels=32)
    records += [record("ham-nmf", 8, kind="step", task="digits", preset="16x16", mode="train")]
    rows = [each.row for each in records]
    rows += [profile("a", rank=rank) for rank in (8, 16)]
    for dataset, specs in (("legend-4", "ab"), ("legend-14", "abc"), ("other", "ab")):
        for spec, seed in itertools.product(specs, (0, 1)):
            options = f'{{"rank": {ord(spec)}}}'
            rows.append(trained(spec, seed, 0.5, dataset=dataset, block="z", options_json=options))
    return rows


def kinds(found: list[Picture]) -> list[str]:
    return [kind for kind, _ in itertools.groupby(it.name.split("-")[0] for it in found)]


def test_the_most_telling_figures_come_first_and_the_largest_groups_before_others() -> None:
    found = pictures(everything(), {}, [claim(1, 2)])
    order = ["scores", "tradeoff", "cues", "ablation", "updates"]
    order += ["latency", "memory", "macs", "pareto", "roofline", "published"]
    first = [it.name.partition("-")[0] for it in found[: found.index(found[-1]) + 1]]
    assert list(dict.fromkeys(first)) == order, "the first of each kind before the others"
    names = [it.name for it in found]
    assert names[0] == "scores-1", "three blocks; its number is that of its table"
    latencies = [name for name in names if name.startswith("latency")]
    assert [name.split("-")[1:4] for name in latencies] == [
        ["infer", "b1", "c32"],
        ["infer", "b1", "c16"],
        ["train", "b1", "c16"],
    ]


def test_a_list_is_made_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Figure, "__init__", draw)
    assert len(pictures(everything())) > 10


def test_names_are_unique_and_fit_for_files() -> None:
    rows = everything()
    alike = [row | {"env_hash": "012345ffffff"} for row in rows if row["kind"] == "profile"]
    names = [it.name for it in pictures(rows + alike)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z0-9-]+)?", name) for name in names)
    assert "latency-infer-b1-c16-float32-012345-again-2" in names


def test_no_records_make_no_figures() -> None:
    assert pictures([]) == []


def test_where_everything_failed_there_is_nothing_to_draw() -> None:
    rows = [failure(status, "a2", side).row for status in ("oom", "timeout") for side in (8, 16)]
    rows += [failed(spec, seed) for spec in "ab" for seed in (0, 1)]
    assert pictures(rows) == []


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_and_empty_columns_are_drawn_without_a_warning(value: float) -> None:
    times = dict.fromkeys(("latency_ms_median", "latency_ms_ci_low", "latency_ms_ci_high"), value)
    cost = {"macs_counted": int(value), "macs_formula": int(value), "memory_predicted_bytes": int(value)}
    rows = [each.row for each in grid("a2", "ham-nmf", **times, **cost, reference_gflops=value)]
    rows += [trained(spec, seed, value, train_cpu_s=value) for spec in "ab" for seed in (0, 1)]
    found = pictures(rows)
    assert "scores-0" in {it.name for it in found}
    for picture in found:
        assert_legible(picture.figure)


def test_hostile_names_spoil_no_figure() -> None:
    rows = []
    for number, name in enumerate(HOSTILE):
        own = {"spec": name, "block": name, "family": name, "task": HOSTILE[2]}
        kinds = [record(f"p{number}", 8), record(f"p{number}", 16), failure("oom", f"p{number}", 32)]
        kinds += [record(f"s{number}", 8, kind="step")]
        rows += [each.row | own | {"device_name": HOSTILE[0]} for each in kinds]
        rows += [trained("a", seed, 0.5) | own | {"task": "t"} for seed in (0, 1)]
    claims = [claim(1, 3, method=name, label=name) for name in HOSTILE]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pictures(rows, {}, claims)
        for picture in found:
            assert_legible(picture.figure)
        assert all("<script>" not in it.svg for it in found[:3])
        assert found[-1].png() and found[-1].pdf()
    assert {"scores-0", "tradeoff-0", "updates-0", "published"} <= {it.name for it in found}


# Predictions


def sheets(folder: Path, rows: list[Row]) -> dict[str, Path]:
    (folder / "panels").mkdir()
    label = np.zeros((30, 30), np.uint8)
    picture = sheet([(np.zeros((30, 30, 3), np.uint8), label, label)], np.zeros((6, 3), np.uint8))
    for row in rows:
        path_of(folder, row["cell_id"]).write_bytes(picture)
    return {rows[0]["run_id"]: folder}


def predictions(rows: list[Row], folders: dict[str, Path]) -> Picture | None:
    return next((it for it in pictures(rows, folders) if it.name == "predictions-0"), None)


def many(**fields: Any) -> list[Row]:
    specs = ["none", "ham-vq[inv_t=1.0,rank=8]", *(f"block-{number}[rank=8]" for number in range(8))]
    return [trained(spec, 0, 0.5, cell_id=f"{place:016x}", **fields) for place, spec in enumerate(specs)]


def test_predictions_need_a_whole_page_and_name_the_classes_that_are_known(tmp_path: Path) -> None:
    rows = many()
    picture = predictions(rows, sheets(tmp_path, rows))
    assert picture is not None
    assert picture.wide
    (key,) = picture.figure.legends
    assert tuple(text.get_text() for text in key.get_texts()) == CLASSES
    assert len(picture.figure.axes) == 12
    assert_legible(picture.figure)
    others = [row | {"dataset": "voc2012"} for row in rows]
    unknown = predictions(others, {rows[0]["run_id"]: tmp_path})
    assert unknown is not None
    assert unknown.figure.legends == []


def test_a_sheet_that_begins_well_and_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    rows = many()
    folders = sheets(tmp_path, rows)
    paths = [path_of(tmp_path, row["cell_id"]) for row in rows]
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    picture = predictions(rows, folders)
    assert picture is not None
    assert len(picture.figure.axes) == 11
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])
    broken = predictions(rows, folders)
    assert broken is not None
    assert broken.png().startswith(b"\x89PNG")
    for path in paths:
        path.write_text("no picture")
    assert predictions(rows, folders) is None
