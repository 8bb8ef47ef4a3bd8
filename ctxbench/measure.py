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
from typing import Any

import torch
from torch import Tensor

from ctxbench import gate
from ctxbench.clocks import Sample, cpu_clock, cuda_clock
from ctxbench.cost import count_with_fvcore
from ctxbench.errors import RAISED, first_line
from ctxbench.spec import Cell
from ctxbench.statistics import Median, median

MIN_ROUNDS, MAX_ROUNDS = 10, 1000
HALF_WIDTH = {"cpu": 0.02, "cuda": 0.01}  # of the median's interval, where a cell stops
WARM_UP = {"cpu": (2, 0.0), "cuda": (3, 0.025)}  # at least so many calls and seconds
BUDGET_S = 2.0  # of timed calls per cell, once MIN_ROUNDS are done
REFERENCE_SIDE = {"cpu": 768, "cuda": 8192}


@dataclass
class Outcome:
    """What became of a cell: the columns of its record that measuring fills in."""

    status: str
    columns: dict[str, Any] = field(default_factory=dict)


def group(
    cells: list[Cell],
    threads: int,
    budget_s: float | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Cell, Outcome]]:
    """Measure cells that differ in the block alone; yields each cell once, as soon as it is known.

    All blocks get the same input. They are timed in rounds: each round calls every block and the
    reference once, in random order, so that a drift of the machine meets all alike. A block leaves
    when it has settled or its calls have taken `budget_s` (None: BUDGET_S), but not before MIN_ROUNDS.
    """
    budget_s = BUDGET_S if budget_s is None else budget_s
    torch.set_num_threads(threads)
    try:
        if cells[0].compiled:
            prepare_compiler()
        load = Load.of(cells[0])
        reference = Reference(load.x)
    except Exception as error:
        yield from ((cell, failure(error, 0.0)) for cell in cells)
        return
    subjects: list[Subject] = []
    for cell in cells:
        on_step(f"checking {cell.label}")
        start = time.perf_counter()
        try:
            gate.check(cell.create, cell.device, getattr(torch, cell.dtype))
            subjects.append(Subject(cell, load, start))
        except RAISED as error:
            load.restore()
            yield cell, failure(error, time.perf_counter() - start)
    waiting = dict.fromkeys(subjects)
    try:
        for subject in timed(subjects, reference, budget_s, on_step):
            del waiting[subject]
            yield subject.cell, subject.failed or Outcome("ok", subject.columns(reference))
    except RAISED as error:  # the reference itself, or the device, gave up
        yield from ((subject.cell, failure(error, subject.spent_s)) for subject in waiting)


def timed(
    subjects: list[Subject], reference: Reference, budget_s: float, on_step: Callable[[str], None]
) -> Iterator[Subject]:
    """Rounds over the subjects until each has converged or spent its budget; yields each at its end."""
    shuffle = random.Random(0).shuffle
    active = list(subjects)
    if active:
        reference.warm_up()
    for subject in subjects:
        on_step(f"warming up {subject.cell.label}")
        subject.warm_up()
    with no_garbage_collection():
        for number in range(MAX_ROUNDS + 1):
            for subject in list(active):
                spent = subject.timed_s >= budget_s or number == MAX_ROUNDS
                over = number >= MIN_ROUNDS and (spent or subject.converged)
                if over or subject.failed is not None:
                    active.remove(subject)
                    yield subject
            if not active:
                return
            on_step(f"round {number + 1}, {len(active)} of {len(subjects)} not yet settled")
            order: list[Subject | Reference] = [*active, reference]
            shuffle(order)
            for each in order:
                each.sample()


@dataclass(frozen=True)
class Load:
    """What all blocks of a group are given: the input and, in training, the output's gradient."""

    seed: int
    x: Tensor
    gradient: Tensor | None

    @classmethod
    def of(cls, cell: Cell) -> Load:
        torch.manual_seed(cell.seed)
        empty = torch.empty(cell.shape, device=cell.device, dtype=getattr(torch, cell.dtype))
        gradient = torch.randn(cell.shape).to(empty) if cell.training else None
        load = cls(cell.seed, empty.requires_grad_(cell.training), gradient)
        load.restore()
        return load

    @torch.no_grad()
    def restore(self) -> None:
        """Draw the input, or draw it again after a block that may have modified it."""
        generator = torch.Generator().manual_seed(self.seed)
        self.x.copy_(torch.randn(self.x.shape, generator=generator))


