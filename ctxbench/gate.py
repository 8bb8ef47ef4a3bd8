"""The correctness gate: the rules a block must keep before any speed of it is measured."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import blocks
from ctxbench import pinning

# Largest relative error (Euclidean norm) against the same block in float64.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 1e-1}
TINY = 1e-30
SETTINGS_KEPT = "torch's own settings are left as they are"
PROBE = (2, 9, 7)  # batch, height, width: small, odd and not square


class BrokenRuleError(Exception):
    """The rule a block broke, in words."""


def check(create: Callable[[], blocks.ContextBlock], device: str, dtype: torch.dtype) -> None:
    """Try a block on a small input.

    Args:
        create: builds the block, in float32 on a CPU.
        device, dtype: where and in what it will be measured.

    Raises:
        BrokenRuleError: naming the first rule that it does not keep.
    """
    torch.manual_seed(0)
    with untouched_settings():
        block = wake(create()).to(device, dtype)
        batch, height, width = PROBE
        x = torch.randn(batch, block.channels, height, width).to(device, dtype)
        block.eval()
        check_inference(block, x)
        check_precision(block, x)
        check_gradients(block.train(), x)


@contextlib.contextmanager
def untouched_settings() -> Iterator[None]:
    """Whatever a block sets in torch as a whole would change the other blocks' times; it is set back."""
    with pinning.restored() as kept:
        yield
    require(all(kept), SETTINGS_KEPT)


def wake(block: blocks.ContextBlock) -> blocks.ContextBlock:
    """Give parameters that start at zero a value: behind a closed gate any error would hide."""
    with torch.no_grad():
        for parameter in block.parameters():
            if not parameter.any():
                parameter.uniform_(0.5, 1.0)
    return block


def check_inference(block: nn.Module, x: Tensor) -> None:
    before, state = x.clone(), {name: value.clone() for name, value in block.state_dict().items()}
    with torch.no_grad():
        y = block(x)
        check_output(y, x, before)
        again, alone = block(x), block(x[:1])
    tolerance = TOLERANCE[x.dtype]
    require(relative_error(again, y) <= tolerance, "evaluation repeats its output")
    require(relative_error(alone, y[:1]) <= tolerance, "images of a batch do not influence one another")
    kept = all(torch.equal(state[name], value) for name, value in block.state_dict().items())
    require(kept, "evaluation writes no state")


def check_output(y: Tensor, x: Tensor, before: Tensor, where: str = "") -> None:
    """The output's form, and that `x` is still what it was `before`."""
    require(isinstance(y, Tensor) and y.shape == x.shape, f"the output has the shape of the input{where}")
    same = y.dtype == x.dtype and y.device == x.device
    require(same, f"the output has the input's dtype and device{where}")
    require(bool(y.isfinite().all()), f"the output is finite{where}")
    require(torch.equal(x, before), f"the input is not modified{where}")


def check_precision(block: nn.Module, x: Tensor) -> None:
    """What the block adds to its input must agree with the same in float64; the input would hide it.

    Beside the tolerance it may lose the digits that the sum of both cannot hold.
    """
    with torch.no_grad():
        wide = x.double()
        expected = copy.deepcopy(block).double()(wide)
        y = block(x).double()
    rounding = 4 * torch.finfo(x.dtype).eps * float(expected.norm())
    error = (float((y - expected).norm()) - rounding) / max(float((expected - wide).norm()), TINY)
    name = str(x.dtype).removeprefix("torch.")
    require(error <= TOLERANCE[x.dtype], f"{name} agrees with float64 (relative error {error:.2g})")


def check_gradients(block: nn.Module, x: Tensor) -> None:
    before = x
    x = x.clone().requires_grad_()
    y = block(x)
    y.backward(torch.randn_like(y))
    require(torch.equal(x.detach(), before), "the input is not modified")
    for name, tensor in [("the input", x), *block.named_parameters()]:
        if tensor.requires_grad:
            gradient = tensor.grad
            if gradient is None:
                raise BrokenRuleError(f"broken rule: a gradient reaches {name}")
            require(bool(gradient.isfinite().all()), f"the gradient of {name} is finite")
            # A bias before a softmax or a normalisation has no effect, and rightly no gradient; in
            # float16 that of a sharp softmax may be too small to be told from zero.
            if not name.endswith("bias") and x.dtype != torch.float16:
                require(bool(gradient.any()), f"a gradient reaches {name}")


def require(kept: bool, rule: str) -> None:
    if not kept:
        raise BrokenRuleError(f"broken rule: {rule}")


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference| in float64; infinite where a value is not finite."""
    value, reference = value.double(), reference.double()
    if not value.isfinite().all():
        return float("inf")
    return float((value - reference).norm() / reference.norm().clamp_min(TINY))
