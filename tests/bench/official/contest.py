"""Two implementations of one block: do they agree, and how long does each take?"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ctxbench import gate
from ctxbench.clocks import Sample, cpu_clock
from ctxbench.measure import no_garbage_collection
from ctxbench.statistics import Median, median
from ctxbench.subject import MOST_CALLS, Reference
from tests.bench.official.comparison import SEED, Comparison, Theirs
from tests.bench.official.sources import Official

TOLERANCE = {"float32": 1e-4, "bfloat16": gate.TOLERANCE[torch.bfloat16]}
GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5}  # sharp assignments leave bfloat16 a rough one
EXACT = 1e-7  # in float64
ROUNDED_OUTPUT, ROUNDED_GRADIENT = gate.TOLERANCE[torch.float32], 1e-2  # in float32, if float64 agrees
HALF_WIDTH = 0.01  # of the ratio's interval, where a contest ends
MIN_ROUNDS, MAX_ROUNDS = 6, 500  # six samples are the fewest whose interval covers the median at 95 %
HEIGHT = 24  # of the convolution's map, as many pixels as the matrix has rows
SHORTEST_MS = 5.0  # a sample of inference holds as many calls


@dataclass
class Contestant:
    """An implementation with its input, ready to be called.

    Attributes:
        gradient: of the output, in training.
        repeats: calls in one sample.
    """

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    x: Tensor
    gradient: Tensor | None
    repeats: int = 1
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        gradient: Tensor | None,
    ) -> Contestant:
        module.train(gradient is not None)
        own = x.clone().requires_grad_(gradient is not None)
        return cls(module, forward, own, None if gradient is None else gradient.clone())

    def to(self, dtype: torch.dtype) -> None:
        self.module.to(dtype)
        self.x = self.x.detach().to(dtype).requires_grad_(self.x.requires_grad)
        self.gradient = None if self.gradient is None else self.gradient.to(dtype)

    def call(self) -> Tensor:
        """Forward, and backward in training: what is timed."""
        if self.gradient is None:
            with torch.inference_mode():
                return self.forward(self.x)
        y = self.forward(self.x)
        torch.autograd.backward(y, self.gradient)
        return y

    def call_repeatedly(self) -> None:
        for _ in range(self.repeats):
            self.call()

    def tidy(self) -> None:
        """Drop the gradients, outside the timed span."""
        self.x.grad = None
        self.module.zero_grad(set_to_none=True)

    def warm_up(self) -> Sample:
        sample = cpu_clock(self.call_repeatedly)
        self.tidy()
        return sample

    def sample(self) -> None:
        taken = cpu_clock(self.call_repeatedly)
        self.tidy()
        self.samples.append(Sample(taken.wall_ms / self.repeats, taken.cpu_ms / self.repeats))

    def results(self) -> list[Tensor]:
        """Output and, in training, the input's gradient of one call."""
        y = self.call().detach()
        found = [y] if self.x.grad is None else [y, self.x.grad]
        self.tidy()
        return found


@dataclass(frozen=True)
class Errors:
    """Relative errors between the two.

    Attributes:
        output: of one call.
        gradient: of the input's gradient, in training.
        exact: the larger of both in float64, where one of them is beyond the tolerance: an activation at
            a ReLU's kink that is rounded to its other side changes a gradient wholly, and sharp softmaxes
            enlarge what is rounded differently from one iteration to the next.
    """

    output: float
    gradient: float | None
    dtype: str
    exact: float | None = None

    @property
    def close(self) -> bool:
        """Within the tolerances of this dtype."""
        return (
            self.output <= TOLERANCE[self.dtype] and (self.gradient or 0.0) <= GRADIENT_TOLERANCE[self.dtype]
        )

    @property
    def rounded(self) -> bool:
        """Within what a machine's rounding may do to it, if they agree in float64."""
        return self.output <= ROUNDED_OUTPUT and (self.gradient or 0.0) <= ROUNDED_GRADIENT

    @property
    def agree(self) -> bool:
        return self.close or (self.rounded and self.exact is not None and self.exact <= EXACT)

    def __str__(self) -> str:
        parts = [f"error {self.output:.1e}"]
        parts += [f"of the gradient {self.gradient:.1e}"] if self.gradient is not None else []
        parts += [f"in float64 {self.exact:.0e}"] if self.exact is not None else []
        return ", ".join(parts)


