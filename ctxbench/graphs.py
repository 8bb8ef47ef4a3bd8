"""A call recorded as a CUDA graph: its replay costs what the device needs, and one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import Any

import torch

from ctxbench.clocks import Sample, cuda_clock
from ctxbench.errors import RAISED, first_line
from ctxbench.statistics import median

WARM_UP = 3
FEWEST, MOST = 10, 1000  # replays
ENOUGH_S = 0.5


@dataclass(frozen=True)
class Replays:
    """The times of a graph's replays, or the reason why there are none; and the seconds all of it took."""

    seconds: float
    samples: list[Sample] = field(default_factory=list)
    reason: str | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of the record that speak of the graph."""
        if not self.samples:
            return {"graph_reason": self.reason}
        wall = median([sample.wall_ms for sample in self.samples])
        return {
            "latency_graph_ms_median": wall.value,
            "latency_graph_ms_ci_low": wall.low,
            "latency_graph_ms_ci_high": wall.high,
        }


def replayed(call: Callable[[], object], tidy: Callable[[], None], device: int) -> Replays:
    """Capture `call` and time its replays; the graph and its memory are given up again.

    `tidy` drops what a call leaves behind. What cannot be captured, such as a wait for the device, is
    no error of the block's.
    """
    start = perf_counter()
    try:
        clock, graph = cuda_clock(device), capture(call, tidy, side_stream(device))
        samples: list[Sample] = []
        while len(samples) < FEWEST or (len(samples) < MOST and spent(samples) < ENOUGH_S):
            samples.append(clock(graph.replay))
    except RAISED as error:
        return Replays(perf_counter() - start, reason=first_line(origin(error)))
    return Replays(perf_counter() - start, samples)


def origin(error: BaseException) -> BaseException:
    """What came first: that a capture was broken off says less than what broke it off."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@cache
def side_stream(device: int) -> torch.cuda.Stream:
    """One for all captures: each stream keeps a work space of its own."""
    return torch.cuda.Stream(device)


def spent(samples: list[Sample]) -> float:
    return sum(sample.wall_ms for sample in samples) / 1000


def capture(
    call: Callable[[], object], tidy: Callable[[], None], stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    """Record `call` on a stream of its own, after a few calls there as capturing asks for.

    Raises:
        Exception: whatever stops a call from being recorded.
    """
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
            tidy()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    tidy()
    return graph
