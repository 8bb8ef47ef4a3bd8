"""From cells to outcomes: what is told in which order, and what is refused before it is measured."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import blocks
from ctxbench import environment, measure, subject
from ctxbench.cost import Cost, estimate
from ctxbench.devices import Device
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor
from ctxbench.settle import Settled, batches, describe, disagreement, needed_bytes, settle, too_large
from ctxbench.spec import Cell, Grid

CPU = Device("cpu", "cpu")
COST = Cost(
    params=3,
    params_formula=3,
    macs_formula=5,
    macs_counted=5,
    macs_backward=None,
    uncounted_ops={},
    memory_bytes=1000,
)


class Log(Monitor):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def working(self, text: str) -> None:
        self.events.append(("working", text))

    def measuring(self, text: str) -> None:
        self.events.append(("measuring", text))

    def taking(self, cell: Cell | None) -> None:
        self.events.append(("taking", cell and cell.label))

    def estimated(self, cell: Cell, cost: Cost) -> None:
        self.events.append(("estimated", cell.label, cost))

    def needing(self, count: int) -> None:
        self.events.append(("needing", count))

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] in kinds]


@pytest.fixture(autouse=True)
def steady_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory enough, and no more rounds than are needed."""
    monkeypatch.setattr(environment, "free_bytes", lambda device: 2**33)
    monkeypatch.setattr(subject, "REFERENCE_SIDE", {"cpu": 8})
    monkeypatch.setattr(measure, "BUDGET_S", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cells(text: str, **axes: Any) -> list[Cell]:
    return Grid(blocks=text, **({"resolutions": "8", "channels": "8"} | axes)).cells()


def settled(planned: list[Cell], log: Log) -> dict[str, Settled]:
    """By label; every cell must come once."""
    found = list(settle(planned, Settings(), CPU, log))
    assert sorted(it.cell.id for it in found) == sorted(cell.id for cell in planned)
    return {it.cell.label: it for it in found}


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a closed form of `none` say 1."""
    cls = blocks.info("none").cls

    def make(closed_form: str) -> None:
        monkeypatch.setattr(cls, closed_form, lambda self, *sides: 1)

    return make


# Batches


def test_a_batch_is_one_group_and_nothing_is_lost() -> None:
    planned = cells("none,a2", resolutions="4,8", modes="infer,train", dtypes="float32,bfloat16")
    found = batches(planned)
    assert [cell for batch in found for cell in batch] == planned
    assert len(found) == 8
    assert all(len({cell.group for cell in batch}) == 1 for batch in found)
    assert len({batch[0].group for batch in found}) == len(found)


def test_all_estimates_are_one_batch() -> None:
    planned = cells("none,a2", resolutions="4,8", modes="infer,train", estimated=True)
    assert batches(planned) == [planned]
    assert [len(batch) for batch in batches(cells("none,a2") + planned)] == [2, 8]


def test_without_cells_there_is_no_batch() -> None:
    assert batches([]) == []


# What is told, and when


def test_all_cells_are_estimated_one_after_the_other_before_any_is_measured() -> None:
    log = Log()
    planned = cells("none,a2")
    found = settled(planned, log)
    none, a2 = map(estimate, planned)
    assert log.events[:10] == [
        ("taking", "none"),
        ("working", "estimating none 1x8x8x8 float32 infer"),
        ("estimated", "none", none),
        ("taking", "a2"),
        ("working", "estimating a2 1x8x8x8 float32 infer"),
        ("estimated", "a2", a2),
        ("taking", None),
        ("needing", max(map(needed_bytes, planned, (none, a2)))),
        ("measuring", "measuring 2 blocks, 1x8x8x8 float32 infer"),
        ("taking", "none"),
    ]
    assert not [event for event in log.events[10:] if event[0] in ("estimated", "needing", "measuring")]
    assert {name: it.outcome.status for name, it in found.items()} == {"none": "ok", "a2": "ok"}
    assert (found["none"].cost, found["a2"].cost) == (none, a2)


def test_what_cannot_be_measured_is_known_before_the_next_cell_is_looked_at() -> None:
    log = Log()
    (batch,) = batches(cells("ham-nmf,none", resolutions="1", modes="train"))
    first = next(settle(batch, Settings(), CPU, log))
    assert (first.cell.label, first.outcome.status, first.cost) == ("ham-nmf", "skipped", None)
    assert log.of("taking") == [("taking", "ham-nmf")]


@pytest.mark.parametrize("refused", ["invalid", "skipped"])
def test_only_what_is_going_to_be_measured_is_told_and_counted(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[str], None], refused: str
) -> None:
    planned = cells("none,self-attn")
    need = [needed_bytes(cell, estimate(cell)) for cell in planned]
    assert need[0] < need[1]
    log = Log()
    if refused == "invalid":
        wrong("macs")
        expected, left, most = {"none": "invalid", "self-attn": "ok"}, "self-attn", need[1]
    else:
        monkeypatch.setattr(environment, "free_bytes", lambda device: need[0])
        expected, left, most = {"none": "ok", "self-attn": "skipped"}, "none", need[0]
    found = settled(planned, log)
    assert {name: it.outcome.status for name, it in found.items()} == expected
    assert all(it.cost is not None for it in found.values())
    assert [event[1] for event in log.of("estimated")] == [left]
    assert log.of("needing", "measuring") == [
        ("needing", most),
        ("measuring", f"measuring {left}, 1x8x8x8 float32 infer"),
    ]


def test_where_nothing_is_left_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[str], None]
) -> None:
    wrong("macs")
    monkeypatch.setattr(measure, "group", pytest.fail)
    log = Log()
    settled(cells("none"), log)
    assert not log.of("estimated", "needing", "measuring")
    assert log.of("taking") == [("taking", "none"), ("taking", None)]


def test_an_estimate_is_never_measured_and_asks_for_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "group", pytest.fail)
    monkeypatch.setattr(environment, "free_bytes", pytest.fail)
    log = Log()
    found = settled(cells("none,a2", estimated=True), log)
    for it in found.values():
        assert it.cost == estimate(it.cell)
        assert it.outcome.status == "ok"
        assert set(it.outcome.columns) == {"wall_s"}
    assert not log.of("estimated", "needing", "measuring")


def test_a_device_is_kept_for_a_measurement_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    @contextlib.contextmanager
    def alone(self: Device, tell: Callable[[str], None]) -> Iterator[None]:
        held.append(self.name)
        yield
        held.append("free")

    monkeypatch.setattr(Device, "alone", alone)
    settled(cells("none", estimated=True), Log())
    assert held == []
    settled(cells("none"), Log())
    assert held == ["cpu", "free"]


def test_an_interrupt_while_estimating_is_not_taken_for_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: blocks.ContextBlock, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks.info("none").cls, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(settle(cells("none"), Settings(), CPU, Log()))


def test_a_cell_is_described_by_block_and_input_and_its_group_by_the_input() -> None:
    (cell,) = cells("ham-nmf[rank=4]", batch="2", resolutions="4x6", dtypes="bfloat16", modes="train")
    assert describe(cell) == "ham-nmf[rank=4] 2x8x4x6 bfloat16 train"
    assert describe(cell, block=False) == "2x8x4x6 bfloat16 train"


# What is refused


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"macs_counted": 6}, "macs() gives 5, but 6 are counted"),
        ({"params": 4}, "param_count() gives 3, but there are 4"),
        ({"params": 4, "macs_counted": 6}, "macs() gives 5, but 6 are counted"),
    ],
)
def test_closed_forms_that_differ_are_told_with_both_numbers(changed: dict[str, int], reason: str) -> None:
    verdict = disagreement(dataclasses.replace(COST, **changed))
    assert verdict is not None
    assert verdict.status == "invalid"
    assert verdict.columns == {"reason": f"broken rule: closed forms equal the count; {reason}"}


def test_closed_forms_that_agree_are_no_reason_whatever_the_backward_counts() -> None:
    assert disagreement(COST) is disagreement(dataclasses.replace(COST, macs_backward=99)) is None


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2), ("float64", 8)])
def test_needed_is_the_predicted_peak_with_a_margin_and_some_copies_of_the_input(
    dtype: str, bytes_each: int
) -> None:
    (cell,) = cells("none", batch="2", resolutions="4x6", dtypes=dtype)
    matrices = 3 * subject.reference_side("cpu", dtype) ** 2
    assert needed_bytes(cell, COST) == 1150 + (4 * (2 * 8 * 4 * 6) + matrices) * bytes_each


def test_what_just_fits_is_measured_and_one_byte_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = cells("none")
    cost = dataclasses.replace(COST, memory_bytes=3 * 2**30)
    need = needed_bytes(cell, cost)
    monkeypatch.setattr(environment, "free_bytes", lambda device: need)
    assert too_large(cell, cost) is None
    monkeypatch.setattr(environment, "free_bytes", lambda device: need - 1)
    verdict = too_large(cell, cost)
    assert verdict is not None
    assert verdict.status == "skipped"
    assert verdict.columns == {"reason": "needs 3.5 GiB with a margin for kernels, 3.5 GiB free"}
