"""What a block costs, without running it: parameters, multiply-accumulates and peak memory.

The block runs on tensors that have shapes and storages but no data. PyTorch's dispatcher
shows every operator, so that attention written as `@`, `einsum` or a fused kernel is counted
alike, and a tracker follows the life of every storage.
"""

from __future__ import annotations

import contextlib
import logging
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import blocks
from ctxbench.meta import Replay, meta_tensors
from ctxbench.record import LARGEST_COUNT
from ctxbench.spec import Cell

# It prints a stack trace for a storage too large to be addressed, which is a result here.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

# Operators that make or move data and calculate nothing.
NO_ARITHMETIC = {
    "_to_copy",
    "_unsafe_view",
    "alias",
    "arange",
    "cat",
    "clone",
    "contiguous",
    "copy_",
    "detach",
    "device",
    "empty",
    "empty_like",
    "expand",
    "eye",
    "fill_",
    "full",
    "lift_fresh",
    "masked_fill",
    "max_pool2d_with_indices_backward",
    "new_empty",
    "new_zeros",
    "ones",
    "ones_like",
    "promote_types",
    "rand",
    "randn",
    "randn_like",
    "repeat",
    "scalar_tensor",
    "select_backward",
    "slice_backward",
    "zero_",
    "zeros",
    "zeros_like",
}

# The operator into which fused attention, and nothing else, falls apart on meta tensors.
FUSED_ATTENTION_ON_META = "safe_softmax"

REPLAY = Replay()  # one for all estimates of a process: their blocks have much in common
CONV_BACKWARD = torch.ops.aten.convolution_backward


@dataclass(frozen=True)
class Cost:
    """The cost of one cell.

    Attributes:
        params: number of parameters.
        params_formula: their closed form.
        macs_formula: closed form of one forward at this batch size.
        macs_counted: what the dispatcher counted in the forward.
        macs_backward: what it counted in the backward as executed; None in inference.
        uncounted_ops: arithmetic operators that no count includes, with the number of their calls.
        memory_bytes: peak of the bytes alive, with the block's parameters and buffers and without
            its input and the gradient handed to its output.
    """

    params: int
    params_formula: int
    macs_formula: int
    macs_counted: int
    macs_backward: int | None
    uncounted_ops: dict[str, int]
    memory_bytes: int


def estimate(cell: Cell) -> Cost:
    """The cost of `cell`: no memory, no arithmetic, the same on any machine.

    Meta tensors do, unless the block makes CPU tensors of its own or calls fused attention, which
    they show unfused; fake CPU tensors follow these, and take longer to get ready.
    """
    with contextlib.suppress(Exception):  # whatever it was, the second attempt tells it
        cost = _estimate(cell, meta_tensors(cell.compiled))
        if FUSED_ATTENTION_ON_META not in cost.uncounted_ops:
            return cost
    return _estimate(cell, FakeTensorMode())


def _estimate(cell: Cell, tensors: contextlib.AbstractContextManager[Any]) -> Cost:
    dtype = getattr(torch, cell.dtype)
    with tensors, default_dtype(dtype):
        block = cell.create()
        x = torch.empty(cell.shape, dtype=dtype).requires_grad_(cell.training)
        gradient = torch.empty_like(x) if cell.training else None
        return trace(block, x, gradient)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors have this dtype inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trace(block: blocks.ContextBlock, x: Tensor, gradient: Tensor | None) -> Cost:
    """Run `block` once on (fake, meta or real) tensors under the counters.

    Args:
        block: a `ContextBlock`.
        x: input (B, C, H, W).
        gradient: handed to the output's backward; None for a forward in inference.
    """
    memory, operators = PeakMemory(), OperatorCount()
    memory.track([*block.parameters(), *block.buffers()])
    memory.leave_out([x] if gradient is None else [x, gradient])
    backward = None
    with memory, operators, torch.set_grad_enabled(gradient is not None):
        y = block(x)
        forward = operators.macs
        uncounted = dict(sorted(operators.uncounted.items()))
        if gradient is not None:
            y.backward(gradient)
            backward = operators.macs - forward
    batch, _, height, width = x.shape
    return Cost(
        params=sum(parameter.numel() for parameter in block.parameters()),
        params_formula=whole("param_count()", block.param_count()),
        macs_formula=batch * whole("macs()", block.macs(height, width)),
        macs_counted=forward,
        macs_backward=backward,
        uncounted_ops=uncounted,
        memory_bytes=memory.peak,
    )


