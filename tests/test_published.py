"""Printed numbers carry their source, and stand beside measured ones of the same input alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

import blocks
from ctxbench import generation, segmentation
from ctxbench.record import Row
from ctxbench.reports import published
from ctxbench.reports.leaderboards import leaderboards
from ctxbench.reports.published import FILES, Comparison, checked, compare_all
from ctxbench.spec import parse_blocks
from tasks.generation import recipes as gans
from tasks.segmentation import recipes
from tasks.segmentation.models import MODELS
from tests.factories import make_record

TABLE_3 = [row for row in published.load("paper") if row["table"] == "Table 3"]


@pytest.mark.parametrize("name", FILES)
def test_every_number_has_a_source(name: str) -> None:
    rows = published.load(name)
    assert rows
    for row in rows:
        assert row["source"].strip(), row


@pytest.mark.parametrize("name", FILES)
def test_every_number_is_a_number(name: str) -> None:
    for row in published.load(name):
        values = [row[column] for column in ("value",)]
        assert any(values), row
        assert all(math.isfinite(float(value)) and float(value) >= 0 for value in values if value), row


@pytest.mark.parametrize("name", [*FILES, "explanations"])
def test_every_row_has_as_many_cells_as_the_header(name: str) -> None:
    for row in published.load(name):
        assert None not in row, row  # the csv module's key for what is too much
        assert None not in row.values(), row


@pytest.mark.parametrize("name", FILES)
def test_no_row_stands_twice(name: str) -> None:
    rows = [tuple(row.values()) for row in published.load(name)]
    assert len(rows) == len(set(rows))


def test_an_explanation_refers_to_a_printed_number_of_a_block_that_exists() -> None:
    printed = {(row["spec"], row["metric"]) for row in TABLE_3}
    explained = [(row["spec"], row["metric"]) for row in published.load("explanations")]
    assert set(explained) <= printed
    assert len(explained) == len(set(explained))
    for spec, _ in explained:
        parse_blocks(spec)
    assert all(row["explanation"].strip() for row in published.load("explanations"))


def test_a_printed_number_of_a_block_in_the_catalogue_names_a_spec_as_the_program_writes_it() -> None:
    for row in TABLE_3:
        if row["block"] in blocks.names():
            (spec,) = parse_blocks(row["spec"])
            assert (spec.name, spec.label) == (row["block"], row["spec"])


def measured(**fields: Any) -> Row:
    """A row at the input of the paper's table."""
    table_3 = {"spec": "a2", "batch": 1, "channels": 512, "height": 128, "width": 128, "dtype": "float32"}
    return make_record(**(table_3 | fields)).row


def found_in(*rows: Row) -> dict[str, Comparison]:
    """What was found of the published numbers, by the block's name and the metric."""
    return {f"{it.spec} {it.claim.metric}": it for it in checked(compare_all(rows))}


def trained(**fields: Any) -> Row:
    """A training of HamNet on VOC by the paper's recipe."""
    about: dict[str, Any] = {
        **{"kind": "task", "task": "voc", "preset": "paper", "model": "hamnet-voc-r50", "dataset": "voc"},
        **{
            "train_iterations": 60_000,
            "first_weights": "backbone 0123",
            "protocol_json": "{}",
            "scoring": "single",
            "metric": "miou",
        },
        **{"spec": "ham-nmf[version=v2]", "miou": 0.78, "mode": "train"},
    }
    return make_record(**(about | fields)).row


def test_every_number_is_in_one_of_three_states() -> None:
    found = compare_all([])
    assert len(found) == sum(len(published.load(name)) for name in FILES)
    assert {it.state for it in found} == {"cannot be checked here"}
    assert all(it.reason for it in found)


def test_every_source_has_an_address() -> None:
    for claim in published.claims():
        assert claim.origin.url.startswith("https://")


def test_only_the_papers_input_is_compared_with_the_paper() -> None:
    assert found_in(measured())
    for other in ({"batch": 2}, {"channels": 256}, {"height": 64}, {"width": 64}, {"dtype": "bfloat16"}):
        assert found_in(measured(**other)) == {}, other
    assert found_in(measured(spec="a2[c_m=64]")) == {}
    assert found_in() == {}


def test_memory_is_compared_with_the_number_of_the_same_mode() -> None:
    found = found_in(measured(mode="train"))
    assert "a2 gpu_memory_infer" not in found
    assert found["a2 gpu_memory_train"].published == 326
    assert found["a2 gpu_memory_train"].found == 3  # MiB


def test_times_are_compared_on_a_gpu_alone_and_as_multiples_of_self_attention() -> None:
    assert not [name for name in found_in(measured(), measured(spec="self-attn")) if "time" in name]
    gpu = {"device_type": "cuda", "device_name": "a GPU"}
    assert not [name for name in found_in(measured(**gpu)) if "time" in name], "nothing to compare by"
    times = {"latency_ms_ci_low": 1.0, "latency_ms_ci_high": 99.0}
    rows = [
        measured(**gpu, **times, spec=spec, latency_ms_median=ms)
        for spec, ms in (("self-attn", 8.0), ("a2", 2.0))
    ]
    found = found_in(*rows)["a2 gpu_time_infer"]
    unit = next(
        float(row["value"])
        for row in TABLE_3
        if (row["spec"], row["metric"]) == ("self-attn", "gpu_time_infer")
    )
    assert found.found == pytest.approx(unit / 4)


def test_what_was_not_measured_is_not_compared() -> None:
    row = measured(memory_predicted_bytes=None, macs_counted=None, macs_formula=None, params=None)
    assert found_in(row) == {}


