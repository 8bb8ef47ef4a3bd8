"""What becomes of a CUDA graph's times, told with stand-ins for the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ctxbench import graphs
from ctxbench.clocks import Sample


def nothing() -> None:
    pass


def replayed(monkeypatch: pytest.MonkeyPatch, replay: Callable[[], None], *times_ms: float) -> graphs.Replays:
    """What is told of a graph with this replay, whose calls take so long, over and over."""
    taken = itertools.cycle(times_ms)

    def clock(call: Callable[[], object]) -> Sample:
        call()
        return Sample(next(taken), 0.0)

    monkeypatch.setattr(graphs, "cuda_clock", lambda device: clock)
    monkeypatch.setattr(graphs, "side_stream", lambda device: None)
    monkeypatch.setattr(graphs, "capture", lambda call, tidy, stream: SimpleNamespace(replay=replay))
    return graphs.replayed(nothing, nothing, 0)


def test_a_graph_is_replayed_until_it_is_well_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = replayed(monkeypatch, nothing, 1.0, 2.0, 3.0)
    assert 250 <= len(found.samples) <= 251
    columns = found.columns
    assert columns["latency_graph_ms_median"] == 2
    assert 1 <= columns["latency_graph_ms_ci_low"] <= 2 <= columns["latency_graph_ms_ci_high"] <= 3


@pytest.mark.parametrize(("time_ms", "count"), [(1e4, graphs.FEWEST), (1e-4, graphs.MOST)])
def test_neither_too_few_replays_nor_too_many(
    monkeypatch: pytest.MonkeyPatch, time_ms: float, count: int
) -> None:
    assert len(replayed(monkeypatch, nothing, time_ms).samples) == count


def test_a_replay_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("an illegal memory access\nand more")

    found = replayed(monkeypatch, fail, 1.0)
    assert found.columns == {"graph_reason": "an illegal memory access"}


def test_a_call_that_cannot_be_captured_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: Any, tidy: Any, stream: Any) -> None:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("failed due to a previous error during capture")

    monkeypatch.setattr(graphs, "side_stream", lambda device: None)
    monkeypatch.setattr(graphs, "cuda_clock", lambda device: None)
    monkeypatch.setattr(graphs, "capture", refuse)
    found = graphs.replayed(nothing, nothing, 0)
    assert found.columns == {"graph_reason": "operation not permitted when stream is capturing"}
    assert found.seconds >= 0
