"""A block made ready to be called again and again, and the matrix product it is compared with."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ctxbench import environment, gate
from ctxbench.clocks import Sample, cpu_clock, cuda_clock, frequency_mhz
from ctxbench.cost import Spy, count_with_fvcore
from ctxbench.errors import RAISED, DeviceLostError, first_line
from ctxbench.outcome import Outcome, failure, overdue
from ctxbench.spec import Cell
from ctxbench.statistics import Median, median

HALF_WIDTH = {"cpu": 0.02, "cuda": 0.01}  # of the median's interval, where a cell stops
WARM_UP = {"cpu": (2, 0.0), "cuda": (3, 0.025)}  # at least so many calls and seconds
WARM_UP_CALLS = 10  # and at most so many, where successive calls do not agree
AGREEMENT = 0.1
SHORTEST_MS = 1.0  # a CPU's sample of inference: below, the clock and cold caches would be most of it
MOST_CALLS = 1000  # in one sample
REFERENCE_SIDE = {"cpu": 768, "cuda": 8192}
FUSED, UNFUSED = "_scaled_dot_product_", {"attention_math"}


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
        """Draw the input, or draw it again after a block that may have left it otherwise."""
        self.x.grad = None
        generator = torch.Generator().manual_seed(self.seed)
        self.x.copy_(torch.randn(self.x.shape, generator=generator))


class Subject:
    """A cell's block, ready to be called again and again.

    Its gates are open (`gate.wake`): products with zeros would draw less power, and run faster.

    Raises:
        gate.BrokenRuleError: when the block does not keep the rules at full size, or compiled.
    """

    def __init__(self, cell: Cell, load: Load, start: float, timeout_s: float = float("inf")) -> None:
        self.cell, self.x, self.gradient, self.timeout_s = cell, load.x, load.gradient, timeout_s
        self.samples: list[Sample] = []
        self.failed: Outcome | None = None
        self.calls_s = 0.0  # spent in warm-up and timed calls
        self.repeats = 1  # calls in one sample
        self.clock = cuda_clock(load.x.get_device()) if load.x.is_cuda else cpu_clock
        torch.manual_seed(cell.seed)
        self.eager = gate.wake(cell.create()).to(load.x.device, load.x.dtype)
        self.block: Callable[[Tensor], Tensor] = self.eager
        if cell.compiled:
            self.block = torch.compile(self.eager, dynamic=False)
        self.attention_kernels: set[str] = set()
        self.kept: list[Tensor] = []  # the first call's output, until it is checked
        with gate.untouched_settings():
            self.first_call_ms = self.first_call()
        self.memory_bytes = self.allocator_peak() if load.x.is_cuda else None
        self.fvcore = None if cell.compiled else count_with_fvcore(self.eager, self.x.detach())
        self.preparation_s = perf_counter() - start

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph of it is timed as well."""
        return not self.cell.compiled

    def call(self) -> Tensor:
        """Forward, and backward in training: what is timed. Returns the output."""
        if self.gradient is None:
            with torch.inference_mode():
                return self.block(self.x)
        y = self.block(self.x)
        y.backward(self.gradient)
        return y

    def call_repeatedly(self) -> None:
        """What one sample holds."""
        for _ in range(self.repeats):
            self.call()

    def call_and_wait(self) -> Tensor:
        y = self.call()
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return y

    def call_and_keep(self) -> None:
        self.kept.append(self.call_and_wait())

    def tidy(self) -> None:
        """Drop the gradients, outside the timed span."""
        self.x.grad = None
        self.eager.zero_grad(set_to_none=True)

    def first_call(self) -> float:
        """Milliseconds of the first call, whose results must be what the gate cannot see on small input."""
        x, before = self.x.detach(), self.x.detach().clone()
        attention = AttentionKernels()
        with contextlib.nullcontext() if self.cell.compiled else attention:
            taken = cpu_clock(self.call_and_keep)
        for gradient in (self.x.grad, *(parameter.grad for parameter in self.eager.parameters())):
            finite = gradient is None or bool(gradient.isfinite().all())
            gate.require(finite, "the gradients are finite at full size")
        self.tidy()
        gate.check_output(self.kept.pop(), x, before, " at full size")
        if self.cell.compiled:
            self.check_compiled(x, before, attention)
        self.attention_kernels = attention.kernels
        return taken.wall_ms

    @torch.no_grad()
    def check_compiled(self, x: Tensor, before: Tensor, attention: AttentionKernels) -> None:
        with attention:
            gate.check_output(self.eager(x), x, before, " at full size")
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
        """Call until it is done often and long enough, and two calls took about the same time."""
        calls, seconds = WARM_UP[self.cell.device]
        before, done, steady = self.calls_s, 0, False
        last: Sample | None = None
        while self.failed is None and (
            done < calls or self.calls_s - before < seconds or not (steady or done >= WARM_UP_CALLS)
        ):
            sample = self.attempt()
            if sample and last:
                steady = abs(sample.wall_ms - last.wall_ms) <= AGREEMENT * last.wall_ms
            last, done = sample, done + 1
        if last and not self.x.is_cuda and self.gradient is None and last.wall_ms < SHORTEST_MS:
            self.repeats = min(
                MOST_CALLS, math.ceil(SHORTEST_MS / max(last.wall_ms, SHORTEST_MS / MOST_CALLS))
            )

    def sample(self) -> None:
        """One timed call."""
        if sample := self.attempt():
            self.samples.append(sample)

    def forget_last(self) -> None:
        """Drop the last timed call: the device did not run at its speed."""
        del self.samples[-1:]

    def attempt(self) -> Sample | None:
        """The time of one call; one that raises, or uses up the cell's time, is the end of this subject."""
        try:
            with gate.untouched_settings():
                taken = self.clock(self.call_repeatedly)
            self.tidy()
        except RAISED as error:
            self.failed = failure(error, self.spent_s)
            require_device(self.x)
            self.tidy()
            return None
        self.calls_s += taken.wall_ms / 1000
        if self.spent_s > self.timeout_s:
            self.failed = overdue(self.timeout_s, self.spent_s)
            return None
        return Sample(taken.wall_ms / self.repeats, taken.cpu_ms / self.repeats)

    @property
    def spent_s(self) -> float:
        """Seconds given to this cell: its checks, then its calls."""
        return self.preparation_s + self.calls_s

    @property
    def timed_s(self) -> float:
        """Seconds of its timed calls."""
        return sum(sample.wall_ms for sample in self.samples) * self.repeats / 1000

    @property
    def wall(self) -> Median:
        return median([sample.wall_ms for sample in self.samples])

    @property
    def converged(self) -> bool:
        return bool(self.samples) and self.wall.half_width <= HALF_WIDTH[self.cell.device]

    @property
    def attention_backend(self) -> str | None:
        """The kernels of fused attention; of a compiled block, those that it has when it is not."""
        names = ", ".join(sorted(self.attention_kernels))
        return f"{names} (eager)" if names and self.cell.compiled else names or None

    def columns(self, reference: Reference) -> dict[str, Any]:
        """The measured columns of the record."""
        wall, cpu = self.wall, median([sample.cpu_ms for sample in self.samples]).value
        own = wall.value if self.x.is_cuda else cpu
        return {
            "wall_s": self.spent_s,
            "calls_s": self.calls_s,
            "memory_measured_bytes": self.memory_bytes,
            "memory_source": "predicted" if self.memory_bytes is None else "allocator",
            "latency_ms_median": wall.value,
            "latency_ms_ci_low": wall.low,
            "latency_ms_ci_high": wall.high,
            "latency_cpu_ms_median": cpu,
            "latency_ref_ratio": own / reference.ms if reference.ms else None,
            "reference_ms_median": reference.ms,
            "reference_ms_ci_low": reference.median.low,
            "reference_ms_ci_high": reference.median.high,
            "reference_gflops": reference.gflops,
            "iterations": len(self.samples),
            "calls_per_iteration": self.repeats,
            "converged": self.converged,
            "first_call_ms": self.first_call_ms,
            "images_per_s": 1000 * self.cell.batch / wall.value if wall.value else None,
            "latency_samples_json": json.dumps([round(sample.wall_ms, 6) for sample in self.samples]),
            "latency_cpu_samples_json": json.dumps([round(sample.cpu_ms, 6) for sample in self.samples]),
            "sdpa_backend": self.attention_backend,
            "clock_mhz": frequency_mhz(self.cell.device),
            "load_average": environment.load_average(),
            "macs_fvcore": self.fvcore and self.fvcore.macs,
            "fvcore_missed_json": self.fvcore and json.dumps(self.fvcore.missed_ops),
        }