def test_a_number_says_whose_it_is_and_why_it_differs() -> None:
    found = found_in(measured())
    params = found["a2 params"]
    assert (params.method, params.spec, params.published, params.claim.digits) == ("A2", "a2", 1.01, 2)
    assert "ICLR 2021, Table 3" in params.claim.origin.name
    assert "bias" in params.explanation
    assert found["a2 macs"].explanation == ""


@pytest.mark.parametrize(
    ("value", "reproduced"),
    [(100, True), (100.9, True), (99.1, True), (101.5, False), (98, False), (0, False)],
)
def test_agreement_means_within_one_percent(value: float, reproduced: bool) -> None:
    claim = dataclasses.replace(published.claims()[0], value="100")
    it = Comparison(claim, value)
    assert it.difference == pytest.approx(value / 100 - 1)
    assert it.agrees == reproduced
    assert it.state == ("reproduced" if reproduced else "not reproduced")


def test_scores_are_reproduced_near_the_mean_or_within_the_range_of_several_seeds() -> None:
    rows = [trained(seed=seed, miou=miou) for seed, miou in enumerate((0.75, 0.77, 0.785))]
    claims = {it.claim.statistic: it for it in checked(compare_all(rows))}
    assert (claims["mean"].published, claims["best"].published) == (77.8, 78.3)
    assert claims["mean"].found == pytest.approx(76.833, abs=1e-3)
    assert claims["best"].found == pytest.approx(78.5)
    assert {it.state for it in claims.values()} == {"reproduced"}
    two = {it.claim.statistic: it.state for it in checked(compare_all(rows[:2]))}
    assert two == {"mean": "not reproduced", "best": "not reproduced"}


def test_more_scatter_is_no_more_agreement_with_the_best() -> None:
    rows = [trained(seed=seed, miou=miou) for seed, miou in enumerate((0.9, 0.7, 0.8))]
    states = {it.claim.statistic: it.state for it in checked(compare_all(rows))}
    assert states["best"] == "not reproduced"


@pytest.mark.parametrize(
    "other",
    [
        {"model": "hamnet-r50"},
        {"preset": "mmseg"},
        {"dataset": "legend-14"},
        {"spec": "ham-nmf[rank=8]"},
        {"task": "ade20k"},
        {"status": "crashed"},
        {"scoring": "ms-flip-logits"},
        {"train_iterations": 59_999},
        {"first_weights": "random"},
    ],
    ids=str,
)
def test_scores_of_another_network_recipe_or_data_are_not_compared(other: dict[str, Any]) -> None:
    assert found_in(trained(**other)) == {}


def test_a_training_that_is_missing_is_named_by_its_command() -> None:
    reasons = {it.reason for it in compare_all([])}
    assert (
        "no training of it: ctxbench task voc --preset paper --model hamnet-voc-r50 --backbone FILE "
        "--blocks 'ham-nmf[version=v2]'" in reasons
    )


def test_what_a_claim_is_compared_with_is_what_the_commands_record() -> None:
    for claim in published.claims():
        if claim.task == "imagenet" and claim.preset:
            recipe = gans.RECIPES["imagenet"][claim.preset]
            ((spec, _),) = generation.specs_for(claim.spec, recipe)
            iterations = recipe.iterations
        elif claim.preset:
            (spec,) = segmentation.specs_for(claim.spec, MODELS[claim.model])
            iterations = sum(stage.iterations for stage in recipes.RECIPES[claim.task][claim.preset])
        else:
            continue
        assert (spec.label, spec.name, str(iterations)) == (claim.spec, claim.block, claim.iterations), claim


def test_times_of_two_machines_are_not_mixed() -> None:
    times = {"latency_ms_ci_low": 1.0, "latency_ms_ci_high": 99.0, "device_type": "cuda"}
    one = measured(spec="a2", latency_ms_median=2.0, **times)
    other = measured(spec="self-attn", latency_ms_median=8.0, env_hash="ba9876543210", **times)
    assert not [name for name in found_in(one, other) if "time" in name]


def test_self_attention_is_not_compared_with_itself() -> None:
    times = {"latency_ms_ci_low": 1.0, "latency_ms_ci_high": 99.0, "device_type": "cuda"}
    assert "self-attn gpu_time_infer" not in found_in(
        measured(spec="self-attn", latency_ms_median=8.0, **times)
    )


def test_a_block_that_is_not_in_the_catalogue_cannot_be_checked() -> None:
    found = {it.claim.block: it.reason for it in compare_all([])}
    for block, reason in found.items():
        assert (reason == "this block is not in the suite") == (block not in blocks.names()), block


def test_the_latest_record_counts() -> None:
    older = measured(params=2**20)
    newer = measured(params=2**21, created_utc="2026-01-02T03:04:05+00:00")
    for rows in ([older, newer], [newer, older]):
        assert found_in(*rows)["a2 params"].found == 2


def test_the_leaderboard_of_the_papers_input_has_the_papers_rows_below_its_own() -> None:
    (table,) = leaderboards([measured(), measured(spec="self-attn")], "self-attn")
    names = [cells[0] for cells in table.text]
    assert names[:2] == ["a2", "self-attn"]
    assert "A2 (published)" in names[2:]
    shown = dict(zip(names, table.text, strict=True))
    assert "published" in shown["A2 (published)"][-1]
    assert [table.source(row) is not None for row in table.rows] == [
        name.endswith("(published)") for name in names
    ]
    (other,) = leaderboards([measured(height=64), measured(spec="self-attn", height=64)], "self-attn")
    assert len(other.rows) == 2