class Convolution(Reference):
    """The reference's product as a 1x1 convolution, for which a CPU has another kernel."""

    def __init__(self, like: Tensor) -> None:
        super().__init__(like)
        x = torch.randn(1, self.side, self.side // HEIGHT, HEIGHT, dtype=like.dtype)
        weight = torch.randn(self.side, self.side, 1, 1, dtype=like.dtype)
        # With a dilation, which means nothing here, one thread takes that kernel as several do.
        self.product = lambda: torch.nn.functional.conv2d(x, weight, dilation=2)


@dataclass(frozen=True)
class Times:
    """What the rounds of a contest gave."""

    ours: list[Sample]
    theirs: list[Sample]
    ceilings: dict[str, Reference]
    repeats: int
    on_cpu_time: bool

    def ratio(self, wall: bool | None = None) -> Median:
        """Ours over theirs: the median of the rounds, in each of which both were called as often."""
        wall = not self.on_cpu_time if wall is None else wall
        pairs = zip(self.ours, self.theirs, strict=True)
        if wall:
            return median([own.wall_ms / other.wall_ms for own, other in pairs])
        return median([own.cpu_ms / other.cpu_ms for own, other in pairs])

    @property
    def spent_s(self) -> float:
        return sum(sample.wall_ms for sample in [*self.ours, *self.theirs]) * self.repeats / 1000

    @property
    def settled(self) -> bool:
        if self.theirs:
            return self.ratio().half_width <= HALF_WIDTH
        return median([sample.cpu_ms for sample in self.ours]).half_width <= HALF_WIDTH


class Contest:
    """A comparison at one size and in one mode; without an official implementation, ours alone."""

    def __init__(
        self,
        ours: nn.Module,
        theirs: Theirs | None,
        comparison: Comparison | None,
        *,
        channels: int,
        side: int,
        training: bool,
    ) -> None:
        self.module, self.their, self.comparison = ours, theirs, comparison
        torch.manual_seed(SEED)
        self.dtype = comparison.dtype if comparison else "float32"
        own = getattr(torch, self.dtype)
        x = torch.randn(1, channels, side, side)
        if comparison is not None and comparison.patterns:
            mixture = torch.randn(comparison.patterns, side * side)
            x += (torch.randn(channels, comparison.patterns) @ mixture).reshape(x.shape)
        x = x.to(own).float()
        if comparison is not None and comparison.positive:
            x = x.relu()
        gradient = torch.randn(x.shape) if training else None
        self.x = x
        self.gradient = gradient
        ours.to(own)
        self.ours = Contestant.of(ours, ours, x.to(own), None if gradient is None else gradient.to(own))
        self.theirs = None
        if theirs is not None:
            self.theirs = Contestant.of(theirs.module, theirs.forward, x, gradient)

    def errors(self) -> Errors:
        """How far ours is from theirs, relative to what theirs adds to the input; the input would hide it."""
        output, *gradient = self.differences()
        errors = Errors(output, gradient[0] if gradient else None, self.dtype)
        if errors.close or self.dtype != "float32" or not errors.rounded:
            return errors
        with self.doubled():
            return replace(errors, exact=max(self.differences()))

    def differences(self) -> list[float]:
        """Relative errors of the output and, in training, of the input's gradient."""
        assert self.their is not None and self.theirs is not None and self.comparison is not None
        modules = self.module, self.their.module
        with self.comparison.same(*modules), contextlib.ExitStack() as stack:
            for module in modules:  # a training call moves averages, and another comparison may follow
                stack.callback(module.load_state_dict, copy.deepcopy(module.state_dict()))
            torch.manual_seed(SEED)
            theirs = self.theirs.results()
            torch.manual_seed(SEED)
            ours = self.ours.results()
        found = []
        straight = [it.to(theirs[0].dtype) for it in (self.x, self.gradient) if it is not None]
        for own, other, through in zip(ours, theirs, straight, strict=True):
            expected = other - self.their.surplus * through
            changed = expected if self.comparison.part else expected - through
            difference = (own.to(expected.dtype) - expected).norm()
            error = float(difference / changed.norm().clamp_min(gate.TINY))
            found.append(error if math.isfinite(error) else math.inf)
        return found

    @contextlib.contextmanager
    def doubled(self) -> Iterator[None]:
        """Both in float64."""
        both = [each for each in (self.ours, self.theirs) if each is not None]
        try:
            for each in both:
                each.to(torch.float64)
            yield
        finally:
            for each in both:
                each.to(torch.float32)

    def times(self, budget_s: float, threads: int) -> Times:
        """Rounds in random order until the interval of the ratio is narrow, or `budget_s` is spent."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(subnormals_flushed())
            if self.comparison is not None and self.their is not None:
                stack.enter_context(self.comparison.same(self.module, self.their.module))
            return self.rounds(budget_s, threads)

    def rounds(self, budget_s: float, threads: int) -> Times:
        like = self.ours.x.detach()
        ceilings = {"matmul": Reference(like), "convolution": Convolution(like)}
        both = [self.ours, *([self.theirs] if self.theirs else [])]
        for ceiling in ceilings.values():
            ceiling.warm_up()
        first = [contestant.warm_up().wall_ms for contestant in both]
        if self.gradient is None:
            repeats = min(MOST_CALLS, math.ceil(SHORTEST_MS / max(min(first), SHORTEST_MS / MOST_CALLS)))
            for contestant in both:
                contestant.repeats = repeats
        for contestant in both:
            contestant.warm_up()
        their_samples = self.theirs.samples if self.theirs else []
        times = Times(self.ours.samples, their_samples, ceilings, self.ours.repeats, threads == 1)
        shuffle = random.Random(0).shuffle
        with no_garbage_collection():
            for number in range(MAX_ROUNDS):
                if number >= MIN_ROUNDS and (times.spent_s >= budget_s or times.settled):
                    break
                order: list[Contestant | Reference] = [*both, *ceilings.values()]
                shuffle(order)
                for each in order:
                    each.sample()
        return times


@contextlib.contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Take subnormal numbers as zero: with them some CPUs take a hundred times as long for a product."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Let code that was written for CUDA run: what moves a tensor there leaves it where it is."""
    with (
        mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor),
        mock.patch.object(torch.cuda, "device", lambda *_: contextlib.nullcontext()),
    ):
        yield


def prepare(comparison: Comparison, folder: Any, *, channels: int, side: int, training: bool) -> Contest:
    """Both implementations with the same weights.

    Raises:
        SourceError: when the official code cannot be had.
    """
    official: Official = comparison.official
    module = official.load(folder)
    ours = comparison.ours(channels, side)
    torch.manual_seed(SEED)
    theirs = comparison.build(ours, module, side)
    return Contest(ours, theirs, comparison, channels=channels, side=side, training=training)
