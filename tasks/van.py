"""The Visual Attention Network, a backbone whose attention is a decomposed large-kernel convolution.

Source: Guo et al., "Visual Attention Network", 2022, https://arxiv.org/abs/2202.09741. Parameters are
named as in the authors' checkpoints, so that those can be loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAYER_SCALE = 1e-2
MLP_RATIOS = (8, 8, 4, 4)
STRIDES = (4, 2, 2, 2)
STRIDES_OS8 = (4, 2, 1, 1)


@dataclass(frozen=True)
class Size:
    """Widths and depths of the four stages, and the stochastic depth they are trained with."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    drop_path: float


SIZES = {
    "tiny": Size((32, 64, 160, 256), (3, 3, 5, 2), 0.1),
    "small": Size((64, 128, 320, 512), (2, 2, 4, 2), 0.1),
    "base": Size((64, 128, 320, 512), (3, 3, 12, 3), 0.1),
    "large": Size((64, 128, 320, 512), (3, 5, 27, 3), 0.25),
    "huge": Size((64, 128, 320, 512), (3, 6, 40, 3), 0.3),
}


def depthwise(channels: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a whole branch for some images."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)


class LargeKernelAttention(nn.Module):
    """A 21x21 receptive field in three cheap convolutions, whose result gates the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = depthwise(channels, 5)
        self.conv_spatial = depthwise(channels, 7, dilation=3)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class Attention(nn.Module):
    """Large-kernel attention between two 1x1 convolutions, with an inner shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = LargeKernelAttention(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x))))


class DepthwiseConv(nn.Module):
    """A level of its own only for the checkpoints' names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = depthwise(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)


class Mlp(nn.Module):
    """Two 1x1 convolutions with a 3x3 depthwise one and GELU between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = DepthwiseConv(hidden)
        self.activation = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Attention and MLP, each normalised before, scaled per channel and added to its input."""

    def __init__(self, channels: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.attn = Attention(channels)
        self.mlp = Mlp(channels, ratio * channels)
        self.drop_path = DropPath(drop_path)
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution and its normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class VAN(nn.Module):
    """(B, 3, H, W) -> the maps of its four stages, (B, dims[i], H / s[i], W / s[i]).

    Args:
        size: "tiny", "small", "base", "large" or "huge".
        strides: of the four stages; `STRIDES_OS8` keeps 1/8 of the resolution, without dilation.
    """

    def __init__(self, size: str, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        about = SIZES[size]
        self.dims = about.dims
        total = sum(about.depths)
        rates = iter(about.drop_path * number / (total - 1) for number in range(total))
        before = 3
        for index, (width, depth, ratio, stride) in enumerate(
            zip(about.dims, about.depths, MLP_RATIOS, strides, strict=True), 1
        ):
            self.add_module(f"patch_embed{index}", PatchEmbed(before, width, 7 if index == 1 else 3, stride))
            blocks = nn.ModuleList(Block(width, ratio, next(rates)) for _ in range(depth))
            self.add_module(f"block{index}", blocks)
            self.add_module(f"norm{index}", nn.LayerNorm(width, eps=1e-6))
            before = width
        self.apply(initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index in range(1, 5):
            x = self.get_submodule(f"patch_embed{index}")(x)
            for block in self.get_submodule(f"block{index}").children():
                x = block(x)
            norm = self.get_submodule(f"norm{index}")
            x = norm(x.movedim(1, -1)).movedim(-1, 1)
            maps.append(x)
        return maps


def initialise(module: nn.Module) -> None:
    """He's normal initialisation by fan-out for convolutions; biases zero."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