class Subject:
    """A cell's block, ready to be called again and again.

    Its gates are open (`gate.wake`): products with zeros would draw less power, and run faster.

    Raises:
        gate.BrokenRuleError: when the block does not keep the rules at full size, or compiled.
    """

    def __init__(self, cell: Cell, load: Load, start: float) -> None:
        self.cell, self.x, self.gradient = cell, load.x, load.gradient
        self.samples: list[Sample] = []
        self.failed: Outcome | None = None
        self.clock = cuda_clock(load.x.get_device()) if load.x.is_cuda else cpu_clock
        torch.manual_seed(cell.seed)
        self.eager = gate.wake(cell.create()).to(load.x.device, load.x.dtype)
        self.block: Callable[[Tensor], Tensor] = self.eager
        if cell.compiled:
            self.block = torch.compile(self.eager, dynamic=False)
        self.first_call_ms = cpu_clock(self.call_and_wait).wall_ms
        self.check_full_size()
        self.memory_bytes = self.allocator_peak() if load.x.is_cuda else None
        self.fvcore = None if cell.compiled else count_with_fvcore(self.eager, self.x.detach())
        self.preparation_s = time.perf_counter() - start

    def call(self) -> None:
        """Forward, and backward in training: what is timed."""
        if self.gradient is None:
            with torch.inference_mode():
                self.block(self.x)
        else:
            self.block(self.x).backward(self.gradient)

    def call_and_wait(self) -> None:
        self.call()
        if self.x.is_cuda:
            torch.cuda.synchronize()

    def tidy(self) -> None:
        """Drop the gradients, outside the timed span."""
        self.x.grad = None
        self.eager.zero_grad(set_to_none=True)

    def check_full_size(self) -> None:
        """What the gate cannot see on its small input, after the first call."""
        for gradient in (self.x.grad, *(parameter.grad for parameter in self.eager.parameters())):
            finite = gradient is None or bool(gradient.isfinite().all())
            gate.require(finite, "the gradients are finite at full size")
        self.tidy()
        x = self.x.detach()
        before = x.clone()
        with torch.no_grad():
            gate.check_output(self.block(x), x, before, " at full size")
            if self.cell.compiled:
                self.eager.eval()  # training draws random numbers that compiling changes
                error = gate.relative_error(self.block(x), self.eager(x))
                self.eager.train(self.cell.training)
                agrees = f"compiled agrees with eager (relative error {error:.2g})"
                gate.require(error <= gate.TOLERANCE[x.dtype], agrees)

    def allocator_peak(self) -> int:
        """Peak of CUDA's allocator in one call after another: block counted, input left out."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.call_and_wait()
        above = torch.cuda.max_memory_allocated() - before
        self.tidy()
        own = [*self.eager.parameters(), *self.eager.buffers()]
        storages = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, own)}
        return above + sum(storages.values())

    def warm_up(self) -> None:
        calls, seconds = WARM_UP[self.cell.device]
        start, done = time.perf_counter(), 0
        while self.failed is None and (done < calls or time.perf_counter() - start < seconds):
            self.attempt()
            done += 1

    def sample(self) -> None:
        if sample := self.attempt():
            self.samples.append(sample)

    def attempt(self) -> Sample | None:
        """One call by the clock; one that raises is the end of this subject."""
        try:
            sample = self.clock(self.call)
            self.tidy()
            return sample
        except RAISED as error:
            self.failed = failure(error, self.spent_s)
            return None

    @property
    def spent_s(self) -> float:
        """Seconds given to this cell: its checks, then its calls."""
        return self.preparation_s + self.timed_s

    @property
    def timed_s(self) -> float:
        """Seconds of its timed calls."""
        return sum(sample.wall_ms for sample in self.samples) / 1000

    @property
    def wall(self) -> Median:
        return median([sample.wall_ms for sample in self.samples])

    @property
    def converged(self) -> bool:
        return self.wall.half_width <= HALF_WIDTH[self.cell.device]

    def columns(self, reference: Reference) -> dict[str, Any]:
        """The measured columns of the record."""
        wall, cpu = self.wall, median([sample.cpu_ms for sample in self.samples]).value
        own, unit = (wall.value, reference.wall_ms) if self.x.is_cuda else (cpu, reference.cpu_ms)
        return {
            "wall_s": self.spent_s,
            "memory_measured_bytes": self.memory_bytes,
            "memory_source": "predicted" if self.memory_bytes is None else "allocator",
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
        side = REFERENCE_SIDE[like.device.type]
        a, b = torch.randn(2, side, side).to(like.device, like.dtype)
        self.product = lambda: torch.mm(a, b)
        self.clock = cuda_clock(like.get_device()) if like.is_cuda else cpu_clock
        self.samples: list[Sample] = []

    def warm_up(self) -> None:
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


def prepare_compiler() -> None:
    """Forget what was compiled, and let a graph that cannot be compiled fail instead of running eager."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 1000
    torch._dynamo.config.fail_on_recompile_limit_hit = True


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


def failure(error: BaseException, seconds: float) -> Outcome:
    """The outcome of a cell whose block raised `error`; nothing measured of it is kept."""
    columns: dict[str, Any] = {"reason": first_line(error), "wall_s": seconds}
    if isinstance(error, gate.BrokenRuleError):
        return Outcome("invalid", columns)
    status = "oom" if is_out_of_memory(error) else "error"
    return Outcome(status, columns | {"error_type": type(error).__name__})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: CUDA has its own class, the CPU and libraries only their words."""
    message = first_line(error)
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(each in message for each in words)
