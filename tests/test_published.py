"""Printed numbers carry their source, and stand beside measured ones of the same input alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

import blocks
from ctxbench.record import Row
from ctxbench.reports import published
from ctxbench.reports.published import LABELS, Comparison, compare_profile
from ctxbench.spec import parse_blocks
from tests.factories import make_record

FILES = ("paper", "mmseg_zoo", "generation")
NUMBERS = {
    "paper": ("value",),
    "generation": ("value",),
    "mmseg_zoo": ("miou", "miou_ms", "train_memory_gb"),
}
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
        values = [row[column] for column in NUMBERS[name]]
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


def test_only_the_papers_input_is_compared_with_the_paper() -> None:
    assert compare_profile([measured()])
    for other in ({"batch": 2}, {"channels": 256}, {"height": 64}, {"width": 64}, {"dtype": "bfloat16"}):
        assert compare_profile([measured(**other)]) == [], other
    assert compare_profile([measured(spec="a2[c_m=64]")]) == []
    assert compare_profile([]) == []


def test_memory_is_compared_with_the_number_of_the_same_mode() -> None:
    found = {it.metric: it for it in compare_profile([measured(mode="train")])}
    assert "gpu_memory_train" in found
    assert "gpu_memory_infer" not in found
    assert found["gpu_memory_train"].published == 326
    assert found["gpu_memory_train"].found == 3  # MiB


def test_times_of_another_machine_are_not_compared() -> None:
    printed = {row["metric"] for row in TABLE_3}
    assert {"gpu_time_train", "gpu_time_infer"} <= printed
    compared = {it.metric for it in compare_profile([measured(), measured(mode="train")])}
    assert compared == {"params", "macs", "gpu_memory_infer", "gpu_memory_train"} == set(LABELS)


def test_what_was_not_measured_is_not_compared() -> None:
    row = measured(memory_predicted_bytes=None, macs_counted=None, macs_formula=None, params=None)
    assert compare_profile([row]) == []


def test_a_number_says_whose_it_is_and_why_it_differs() -> None:
    compared = {it.metric: it for it in compare_profile([measured(mode="train")])}
    params = compared["params"]
    assert (params.method, params.spec, params.published, params.digits) == ("A2", "a2", 1.01, 2)
    assert "ICLR 2021" in params.source
    assert "bias" in params.explanation
    assert compared["macs"].explanation == ""


@pytest.mark.parametrize(
    ("value", "reproduced"),
    [(100, True), (100.9, True), (99.1, True), (101.5, False), (98, False), (0, False)],
)
def test_agreement_means_within_one_percent(value: float, reproduced: bool) -> None:
    it = Comparison("A", "a", "macs", 100, 0, value, "source", "")
    assert it.difference == pytest.approx(value / 100 - 1)
    assert it.agrees == reproduced