def whole(name: str, count: int) -> int:
    """The closed form `name`, which must have given a number that can be."""
    if type(count) is not int or not 0 <= count < LARGEST_COUNT:
        raise TypeError(f"{name} must return a whole number from 0 up, below 10^30")
    return count


class Spy(TorchDispatchMode):
    """A dispatch mode that torch.compile need not know of: it spares a second of imports."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def conv_backward(*args: Any, out_val: Any) -> int:
    """Flops of aten.convolution_backward.

    PyTorch's own formula takes the gradient of a grouped convolution's weight for that of a full
    one: of a depthwise one, C times too much. It costs what the forward costs.
    """
    gradient, x, weight, *others, mask = args
    transposed = others[4]
    flops: int = flop_registry[CONV_BACKWARD](
        gradient, x, weight, *others, [mask[0], False, False], out_val=out_val
    )
    if mask[1]:
        pixels = math.prod((x if transposed else gradient).shape[2:])
        flops += 2 * x.shape[0] * pixels * weight.numel()
    return flops


FORMULAS = {**flop_registry, CONV_BACKWARD: conv_backward}


class OperatorCount(Spy):
    """Counts MACs with the formulas of `torch.utils.flop_counter`, and the calls it has none for."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        packet = operator.overloadpacket
        name = packet.__name__
        if packet in FORMULAS:
            self.macs += FORMULAS[packet](*args, **kwargs, out_val=result) // 2
        elif not operator.is_view and name not in NO_ARITHMETIC:
            self.uncounted[name.strip("_")] += 1
        return result


class PeakMemory(Spy):
    """Follows the life of storages: `live` bytes now and their `peak`.

    What it cannot see: work space inside a kernel, and what an allocator rounds up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors' storages from now until they die."""
        for tensor in tensors:
            self._follow(tensor, tensor.untyped_storage().nbytes())

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Never count these tensors' storages."""
        for tensor in tensors:
            self._follow(tensor, 0)

    def _follow(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = weakref.ref(storage, self._farewell(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _farewell(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            del self._known[key]
            self.live -= size

        return forget

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = REPLAY(operator, args, kwargs or {})
        self.track(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        return result


@dataclass(frozen=True)
class FvcoreCount:
    """fvcore's count of a forward, and the operators it met without knowing them."""

    macs: int | None
    missed_ops: dict[str, int]


def count_with_fvcore(block: nn.Module, x: Tensor) -> FvcoreCount:
    """A second opinion on the forward MACs. fvcore traces a real run; it counts batch norm too.

    fvcore calls them flops, and knows neither fused attention nor linear solves.
    """
    import warnings

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore").setLevel(logging.ERROR)
        analysis = FlopCountAnalysis(block, x)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        try:
            total = int(analysis.total())
        except Exception as error:  # what the tracer cannot follow is a finding, not a failed cell
            return FvcoreCount(None, {f"failed: {type(error).__name__}": 1})
        missed = {name: calls for name, calls in analysis.unsupported_ops().items() if carries_macs(name)}
        return FvcoreCount(total, dict(sorted(missed.items())))


def carries_macs(name: str) -> bool:
    """Whether an operator such as "aten::inverse" multiplies matrices, going by its name."""
    return any(part in name for part in ("attention", "mm", "conv", "linalg", "inverse", "cholesky", "solve"))
