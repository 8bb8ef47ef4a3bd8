"""What became of a cell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ctxbench import gate
from ctxbench.errors import first_line

if TYPE_CHECKING:
    from ctxbench.cost import Cost


@dataclass
class Outcome:
    """A status, and the columns of the record that go with it."""

    status: str
    columns: dict[str, Any] = field(default_factory=dict)


def failure(error: BaseException, seconds: float) -> Outcome:
    """The outcome of a cell whose block raised `error`; nothing measured of it is kept."""
    columns: dict[str, Any] = {"reason": first_line(error), "wall_s": seconds}
    if isinstance(error, gate.BrokenRuleError):
        return Outcome("invalid", columns)
    status = "oom" if is_out_of_memory(error) else "error"
    return Outcome(status, columns | {"error_type": type(error).__name__})


def overdue(timeout_s: float, seconds: float) -> Outcome:
    """The outcome of a cell that took more than its time."""
    return Outcome("timeout", {"reason": f"took more than {timeout_s:g} s", "wall_s": seconds})


def disagreement(cost: Cost) -> Outcome | None:
    """The verdict on a block whose closed forms are not what is counted."""
    if cost.macs_counted != cost.macs_formula:
        reason = f"macs() gives {cost.macs_formula}, but {cost.macs_counted} are counted"
    elif cost.params != cost.params_formula:
        reason = f"param_count() gives {cost.params_formula}, but there are {cost.params}"
    else:
        return None
    return Outcome("invalid", {"reason": f"broken rule: closed forms equal the count; {reason}"})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: CUDA has its own class, the CPU and libraries only their words."""
    message = first_line(error)
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory", "Cannot allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(each in message for each in words)
