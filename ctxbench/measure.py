"""Measures one group of cells, in this process: correctness gate, allocator peak, latency rounds."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ctxbench import gate
from ctxbench.cost import count_with_fvcore
from ctxbench.spec import Cell
from ctxbench.statistics import Median, median

MIN_ROUNDS, MAX_ROUNDS = 10, 1000
HALF_WIDTH = {"cpu": 0.02, "cuda": 0.01}  # of the median's interval, where a cell stops
WARM_UP = {"cpu": (2, 0.0), "cuda": (3, 0.025)}  # at least so many calls and seconds
BUDGET_S = 2.0  # of rounds per cell, once MIN_ROUNDS are done
REFERENCE_SIDE = 768


@dataclass
class Sample:
    """One call: wall and CPU milliseconds. On CUDA the wall time is the device's."""

    wall_ms: float
    cpu_ms: float


@dataclass
class Outcome:
    """What became of a cell: the columns of its record that measuring fills in."""

    status: str
    columns: dict[str, Any] = field(default_factory=dict)


def group(
    cells: list[Cell], threads: int, on_round: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[Cell, Outcome]]:
    """Measure cells that differ in the block alone; yields each cell once, as soon as it is known.

    Cells that fail are yielded first. The others are timed in rounds: each round calls every block
    and the reference once, in random order, so that a drift of the machine meets all alike.
    """
    torch.set_num_threads(threads)
    subjects = []
    for cell in cells:
        on_round(f"checking {cell.label}")
        try:
            subjects.append(Subject(cell))
        except Exception as error:
            yield cell, failure(error)
    ready = []
    for subject in subjects:
        try:
            on_round(f"warming up {subject.cell.label}")
            subject.prepare()
            ready.append(subject)
        except Exception as error:
            yield subject.cell, failure(error)
    if not ready:
        return
    reference = Reference(ready[0].x)
    for subject in timed(ready, reference, on_round):
        if subject.failed is not None:
            yield subject.cell, subject.failed
        else:
            yield subject.cell, Outcome("ok", subject.columns(reference))


def timed(
    subjects: list[Subject], reference: Reference, on_round: Callable[[str], None]
) -> Iterator[Subject]:
    """Rounds over the subjects until each has converged or the budget is spent; yields each at its end."""
    shuffle = random.Random(0).shuffle
    deadline = time.perf_counter() + BUDGET_S * len(subjects)
    active = list(subjects)
    with no_garbage_collection():
        for number in range(1, MAX_ROUNDS + 1):
            order: list[Subject | Reference] = [*active, reference]
            shuffle(order)
            for each in order:
                each.sample()
            late = time.perf_counter() > deadline or number == MAX_ROUNDS
            for subject in list(active):
                over = number >= MIN_ROUNDS and (subject.converged or late)
                if over or subject.failed is not None:
                    active.remove(subject)
                    yield subject
            if not active:
                return
            on_round(f"round {number}, {len(active)} of {len(subjects)} not yet settled")


