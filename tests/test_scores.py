"""Trained networks are ranked by their mean over seeds, and seeds that overlap are no difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ctxbench.figures.gallery import pictures
from ctxbench.panels import path_of, sheet, tiles
from ctxbench.record import Row
from ctxbench.reports.scores import SCORES, score_tables
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
            "`a` has the best mean (context IoU 71.0 %); the seeds do not tell it from `b`.",
        ),
        (
            {"a": (0.7, 0.72), "b": (0.5, 0.6)},
            "Every seed of `a` (mean context IoU 71.0 %) is above all seeds of the others.",
        ),
        ({"a": (0.7,), "b": (0.5,)}, "One seed tells no scatter"),
    ],
)
def test_seeds_that_overlap_are_no_difference(scores: dict[str, tuple[float, ...]], words: str) -> None:
    rows = [
        trained(spec, seed, value) for spec, values in scores.items() for seed, value in enumerate(values)
    ]
    (table,) = score_tables(rows)
    assert words in table.verdict


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
    drawn = {picture.name: picture for picture in pictures(rows)}
    both = ["scores-0", "scores-1", "tradeoff-0", "tradeoff-1", "cues-0"]
    assert sorted(drawn) == sorted(both), "the corners have one block alone"
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
    drawn = {picture.name: picture for picture in pictures(rows, folders)}
    assert list(drawn) == ["scores-0", "tradeoff-0", "predictions-0"]
    assert "seed 1" in drawn["predictions-0"].caption
    titles = [axes.get_title("left") for axes in drawn["predictions-0"].figure.axes]
    assert titles == ["image", "truth", "a\n50.0 %", "b\n50.0 %"]


def test_of_a_seed_that_was_trained_twice_the_latest_counts() -> None:
    later = trained("a", 0, 0.8, created_utc="2026-01-01T00:00:00+00:00")
    (table,) = score_tables([later, trained("a", 0, 0.4)])
    assert table.text[0][:3] == ["a", "1", "80.0"]


# What generators make

ANCHOR = {"fid": 0.5, "kid": 0.01, "kid_std": 0.0, "inception_score": 9.0, "inception_score_std": 0.1}
ANCHOR |= {"precision": 0.9, "recall": 0.9}
ANCHORS: dict[str, Any] = {"bootstrap": ANCHOR, "halves": ANCHOR, "repeated": ANCHOR | {"fid": 10.0}}
ANCHORS |= {"spread": 0.4, "accuracy": 0.99, "inception_score": 9.0}
GAN_PROTOCOL = {
    "iterations": 3000,
    "batch": 32,
    "optimizer": "Adam",
    "learning_rates": [1e-3, 1e-3],
    "betas": [0.0, 0.999],
    "ema": 0.99,
    "data_digest": "ab12",
    "reference_digest": "cd34",
    "processes": 1,
    "first_weights": "random",
    "note": "a note",
}
GAN: dict[str, Any] = {
    "kind": "task",
    "task": "digits",
    "preset": "16x16",
    "model": "resgan",
    "dataset": "digits-16x16",
    "mode": "train",
    "train_iterations": 3000,
    "metric": "fid",
    "extractor": "digits-cnn-0123",
    "images_scored": 1797,
    "anchors_json": json.dumps(ANCHORS),
    "protocol_json": json.dumps(GAN_PROTOCOL),
}


def gan(spec: str, seed: int, fid: float, **fields: Any) -> Row:
    own = {"spec": spec, "seed": seed, "fid": fid, "recall": 0.3, "train_cpu_s": 90.0}
    return make_record(**(GAN | no_times() | own | fields)).row


def gans(**scores: tuple[float, ...]) -> list[Row]:
    return [gan(spec, seed, fid) for spec, fids in scores.items() for seed, fid in enumerate(fids)]


def verdict(rows: list[Row]) -> str:
    return score_tables(rows)[0].verdict


def test_the_smallest_distance_comes_first_with_its_anchors_behind() -> None:
    table, anchors = score_tables(gans(a=(2.0, 2.2), b=(1.0, 1.2)))
    assert [line[:4] for line in table.text] == [
        ["b", "2", "1.10", "1.00 - 1.20"],
        ["a", "2", "2.10", "2.00 - 2.20"],
    ]
    assert table.title == "digits (16x16): resgan on digits-16x16, 3,000 iterations"
    assert "Data ab12, compared with cd34." in table.notes
    assert anchors.title == f"Anchors: {table.title}"
    assert [line[1] for line in anchors.text] == ["0.50", "0.50", "10.00"]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            {"a": (1.0, 1.2), "b": (2.0, 2.2)},
            "Every seed of `a` (mean FID 1.10) is below all seeds of the others.",
        ),
        (
            {"a": (1.0, 2.1), "b": (2.0, 2.2), "c": (5.0, 6.0)},
            "`a` has the best mean (FID 1.55); the seeds do not tell it from `b`.",
        ),
        (
            {"a": (1.0, 2.1), "none": (2.0, 2.2)},
            "No block wins. `a` has the best mean (FID 1.55); the seeds do not tell it from `none`.",
        ),
        (
            {"none": (1.0, 1.1), "a": (2.0, 2.2)},
            "No block wins. Every seed of `none` (mean FID 1.05) is below all seeds of the others.",
        ),
        ({"a": (1.0,), "b": (2.0,)}, "One seed tells no scatter"),
    ],
)
def test_distances_that_overlap_are_no_difference(scores: dict[str, tuple[float, ...]], words: str) -> None:
    assert verdict(gans(**scores)).startswith(words)


def test_a_collapsed_generator_is_not_ranked_whatever_its_distance() -> None:
    rows = [
        *gans(a=(2.0, 2.2), b=(3.0, 3.1)),
        *(gan("c", seed, 0.5, collapsed="collapsed: recall 0.01") for seed in (0, 1)),
    ]
    table = score_tables(rows)[0]
    assert [line[0] for line in table.text] == ["a", "b", "c"]
    assert table.text[2][-1] == "collapsed in 2 of 2 seeds"
    assert verdict(rows) == (
        "Every seed of `a` (mean FID 2.10) is below all seeds of the others that are ranked."
    )
    alone = [row for row in rows if row["spec"] != "b"]
    assert verdict(alone).endswith("`a` alone has none.")
    assert verdict([row | {"collapsed": "far from real: recall 0.00"} for row in rows]).endswith(
        "every block has one."
    )


def test_each_kind_of_doubt_is_counted() -> None:
    rows = [
        gan("a", 0, 1.0, collapsed="collapsed: recall 0.01"),
        gan("a", 1, 2.0, collapsed="far from real: FID"),
    ]
    rows += [gan("b", 0, 1.0, collapsed="collapsed: recall 0.01")]
    table = score_tables(rows)[0]
    assert [line[-1] for line in table.text] == [
        "collapsed: recall 0.01",
        "collapsed in 1 of 2 seeds; far from real in 1 of 2 seeds",
    ]


def test_a_figure_marks_what_is_not_ranked() -> None:
    rows = [
        *gans(a=(2.0, 2.2)),
        *(gan("c", seed, 0.5, collapsed="collapsed: recall 0.01") for seed in (0, 1)),
    ]
    (axes,) = pictures(rows)[0].figure.axes
    assert axes.get_title("left") == "hollow: collapsed, or far from real; not ranked"
    assert [line.get_markerfacecolor() for line in axes.lines if np.size(line.get_xdata()) == 1].count(
        "white"
    ) == 2


def test_no_score_is_minus_zero() -> None:
    assert SCORES["agreement"].text(-0.001) == "0.00"


def test_agreement_is_ranked_even_where_images_are_alike() -> None:
    twins = {"task": "twins", "metric": "agreement", "collapsed": "collapsed: recall 0.01"}
    scores = {"a": 0.99, "none": 0.0}
    rows = [gan(spec, seed, 5.0, agreement=it, **twins) for spec, it in scores.items() for seed in (0, 1)]
    table = score_tables(rows)[0]
    assert [line[0] for line in table.text] == ["a", "none"]
    assert table.text[1][-1].startswith("at chance; collapsed")
    assert table.verdict == "Every seed of `a` (mean agreement 0.99) is above all seeds of the others."


def test_other_seeds_are_told() -> None:
    rows = [*gans(a=(1.0, 1.2)), *(gan("b", seed, 3.0) for seed in (5, 6))]
    assert "Not all blocks have the same seeds: what differs may be the seeds." in verdict(rows)


def test_rows_of_another_feature_space_stand_in_a_table_of_their_own() -> None:
    rows = [gan("a", 0, 1.0), gan("a", 0, 2.0, extractor="another")]
    assert len(score_tables(rows)) == 4


def test_a_training_that_failed_stands_beside_those_that_did_not() -> None:
    lost = failed_record("error", "out of luck", **(GAN | {"spec": "b", "extractor": None, "metric": None}))
    table, _ = score_tables([gan("a", 0, 1.0), lost.row])
    assert [line[0] for line in table.text] == ["a", "b"]
    alone = score_tables([lost.row])[0]
    assert alone.header[2] == "FID"


@pytest.mark.parametrize(
    "anchors",
    [
        "{}",
        '{"halves": 5}',
        json.dumps(ANCHORS | {"accuracy": "<script>"}),
        json.dumps(ANCHORS | {"repeated": ANCHOR | {"fid": [1]}}),
    ],
)
def test_anchors_that_cannot_be_read_are_left_out(anchors: str) -> None:
    assert len(score_tables([gan("a", 0, 1.0, anchors_json=anchors)])) == 1


@pytest.mark.parametrize("name", ["ema", "learning_rates", "betas", "processes", "iterations"])
@pytest.mark.parametrize("value", ["<script>", None, [], 10**30, {"a": 1}])
def test_no_protocol_keeps_a_page_from_being_made(name: str, value: Any) -> None:
    row = gan("a", 0, 1.0, protocol_json=json.dumps(GAN_PROTOCOL | {name: value}))
    assert "a" in markdown(score_tables([row])[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"fid": 1e308},
        {"fid": None},
        {"recall": 2.0},
        {"agreement": -3.0},
        {"protocol_json": json.dumps({"ema": 10**400})},
        {"anchors_json": "[]"},
    ],
)
def test_what_is_no_score_is_no_record(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        gan("a", 0, **({"fid": 1.0} | fields))


def test_sheets_of_samples_stand_side_by_side(tmp_path: Path) -> None:
    rows = [gan(spec, 0, 1.0, cell_id=f"{place:016x}") for place, spec in enumerate("ab")]
    (tmp_path / "panels").mkdir()
    for row in rows:
        path_of(tmp_path, row["cell_id"]).write_bytes(tiles(np.zeros((6, 1, 8, 8), np.uint8), 3))
    drawn = {it.name: it for it in pictures(rows, {rows[0]["run_id"]: tmp_path})}
    titles = [axes.get_title("left") for axes in drawn["predictions-0"].figure.axes]
    assert titles == ["a\nFID 1.00", "b\nFID 1.00"]
    assert "what is generated" in drawn["predictions-0"].caption


def test_a_sheet_of_an_impossible_shape_is_left_out(tmp_path: Path) -> None:
    row = gan("a", 0, 1.0)
    (tmp_path / "panels").mkdir()
    Image.new("L", (1, 30_000)).save(path_of(tmp_path, row["cell_id"]))
    assert [it.name for it in pictures([row], {row["run_id"]: tmp_path})] == []