def require_device(x: Tensor) -> None:
    """After some errors nothing runs on a CUDA device in this process any more.

    Raises:
        DeviceLostError: if so.
    """
    if x.is_cuda:
        try:
            torch.cuda.synchronize()
        except Exception as error:
            raise DeviceLostError(first_line(error)) from error


class AttentionKernels(TorchFunctionMode):
    """Sees which kernels fused attention is sent to; "math" is where it is calculated unfused."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with KernelNames() as names:
            result = function(*args, **(kwargs or {}))
        kernels = {name.removeprefix(FUSED) for name in names.seen if name.startswith(FUSED)} - UNFUSED
        self.kernels |= kernels or ({"math"} if names.seen - {function.__name__} else set())
        return result


class KernelNames(Spy):
    """The names of all operators that were called, and of those they are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(operator.overloadpacket.__name__)
        with self:  # in inference mode a compound operator arrives whole
            result = operator.decompose(*args, **(kwargs or {}))
        return operator(*args, **(kwargs or {})) if result is NotImplemented else result


def reference_side(device: str, dtype: str) -> int:
    """The matrices' side; a CUDA device without fast float64 gets smaller ones, or it would take seconds."""
    return 2048 if (device, dtype) == ("cuda", "float64") else REFERENCE_SIDE[device]


class Reference:
    """A square matrix product: the machine's own measure of speed, in the same rounds."""

    def __init__(self, like: Tensor) -> None:
        self.side = reference_side(like.device.type, str(like.dtype).removeprefix("torch."))
        a, b = torch.randn(2, self.side, self.side, device=like.device, dtype=like.dtype)
        self.product = lambda: torch.mm(a, b)
        self.on_cuda = like.is_cuda
        self.clock = cuda_clock(like.get_device()) if like.is_cuda else cpu_clock
        self.samples: list[Sample] = []

    def warm_up(self) -> None:
        for _ in range(3):
            self.clock(self.product)

    def sample(self) -> None:
        self.samples.append(self.clock(self.product))

    def forget_last(self) -> None:
        del self.samples[-1:]

    @property
    def median(self) -> Median:
        """Milliseconds with their interval: between events on CUDA, of CPU time on a CPU."""
        return median([sample.wall_ms if self.on_cuda else sample.cpu_ms for sample in self.samples])

    @property
    def ms(self) -> float:
        return self.median.value

    @property
    def gflops(self) -> float | None:
        """Billions of floating-point operations a second; None where the clock saw nothing."""
        return 2 * self.side**3 / self.ms / 1e6 if self.ms else None
