"""What every context block is, and the small pieces several of them are made of."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ChannelNorm",
    "ContextBlock",
    "Conv1x1",
    "batch_mean",
    "conv_bn_relu",
    "flat",
    "full_precision",
    "he_fan_out_",
    "open_sides",
    "require_divisible",
    "require_positive",
    "split",
    "unit",
    "weighted",
    "wide_precision",
]


class ContextBlock(nn.Module, ABC):
    """A map (B, C, H, W) -> (B, C, H, W) that lets a pixel see the whole image, whatever joins that to the input included.

    A subclass promises: it never modifies its input; all buffers exist at construction; in
    evaluation it writes no state and gives the same output for the same input; outside batch
    normalisation in training, the images of a batch do not influence one another.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        require_positive(channels=channels)
        self.channels = channels

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its input, before any activation of the sum: (B, C, H, W) -> (B, C, H, W)."""
        return self(x) - x

    @abstractmethod
    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one forward of one image in the present mode (train or eval).

        Convolutions and matrix products, derived on paper and never by counting; element-wise
        work, normalisation, softmax and solving R x R systems are left out.
        """

    def spared_macs(self, height: int, width: int) -> int:
        """MACs that the authors' published code spends beyond `macs`, for the same result."""
        return 0

    @abstractmethod
    def param_count(self) -> int:
        """Number of parameters (weights, biases, gates; not buffers), derived on paper."""

    def extra_repr(self) -> str:
        return str(self.channels)


def require_positive(**options: int | float) -> None:
    """Raise ValueError naming the first option that is not above zero."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")


def require_divisible(width: int, divisor: int, what: str = "channels", by: str = "heads") -> None:
    """Raise ValueError, with the names of both, unless `divisor` divides `width`."""
    if width % divisor:
        raise ValueError(f"{what}={width} cannot be divided by {by}={divisor}; choose a divisor of {width}")


def split(x: Tensor, heads: int) -> Tensor:
    """(B, C, ...) -> (B, heads, C / heads, N): each head's channels, the pixels in one row; a view."""
    return flat(x).unflatten(1, (heads, x.shape[1] // heads))


MANY_PIXELS, MANY_MACS = 2**10, 2**25  # of an image; with fewer, a product gains nothing over a convolution


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution, (B, C_in, H, W) -> (B, C_out, H, W): on a CPU one product of matrices for each image.

    For larger maps that takes less time than PyTorch's convolution, with several threads and in half
    precision much less. The result is contiguous; the gradient of the weight is first one for each image.
    Under autocast and in programs that are compiled, exported or traced there is a convolution.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gains_by_product(x):
            return super().forward(x)
        matrices = self.weight.flatten(1).unsqueeze(0).expand(x.shape[0], -1, -1)
        if self.bias is None:
            y = torch.bmm(matrices, flat(x))
        else:
            y = torch.baddbmm(self.bias.unsqueeze(1), matrices, flat(x))
        # No view in autograd's sense: an activation in place would copy the gradient of one.
        return cast(Tensor, torch.ops.aten._unsafe_view(y, (x.shape[0], self.out_channels, *x.shape[2:])))

    def gains_by_product(self, x: Tensor) -> bool:
        """Whether to calculate it for x as a product: eagerly, on a CPU, where there is enough to do."""
        if not isinstance(x, Tensor) or x.device.type != "cpu":  # torch.fx traces with what is no tensor
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return False
        pixels = x.shape[2:].numel()
        much = pixels >= MANY_PIXELS and pixels * self.in_channels * self.out_channels >= MANY_MACS
        return much and not torch.is_autocast_enabled("cpu")


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = kernel // 2 * dilation
    return nn.Sequential(
        Conv1x1(inputs, outputs, bias=False)
        if kernel == 1
        else nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, N): the pixels in one row, N = H * W."""
    return x.flatten(2)


FAR_APART, FAR_APART_HALVES = 2**14, 2**10  # of rows, in numbers: products that read across them slow down


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Values (..., C, M), weighted for each of N positions by weights (..., N, M): (..., C, N).

    The product is that of the transposes, and the result strided, in two cases. Where a gradient will come
    back: the weights' has their own layout then, and the softmax before them copies no map of N x M. And on
    a CPU where rows of weights are long: they are read along, not across, which in half precision takes a
    fraction of the time.
    """
    far = FAR_APART_HALVES if weights.element_size() == 2 else FAR_APART
    far_apart = (
        weights.device.type == "cpu" and not torch.compiler.is_compiling() and weights.shape[-1] >= far
    )
    return (weights @ values.mT).mT if weights.requires_grad or far_apart else values @ weights.mT


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    """The columns of x (..., D, N) over their lengths; one shorter than `eps` is divided by `eps`.

    Zero in, zero out, with a finite gradient.
    """
    least = max(eps**2, torch.finfo(x.dtype).tiny)
    return x * torch.rsqrt(x.square().sum(dim=-2, keepdim=True).clamp_min(least))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of every pixel over its channels: (B, C, H, W) -> (B, C, H, W).

    A map may come in a wider precision than the parameters', and is normalised in that.
    """

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, x.dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.movedim(1, -1), self.normalized_shape, weight, bias, self.eps).movedim(-1, 1)


def he_fan_out_(module: nn.Module) -> None:
    """Draw every convolution's weight from N(0, 2 / (k * k * outputs)), as HamNet and EMANet do."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan_out))


def open_sides(x: Tensor) -> bool:
    """Whether a program is being exported that leaves height or width of x open."""
    return torch.compiler.is_exporting() and any(isinstance(side, torch.SymInt) for side in x.shape[2:])


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[torch.dtype]:
    """Switch autocast off inside, and yield the dtype in which iterations over `x` stay accurate.

    Iterated products lose their small terms in half precision: float16, and anything under
    autocast, is computed in float32. Pure bfloat16, float32 and float64 stay as they are.
    """
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    raised = autocast or x.dtype == torch.float16
    dtype = torch.promote_types(x.dtype, torch.float32) if raised else x.dtype
    with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
        yield dtype


@contextlib.contextmanager
def wide_precision(x: Tensor) -> Iterator[torch.dtype]:
    """As `full_precision`, and bfloat16 becomes float32 too: for exponents, scans, inverses and FFTs."""
    with full_precision(x) as dtype:
        yield torch.promote_types(dtype, torch.float32)


def batch_mean(update: Tensor) -> Tensor:
    """Mean over dimension 0, and over all processes when training is distributed."""
    mean = update.mean(0)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean
