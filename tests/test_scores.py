"""Trained networks are ranked by their mean over seeds, and seeds that overlap are no difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxbench.panels import path_of, sheet
from ctxbench.record import Row
from ctxbench.scoreplots import figures
from ctxbench.scores import score_tables
from ctxbench.store import to_frame
from ctxbench.tables import markdown
from tests.factories import failed_record, make_record, no_times

STAGE = {
    "train": "train",
    "iterations": 800,
    "batch": 8,
    "crop": [128, 128],
    "optimizer": "AdamW",
    "learning_rate": 0.002,
    "scoring": "single",
    "first_weights": "random",
    "note": "a note",
}
TASK: dict[str, Any] = {
    "kind": "task",
    "task": "voc",
    "preset": "demo",
    "model": "localnet",
    "dataset": "legend-14",
    "mode": "train",
    "train_iterations": 800,
    "metric": "context_iou",
    "protocol_json": json.dumps({"stages": [STAGE], "data_digest": "ab12", "processes": 1}),
}


def trained(spec: str, seed: int, score: float, **fields: Any) -> Row:
    own = {
        "spec": spec,
        "seed": seed,
        "context_iou": score,
        "miou": 0.6 + score / 5,
        "train_cpu_s": 30.0,
    }
    return make_record(**(TASK | no_times() | own | fields)).row


def failed(spec: str, seed: int) -> Row:
    return failed_record("error", "the loss is nan", **(TASK | {"spec": spec, "seed": seed})).row


def test_blocks_come_by_falling_mean_and_failures_last() -> None:
    rows = [trained("a", 0, 0.2), trained("b", 0, 0.7), trained("b", 1, 0.5), failed("c", 0), failed("a", 1)]
    (table,) = score_tables(rows)
    assert [line[:5] for line in table.text] == [
        ["b", "2", "60.0", "50.0 - 70.0", "72.0"],
        ["a", "1", "20.0", "–", "64.0"],
        ["c", "0", "–", "–", "–"],
    ]
    assert table.text[1][-1] == "seed 1 error: the loss is nan; at chance"
    assert table.title == "voc (demo): localnet on legend-14, 800 iterations"


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            {"a": (0.7, 0.72), "b": (0.5, 0.71), "c": (0.1, 0.2)},
            "Not told apart from `a` by these seeds: b.",
        ),
        ({"a": (0.7, 0.72), "b": (0.5, 0.6)}, "Every seed of `a` is above all seeds of the others."),
        ({"a": (0.7,), "b": (0.5,)}, "One seed tells no scatter"),
    ],
)
def test_seeds_that_overlap_are_no_difference(scores: dict[str, tuple[float, ...]], words: str) -> None:
    rows = [
        trained(spec, seed, value) for spec, values in scores.items() for seed, value in enumerate(values)
    ]
    (table,) = score_tables(rows)
    assert words in "\n".join(table.notes)


@pytest.mark.parametrize(
    "field",
    [
        {"model": "other"},
        {"dataset": "legend-8"},
        {"dtype": "bfloat16"},
        {"preset": "paper"},
        {"train_iterations": 7},
    ],
)
def test_only_one_protocol_stands_in_a_table(field: dict[str, Any]) -> None:
    assert len(score_tables([trained("a", 0, 0.5), trained("a", 0, 0.5, **field)])) == 2


def test_without_a_diagnostic_the_ranking_is_by_miou() -> None:
    rows = [
        trained(spec, 0, 0.1, context_iou=None, miou=value, metric="miou")
        for spec, value in (("a", 0.6), ("b", 0.7))
    ]
    (table,) = score_tables(rows)
    assert table.header[2] == "mIoU (%)"
    assert [line[0] for line in table.text] == ["b", "a"]
    assert "Context IoU" not in markdown(table)


def test_the_protocol_is_told() -> None:
    (table,) = score_tables([trained("a", 0, 0.5)])
    assert "Protocol: train, 800 iterations of 8 crops 128x128, AdamW 0.002, scored single" in markdown(table)


@pytest.mark.parametrize(
    "protocol",
    [
        {},
        {"stages": 5},
        {"stages": [{}]},
        {"stages": [STAGE | {"iterations": "many"}]},
        {"stages": [STAGE], "data_digest": "", "processes": "x"},
    ],
)
def test_a_protocol_that_cannot_be_read_is_left_out(protocol: dict[str, Any]) -> None:
    (table,) = score_tables([trained("a", 0, 0.5, protocol_json=json.dumps(protocol))])
    assert "Protocol" not in markdown(table)


def test_what_was_only_scored_is_told() -> None:
    protocol = {"stages": [STAGE | {"iterations": 0}], "data_digest": "", "processes": 1}
    row = trained("a", 0, 0.5, train_iterations=0, protocol_json=json.dumps(protocol))
    (table,) = score_tables([row])
    assert "not trained" in table.title
    assert "Scored as they are" in markdown(table)


@pytest.mark.parametrize(
    "fields",
    [
        {"train_iterations": None},
        {"protocol_json": None},
        {"context_iou": None},
        {"metric": None},
        {"miou": 1e306},
        {"context_iou": -0.1},
        {"metric": "best"},
    ],
)
def test_a_training_without_its_score_or_protocol_is_no_record(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        trained("a", 0, 0.5, **fields)


def test_every_seed_is_drawn_and_the_cues_beside_one_another() -> None:
    rows = [
        trained(
            spec,
            seed,
            0.1 * seed + 0.2 + cue / 100,
            dataset=f"legend-{cue:g}",
            protocol_json=json.dumps({"stages": [STAGE], "data_digest": f"{cue}", "processes": 1}),
        )
        for spec in ("a", r"$\frac{$")
        for seed in (0, 1)
        for cue in (1.6, 14)
    ]
    rows += [
        trained("c", 0, 0.5, protocol_json=rows[1]["protocol_json"]),
        trained("a", 0, 0.5, dataset="legend-14-corners"),
    ]
    drawn = {picture.name: picture for picture in figures(rows, to_frame(rows), {})}
    assert list(drawn) == ["scores-0", "scores-1", "cues-0"], "the corners have one block alone"
    assert all(picture.png().startswith(b"\x89PNG") for picture in drawn.values())
    (axes,) = drawn["cues-0"].figure.axes
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 1][:2] == [
        [1.6, 14.0]
    ] * 2
    assert {text.get_text() for text in axes.texts} == {"a", r"$\frac{$"}, "c was seen with one cue"


def test_tables_come_by_rising_cue() -> None:
    cues = ("14", "1.6", "4", "14-corners")
    tables = score_tables([trained("a", 0, 0.5, dataset=f"legend-{cue}") for cue in cues])
    assert [table.title.split()[4].rstrip(",") for table in tables] == [
        f"legend-{cue}" for cue in ("1.6", "4", "14", "14-corners")
    ]


def test_predictions_of_all_blocks_stand_side_by_side(tmp_path: Path) -> None:
    """Of the first seed that all have; a block without its sheet is left out."""
    seeds = ("a", 1), ("b", 0), ("b", 1), ("c", 1)
    rows = [trained(spec, seed, 0.5, cell_id=f"{place:016x}") for place, (spec, seed) in enumerate(seeds)]
    shade = {"a": 1, "b": 2}
    (tmp_path / "panels").mkdir()
    for row in rows[:3]:
        truth = np.zeros((30, 300), np.uint8)
        picture = np.zeros((30, 300, 3), np.uint8), truth, truth + shade[row["spec"]]
        palette = np.array([(0, 0, 0), (1, 1, 1), (2, 2, 2)], np.uint8)
        path_of(tmp_path, row["cell_id"]).write_bytes(sheet([picture], palette))
    folders = {rows[0]["run_id"]: tmp_path}
    drawn = {picture.name: picture for picture in figures(rows, to_frame(rows), folders)}
    assert list(drawn) == ["scores-0", "predictions-0"]
    assert "seed 1" in drawn["predictions-0"].caption
    titles = [axes.get_title("left") for axes in drawn["predictions-0"].figure.axes]
    assert titles == ["image", "truth", "a\n50.0 %", "b\n50.0 %"]


def test_of_a_seed_that_was_trained_twice_the_latest_counts() -> None:
    later = trained("a", 0, 0.8, created_utc="2026-01-01T00:00:00+00:00")
    (table,) = score_tables([later, trained("a", 0, 0.4)])
    assert table.text[0][:3] == ["a", "1", "80.0"]