class Subject:
    """A cell's block with its input, ready to be called again and again.

    Raises:
        gate.BrokenRuleError: when the block does not pass the correctness gate.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        device, dtype = torch.device(cell.device), getattr(torch, cell.dtype)
        self.failed: Outcome | None = None
        self.samples: list[Sample] = []
        torch.manual_seed(cell.seed)
        gate.check(cell.create, cell.device, dtype)
        self.eager = cell.create().to(device, dtype)
        self.block: Callable[[Tensor], Tensor] = torch.compile(self.eager) if cell.compiled else self.eager
        self.x = torch.randn(cell.shape).to(device, dtype).requires_grad_(cell.training)
        self.gradient = torch.randn(cell.shape).to(device, dtype) if cell.training else None
        self.clock = cuda_clock(device) if device.type == "cuda" else cpu_clock

    def call(self) -> None:
        """Forward, and backward in training: what is timed."""
        if self.gradient is None:
            with torch.inference_mode():
                self.block(self.x)
        else:
            self.block(self.x).backward(self.gradient)

    def call_and_wait(self) -> None:
        self.call()
        if self.cell.device == "cuda":
            torch.cuda.synchronize()

    def tidy(self) -> None:
        """Drop the gradients, outside the timed span."""
        self.x.grad = None
        self.eager.zero_grad(set_to_none=True)

    def prepare(self) -> None:
        """First call, check at full size, allocator's peak, fvcore's count and warm-up."""
        if self.cell.compiled:
            self.check_compiled()
        self.first_call_ms = cpu_clock(self.call_and_wait).wall_ms
        self.tidy()
        with torch.no_grad():
            if not self.block(self.x.detach()).isfinite().all():
                raise gate.BrokenRuleError("broken rule: the output is finite at full size")
        self.memory_bytes = self.allocator_peak()
        self.fvcore = None if self.cell.compiled else count_with_fvcore(self.eager, self.x.detach())
        calls, seconds = WARM_UP[self.cell.device]
        start, done = time.perf_counter(), 0
        while done < calls or time.perf_counter() - start < seconds:
            self.clock(self.call)
            self.tidy()
            done += 1

    def check_compiled(self) -> None:
        with torch.no_grad():
            x = self.x.detach()
            error = gate.relative_error(self.block(x), self.eager(x))
        gate.require(
            error <= gate.TOLERANCE[x.dtype], f"compiled agrees with eager (relative error {error:.2g})"
        )

    def allocator_peak(self) -> int | None:
        """Peak of CUDA's allocator in one call after warm-up: block counted, input left out."""
        if self.cell.device != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.call_and_wait()
        above = torch.cuda.max_memory_allocated() - before
        self.tidy()
        own = [*self.eager.parameters(), *self.eager.buffers()]
        return above + sum(tensor.untyped_storage().nbytes() for tensor in own)

    def sample(self) -> None:
        try:
            self.samples.append(self.clock(self.call))
            self.tidy()
        except Exception as error:
            self.failed = failure(error)

    @property
    def wall(self) -> Median:
        return median([sample.wall_ms for sample in self.samples])

    @property
    def converged(self) -> bool:
        return self.wall.half_width <= HALF_WIDTH[self.cell.device]

    def columns(self, reference: Reference) -> dict[str, Any]:
        """The measured columns of the record."""
        wall, cpu = self.wall, median([sample.cpu_ms for sample in self.samples]).value
        own, unit = (wall.value, reference.wall_ms) if self.cell.device == "cuda" else (cpu, reference.cpu_ms)
        memory = {}
        if self.memory_bytes is not None:
            memory = {"memory_measured_bytes": self.memory_bytes, "memory_source": "allocator"}
        return memory | {
            "latency_ms_median": wall.value,
            "latency_ms_ci_low": wall.low,
            "latency_ms_ci_high": wall.high,
            "latency_cpu_ms_median": cpu,
            "latency_ref_ratio": own / unit,
            "iterations": len(self.samples),
            "converged": self.converged,
            "first_call_ms": self.first_call_ms,
            "images_per_s": 1000 * self.cell.batch / wall.value if wall.value else None,
            "latency_samples_json": json.dumps([round(sample.wall_ms, 4) for sample in self.samples]),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "macs_fvcore": self.fvcore and self.fvcore.macs,
            "fvcore_missed_json": self.fvcore and json.dumps(self.fvcore.missed_ops),
        }


class Reference:
    """A square matrix product: the machine's own measure of speed, in the same rounds."""

    def __init__(self, like: Tensor) -> None:
        a, b = torch.randn(2, REFERENCE_SIDE, REFERENCE_SIDE).to(like.device, like.dtype)
        self.product = lambda: torch.mm(a, b)
        self.clock = cuda_clock(like.device) if like.is_cuda else cpu_clock
        self.samples: list[Sample] = []
        for _ in range(3):
            self.clock(self.product)

    def sample(self) -> None:
        self.samples.append(self.clock(self.product))

    @property
    def wall_ms(self) -> float:
        return median([sample.wall_ms for sample in self.samples]).value

    @property
    def cpu_ms(self) -> float:
        return median([sample.cpu_ms for sample in self.samples]).value


def cpu_clock(call: Callable[[], object]) -> Sample:
    """Wall and CPU time of one call; the CPU time is that of all threads of this process."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    call()
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    return Sample(wall / 1e6, cpu / 1e6)


@cache
def cuda_clock(device: torch.device) -> Callable[[Callable[[], object]], Sample]:
    """A clock that reads CUDA events, with the level-2 cache emptied before each call."""
    cache_bytes = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(cache_bytes, dtype=torch.int8, device=device)

    def clock(call: Callable[[], object]) -> Sample:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda.synchronize(device)
        cpu = time.process_time_ns()
        start.record()
        call()
        end.record()
        cpu = time.process_time_ns() - cpu
        torch.cuda.synchronize(device)
        return Sample(start.elapsed_time(end), cpu / 1e6)

    return clock


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def failure(error: Exception) -> Outcome:
    """The outcome of a cell whose block raised `error`; nothing measured of it is kept."""
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    if isinstance(error, gate.BrokenRuleError):
        return Outcome("invalid", {"reason": reason})
    status = "oom" if is_out_of_memory(error) else "error"
    return Outcome(status, {"reason": reason, "error_type": type(error).__name__})


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: CUDA has its own class, the CPU allocator only its words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
