"""A group of cells is measured fairly, in interleaved rounds, and a block that fails harms no other."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import blocks
from blocks import registry
from ctxbench import measure
from ctxbench import subject as subjects
from ctxbench.clocks import Sample
from ctxbench.measure import Settings, group
from ctxbench.monitor import Monitor
from ctxbench.outcome import Outcome
from ctxbench.spec import Cell, Grid
from ctxbench.subject import AttentionKernels, Reference, Subject

CHANNELS, SIDE = 8, 12  # larger than what the gate tries
Forward = Callable[[Tensor], Tensor]


class Scaled(blocks.ContextBlock):
    """The block that the others here are made of: multiplies by a parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def macs(self, height: int, width: int) -> int:
        return 0

    def param_count(self) -> int:
        return 1


def full_size(x: Tensor) -> bool:
    """Whether this is the input that is measured, and not the gate's."""
    return x.shape[-1] == SIDE


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Forward], None]:
    """Adds a block to the catalogue for one test."""
    blocks.names()  # find those of the catalogue first
    monkeypatch.setattr(registry, "_catalogue", dict(registry._catalogue))

    def register(name: str, forward: Forward) -> None:
        class Added(Scaled):
            def forward(self, x: Tensor) -> Tensor:
                return forward(super().forward(x))

        about = dict.fromkeys(("title", "family", "summary", "complexity", "formula"), "for a test")
        blocks.register(name, **about, paper=None)(Added)

    return register


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small reference product, and no more rounds than are needed; threads as they were."""
    monkeypatch.setattr(subjects, "REFERENCE_SIDE", {"cpu": 8})
    monkeypatch.setattr(measure, "BUDGET_S", 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cells(text: str, mode: str = "infer", side: int = SIDE) -> list[Cell]:
    return Grid(blocks=text, resolutions=str(side), channels=str(CHANNELS), modes=mode).cells()


def measured(text: str, mode: str = "infer") -> dict[str, Outcome]:
    """Block -> outcome; every cell must come once."""
    wanted = cells(text, mode)
    found = list(group(wanted, Settings(), Monitor()))
    assert sorted(cell.id for cell, _ in found) == sorted(cell.id for cell in wanted)
    for _, outcome in found:
        assert outcome.columns.pop("wall_s") >= 0
    return {cell.label: outcome for cell, outcome in found}


@dataclass
class Clock:
    """Stands for the real one: calls, says how long it took, and writes down what it saw."""

    times: dict[str, Iterator[float]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    look: Callable[[str, Any], None] = lambda moment, subject: None

    def __call__(self, call: Callable[[], object]) -> Sample:
        subject = getattr(call, "__self__", None)
        name = subject.cell.label if isinstance(subject, Subject) else "reference"
        self.calls.append(name)
        self.look("before", subject)
        call()
        self.look("after", subject)
        time = next(self.times[name]) if name in self.times else 1.0
        return Sample(time, 2 * time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(subjects, "cpu_clock", stand_in)
    return stand_in


# Every cell ends as one outcome


def test_every_cell_is_yielded_once_whatever_becomes_of_it(add: Callable[[str, Forward], None]) -> None:
    add("breaks", fail_with(RuntimeError("it broke")))
    add("wrong", lambda x: x[..., 1:])
    found = measured("none,breaks,a2,wrong,ham-nmf[rank=4]")
    assert {name: outcome.status for name, outcome in found.items()} == {
        "none": "ok",
        "breaks": "error",
        "a2": "ok",
        "wrong": "invalid",
        "ham-nmf[rank=4]": "ok",
    }


def fail_with(error: BaseException, when: Callable[[Tensor], bool] = lambda x: True) -> Forward:
    def forward(x: Tensor) -> Tensor:
        if when(x):
            raise error
        return x

    return forward


@pytest.mark.parametrize("when", [lambda x: True, full_size], ids=["always", "at full size"])
@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("first line\nsecond line"), "error", "first line"),
        (KeyError("x"), "error", "'x'"),
        (ValueError(), "error", "ValueError"),
        (RuntimeError("\n"), "error", "RuntimeError"),
        (AssertionError("\n  indented\n"), "error", "indented"),
        (RecursionError("too deep"), "error", "too deep"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "oom", "2.00 GiB"),
        (MemoryError(), "oom", "MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
            "oom",
            "99 bytes",
        ),
    ],
    ids=repr,
)
def test_a_block_that_raises_is_told_with_type_and_first_line_and_the_others_are_measured(
    add: Callable[[str, Forward], None],
    error: Exception,
    status: str,
    reason: str,
    when: Callable[[Tensor], bool],
) -> None:
    add("breaks", fail_with(error, when))
    found = measured("none,breaks,a2")
    broken = found["breaks"]
    assert (broken.status, broken.columns["error_type"]) == (status, type(error).__name__)
    assert reason in broken.columns["reason"]
    assert len(broken.columns["reason"].splitlines()) == 1
    assert found["none"].status == found["a2"].status == "ok"


def test_what_was_measured_before_a_failure_is_not_shown(add: Callable[[str, Forward], None]) -> None:
    """The block breaks in the middle of the rounds."""
    calls = itertools.count()
    add("breaks", fail_with(RuntimeError("worn out"), lambda x: full_size(x) and next(calls) >= 8))
    found = measured("none,breaks")
    assert found["breaks"] == Outcome("error", {"reason": "worn out", "error_type": "RuntimeError"})
    assert found["none"].columns["iterations"] >= measure.MIN_ROUNDS


@pytest.mark.parametrize(
    ("forward", "rule"),
    [
        (lambda x: x[..., 1:], "the output has the shape of the input"),
        (lambda x: x + torch.rand_like(x), "evaluation repeats its output"),
        (lambda x: x / 0 if full_size(x) else x, "the output is finite at full size"),
        (lambda x: x[..., 1:] if full_size(x) else x, "the output has the shape of the input at full size"),
        (
            lambda x: x.half() if full_size(x) else x,
            "the output has the input's dtype and device at full size",
        ),
    ],
    ids=["shape", "random", "full size", "full-size shape", "full-size dtype"],
)
def test_a_block_that_breaks_a_rule_gets_no_latency(
    add: Callable[[str, Forward], None], forward: Forward, rule: str
) -> None:
    add("wrong", forward)
    found = measured("wrong,none")
    assert found["wrong"] == Outcome("invalid", {"reason": f"broken rule: {rule}"})
    assert found["none"].status == "ok"


def test_a_block_that_modifies_the_shared_input_at_full_size_harms_no_other(
    add: Callable[[str, Forward], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Scaled, "forward", lambda self, x: x.mul_(float("inf")) if full_size(x) else x * self.scale
    )
    add("wrong", lambda x: x)
    found = measured("wrong,none,a2")
    assert found["wrong"].status == "invalid"
    assert found["none"].status == found["a2"].status == "ok"


def test_when_the_reference_itself_fails_every_cell_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(reference: Reference) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(Reference, "sample", broken)
    found = measured("none,a2")
    assert {outcome.columns["reason"] for outcome in found.values()} == {"device lost"}


def test_a_group_in_which_all_fail_is_no_group_to_time(
    add: Callable[[str, Forward], None], clock: Clock
) -> None:
    add("breaks", fail_with(RuntimeError("it broke")))
    assert measured("breaks")["breaks"].status == "error"
    assert clock.calls == []


def test_an_interrupt_is_not_taken_for_a_failure(add: Callable[[str, Forward], None]) -> None:
    add("interrupted", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        measured("interrupted")
    assert gc.isenabled()


# What is measured


def test_medians_lie_in_their_intervals() -> None:
    for outcome in measured("none,a2,ham-nmf[rank=4]").values():
        columns = outcome.columns
        assert 0 <= columns["latency_ms_ci_low"] <= columns["latency_ms_median"]
        assert columns["latency_ms_median"] <= columns["latency_ms_ci_high"]
        assert len(json.loads(columns["latency_samples_json"])) == columns["iterations"] >= measure.MIN_ROUNDS


def test_on_a_cpu_no_memory_is_claimed_to_be_measured() -> None:
    columns = measured("none")["none"].columns
    assert (columns["memory_measured_bytes"], columns["memory_source"]) == (None, "predicted")


def test_numbers_follow_the_clock(clock: Clock) -> None:
    clock.times = {"none": itertools.cycle([4.0]), "reference": itertools.cycle([0.5])}
    columns = measured("none")["none"].columns
    assert columns["latency_ms_median"] == columns["latency_ms_ci_low"] == 4.0
    assert columns["latency_cpu_ms_median"] == 8.0
    assert columns["latency_ref_ratio"] == 8.0
    assert columns["images_per_s"] == 250.0
    assert columns["first_call_ms"] == 4.0


def test_warm_up_is_not_part_of_the_result(clock: Clock) -> None:
    clock.times = {
        "none": itertools.chain([1000.0] * (1 + subjects.WARM_UP["cpu"][0]), itertools.cycle([1.0]))
    }
    columns = measured("none")["none"].columns
    assert columns["first_call_ms"] == 1000.0
    assert max(json.loads(columns["latency_samples_json"])) == 1.0


def test_training_times_forward_and_backward_with_fresh_gradients(clock: Clock) -> None:
    def look(moment: str, subject: Any) -> None:
        if isinstance(subject, Subject):
            grads = [subject.x.grad, *(parameter.grad for parameter in subject.eager.parameters())]
            assert len(grads) > 1
            assert all((grad is not None) == (moment == "after") for grad in grads)

    clock.look = look
    outcome = measured("ham-nmf[rank=4]", mode="train")["ham-nmf[rank=4]"]
    assert outcome.status == "ok", outcome.columns["reason"]
    assert clock.calls.count("ham-nmf[rank=4]") > measure.MIN_ROUNDS


def test_inference_times_a_forward_without_gradients(
    add: Callable[[str, Forward], None], clock: Clock
) -> None:
    modes = []

    def forward(x: Tensor) -> Tensor:
        modes.append((clock.calls[-1] if clock.calls else None, torch.is_inference_mode_enabled()))
        return x

    add("watched", forward)
    assert measured("watched")["watched"].status == "ok"
    assert modes.count(("watched", True)) > measure.MIN_ROUNDS


def test_the_second_opinion_on_macs_is_recorded_and_no_reason_to_fail() -> None:
    found = measured("self-attn,self-attn[impl=sdpa]")
    assert found["self-attn"].columns["macs_fvcore"] == cells("self-attn")[0].create().macs(SIDE, SIDE)
    missed = json.loads(found["self-attn[impl=sdpa]"].columns["fvcore_missed_json"])
    assert "aten::scaled_dot_product_attention" in missed


def test_a_cell_is_measured_with_the_threads_that_were_asked_for(add: Callable[[str, Forward], None]) -> None:
    seen = set()

    def forward(x: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return x

    add("watched", forward)
    list(group(cells("watched"), Settings(threads=2), Monitor()))
    assert seen == {2}


# Rounds


@dataclass
class Rounds:
    """Who was sampled, in order."""

    order: list[str] = field(default_factory=list)

    def split(self, sizes: list[int]) -> list[list[str]]:
        iterator = iter(self.order)
        found = [list(itertools.islice(iterator, size)) for size in sizes]
        assert list(iterator) == []
        return found


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    found = Rounds()
    subject_sample, reference_sample = Subject.sample, Reference.sample

    def sample_subject(subject: Subject) -> None:
        found.order.append(subject.cell.label)
        subject_sample(subject)

    def sample_reference(reference: Reference) -> None:
        found.order.append("reference")
        reference_sample(reference)

    monkeypatch.setattr(Subject, "sample", sample_subject)
    monkeypatch.setattr(Reference, "sample", sample_reference)
    return found


def test_each_round_calls_each_block_and_the_reference_once(clock: Clock, rounds: Rounds) -> None:
    measured("none,a2,ccnet")
    for calls in rounds.split([4] * measure.MIN_ROUNDS):
        assert sorted(calls) == ["a2", "ccnet", "none", "reference"]


def test_the_order_changes_from_round_to_round_and_is_the_same_in_every_run(
    clock: Clock, rounds: Rounds
) -> None:
    measured("none,a2,ccnet")
    first = list(rounds.order)
    assert len({tuple(calls) for calls in rounds.split([4] * measure.MIN_ROUNDS)}) > 3
    rounds.order.clear()
    measured("none,a2,ccnet")
    assert rounds.order == first


def test_a_block_that_has_settled_leaves_and_the_others_go_on(
    clock: Clock, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "BUDGET_S", 1e9)
    noise = itertools.chain([9.0, 1.0] * 12, itertools.cycle([5.0]))
    clock.times = {"none": itertools.cycle([1.0]), "a2": noise}
    found = list(group(cells("a2,none"), Settings(), Monitor()))
    assert [cell.label for cell, _ in found] == ["none", "a2"], "each as soon as it is known"
    iterations = {cell.label: outcome.columns["iterations"] for cell, outcome in found}
    assert iterations["none"] == measure.MIN_ROUNDS < iterations["a2"] < measure.MAX_ROUNDS
    assert all(outcome.columns["converged"] for _, outcome in found)
    together = measure.MIN_ROUNDS
    alone = iterations["a2"] - together
    split = rounds.split([3] * together + [2] * alone)
    assert all(sorted(calls) == ["a2", "none", "reference"] for calls in split[:together])
    assert all(sorted(calls) == ["a2", "reference"] for calls in split[together:])


def test_a_cheap_block_gets_more_calls_than_a_dear_one_in_the_same_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = (1.0, 3.0, 9.0)  # so that neither settles
    clock.times = {
        "none": itertools.cycle(noisy),
        "a2": itertools.cycle([100 * time for time in noisy]),
    }
    found = {
        cell.label: outcome for cell, outcome in group(cells("none,a2"), Settings(budget_s=0.2), Monitor())
    }
    assert found["a2"].columns["iterations"] == measure.MIN_ROUNDS
    assert found["none"].columns["iterations"] > 3 * measure.MIN_ROUNDS


def test_a_block_that_does_not_settle_is_stopped_and_says_so(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "HALF_WIDTH", {"cpu": 0.02})
    clock.times = {"none": itertools.cycle([1.0, 9.0])}
    columns = measured("none")["none"].columns
    assert columns["converged"] is False
    assert columns["iterations"] == measure.MIN_ROUNDS


def test_rounds_end_even_if_the_budget_never_does(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BUDGET_S", 1e9)
    monkeypatch.setattr(measure, "MAX_ROUNDS", 25)
    clock.times = {"none": itertools.cycle([1.0, 9.0])}
    columns = measured("none")["none"].columns
    assert (columns["iterations"], columns["converged"]) == (25, False)


def test_garbage_is_collected_outside_the_rounds_and_again_afterwards(clock: Clock) -> None:
    states = set()
    clock.look = lambda moment, subject: states.add(gc.isenabled()) if clock.calls[10:] else None
    measured("none,a2")
    assert False in states
    assert gc.isenabled()


def test_the_user_is_told_what_is_being_done() -> None:
    told: list[str] = []

    class Log(Monitor):
        def working(self, text: str) -> None:
            told.append(text)

    list(group(cells("none,a2"), Settings(), Log()))
    for text in ("checking a2", "warming up none"):
        assert text in told


# Warm-up, time limits, and what else is recorded


@pytest.mark.parametrize(
    ("times", "calls"),
    [
        ([5.0, 5.1], 2),
        ([9.0, 5.0, 5.2], 3),
        ([8.0 * 0.7**power for power in range(20)], subjects.WARM_UP_CALLS),
    ],
    ids=["steady at once", "after one", "never"],
)
def test_warm_up_goes_on_until_two_calls_agree(clock: Clock, times: list[float], calls: int) -> None:
    marked = [100 * time for time in times[:calls]]  # the first call comes before
    clock.times = {"none": itertools.chain([1.0], marked, itertools.cycle([2.0]))}
    columns = measured("none")["none"].columns
    assert set(json.loads(columns["latency_samples_json"])) <= {2.0}
    assert columns["calls_s"] == pytest.approx((sum(marked) + 2.0 * columns["iterations"]) / 1000)


def test_a_block_that_uses_up_its_time_between_calls_ends_as_timeout_and_the_others_go_on(
    clock: Clock,
) -> None:
    clock.times = {"a2": itertools.chain([1.0] * 5, itertools.cycle([60_000.0]))}
    found = {
        cell.label: outcome for cell, outcome in group(cells("none,a2"), Settings(timeout_s=30), Monitor())
    }
    assert (found["a2"].status, found["none"].status) == ("timeout", "ok")
    assert found["a2"].columns["reason"] == "took more than 30 s"
    assert "latency_ms_median" not in found["a2"].columns


def test_a_call_too_short_for_the_clock_is_timed_many_at_a_time(clock: Clock) -> None:
    clock.times = {"none": itertools.cycle([0.05]), "a2": itertools.cycle([5.0])}
    found = measured("none,a2")
    assert found["a2"].columns["calls_per_iteration"] == 1
    assert found["none"].columns["calls_per_iteration"] == 20
    assert found["none"].columns["latency_ms_median"] == pytest.approx(0.05 / 20)
    assert measured("none", mode="train")["none"].columns["calls_per_iteration"] == 1


def test_the_kernels_of_fused_attention_are_recorded() -> None:
    found = measured("none,self-attn[impl=sdpa],self-attn")
    assert found["self-attn[impl=sdpa]"].columns["sdpa_backend"] == "flash_attention_for_cpu"
    assert found["none"].columns["sdpa_backend"] is found["self-attn"].columns["sdpa_backend"] is None


@pytest.mark.parametrize("grad", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize(
    ("backend", "name"),
    [(SDPBackend.FLASH_ATTENTION, "flash_attention_for_cpu"), (SDPBackend.MATH, "math")],
)
def test_the_kernel_of_fused_attention_is_seen_in_any_mode(grad: Any, backend: SDPBackend, name: str) -> None:
    q = torch.randn(1, 1, 8, 16)
    with sdpa_kernel(backend), grad(), AttentionKernels() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert seen.kernels == {name}


def test_what_was_timed_together_can_be_told_from_what_was_not() -> None:
    first, again = measured("none,a2"), measured("none")
    assert first["none"].columns["rounds_id"] == first["a2"].columns["rounds_id"]
    assert first["none"].columns["rounds_id"] != again["none"].columns["rounds_id"]


def test_the_speed_of_the_reference_follows_from_its_time(clock: Clock) -> None:
    clock.times = {"reference": itertools.cycle([2.0])}
    columns = measured("none")["none"].columns
    assert columns["reference_ms_median"] == 4.0  # of CPU time
    assert columns["reference_gflops"] == pytest.approx(2 * 8**3 / 4e-3 / 1e9)


@pytest.mark.parametrize("throttled", [3, 10**9])
def test_rounds_of_a_throttled_device_do_not_count(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, throttled: int
) -> None:
    left = itertools.chain([True] * min(throttled, 200), itertools.repeat(False))
    monkeypatch.setattr(measure, "is_throttled", lambda device: next(left))
    monkeypatch.setattr(measure, "MAX_THROTTLED", 7)
    monkeypatch.setattr(measure, "COOLING_S", 0.0)
    clock.times = {"none": itertools.count(start=10.0)}
    columns = measured("none")["none"].columns
    samples = json.loads(columns["latency_samples_json"])
    assert len(samples) == measure.MIN_ROUNDS
    assert samples == [samples[0] + number for number in range(measure.MIN_ROUNDS)]
    warm = 10.0 + 1 + subjects.WARM_UP["cpu"][0]
    assert samples[0] == warm + min(throttled, 7)


def test_throttled_rounds_count_neither_for_a_block_nor_for_the_reference(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttled = itertools.chain([False, False], [True] * 30, itertools.repeat(False))
    monkeypatch.setattr(measure, "is_throttled", lambda device: next(throttled))
    monkeypatch.setattr(measure, "COOLING_S", 0.0)
    clock.times = {
        "none": itertools.count(start=10.0),  # one first call and two of warm-up come before
        "reference": itertools.chain([1.0] * 5, [1000.0] * 30, itertools.cycle([2.0])),
    }
    columns = measured("none")["none"].columns
    assert json.loads(columns["latency_samples_json"]) == [13.0, 14.0, *map(float, range(45, 53))]
    assert columns["reference_ms_median"] == 4.0  # of CPU time
    assert columns["iterations"] == measure.MIN_ROUNDS


def test_the_samples_are_recorded_as_the_clock_gave_them(clock: Clock) -> None:
    times = [5 + number / 7 for number in range(40)]
    clock.times = {"none": iter([5.0, 5.0, 5.0, *times])}
    columns = measured("none")["none"].columns
    seen = times[: columns["iterations"]]
    assert json.loads(columns["latency_samples_json"]) == [round(time, 6) for time in seen]
    assert json.loads(columns["latency_cpu_samples_json"]) == [round(2 * time, 6) for time in seen]


def test_a_block_that_uses_up_its_time_in_warm_up_takes_part_in_no_round(
    clock: Clock, rounds: Rounds
) -> None:
    clock.times = {"a2": itertools.cycle([60_000.0])}
    found = dict(group(cells("none,a2"), Settings(timeout_s=30), Monitor()))
    assert {cell.label: outcome.status for cell, outcome in found.items()} == {"none": "ok", "a2": "timeout"}
    assert clock.calls.count("a2") == 2, "the first call, and one of warm-up"
    assert set(rounds.order) == {"none", "reference"}


# One block's misfortune is no other's


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is infinite at full size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf") if full_size(gradient) else gradient


def test_a_gradient_that_is_not_finite_harms_no_other_block(add: Callable[[str, Forward], None]) -> None:
    add("overflows", Overflow.apply)
    found = measured("overflows,none,a2", mode="train")
    status = {name: outcome.status for name, outcome in found.items()}
    assert status == {"overflows": "invalid", "none": "ok", "a2": "ok"}


def test_a_cell_whose_columns_cannot_be_had_is_told_so_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Subject.columns

    def broken(subject: Subject, reference: Reference) -> dict[str, Any]:
        if subject.cell.label == "none":
            raise OSError("no clock")
        return columns(subject, reference)

    monkeypatch.setattr(Subject, "columns", broken)
    status = {name: outcome.status for name, outcome in measured("none,a2").items()}
    assert status == {"none": "error", "a2": "ok"}


def test_a_reference_too_fast_for_the_clock_gives_no_ratio(clock: Clock) -> None:
    clock.times = {"reference": itertools.repeat(0.0)}
    columns = measured("none")["none"].columns
    assert columns["latency_ref_ratio"] is columns["reference_gflops"] is None
