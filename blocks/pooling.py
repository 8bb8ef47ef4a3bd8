"""Smaller maps and back: what blocks that pool have in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import Conv1x1, open_sides

__all__ = ["PYRAMID", "PooledNorm", "enlarged", "halve", "halved", "means", "pooled_conv", "pooled_map"]

PYRAMID = (1, 2, 3, 6)
"""The sides of PSPNet's pooled maps."""


def halved(height: int, width: int) -> tuple[int, int]:
    """The sides of what `halve` gives."""
    return max(height // 2, 1), max(width // 2, 1)


def halve(x: Tensor) -> Tensor:
    """Largest of every 2x2 window; an odd rest is dropped, and a side of length 1 stays as it is."""
    height, width = x.shape[2:]
    return F.max_pool2d(x, (min(2, height), min(2, width)))


def means(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling: (B, C, H, W) -> (B, C, height, width), over parts that may share a pixel."""
    if not open_sides(x):
        return F.adaptive_avg_pool2d(x, (height, width))
    # ONNX has no such operator. Where the sizes are open, torch writes those of the example in its place.
    return weights_of_means(x, height, 2) @ x @ weights_of_means(x, width, 3).mT


def weights_of_means(x: Tensor, parts: int, dim: int) -> Tensor:
    """(parts, N): each row takes the mean over one part of the N places along a dimension of x."""
    size = x.shape[dim]
    part = torch.arange(parts, device=x.device)[:, None]
    start, end = part * size // parts, ((part + 1) * size + parts - 1) // parts
    place = torch.arange(size, device=x.device)
    return ((start <= place) & (place < end)).to(x.dtype) / (end - start).to(x.dtype)


def enlarged(x: Tensor, image: Tensor) -> Tensor:
    """Bilinear interpolation to the height and width of `image`."""
    return F.interpolate(x, image.shape[2:], mode="bilinear", align_corners=False)


class PooledNorm(nn.BatchNorm2d):
    """Batch normalisation of a pooled map, which may hold one value per channel.

    One value has no variance: PyTorch then refuses to train, so that a batch of one image cannot be
    learned from. Here such a value is normalised by the running statistics, and leaves them as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == self.num_features:
            statistics = self.running_mean, self.running_var
            return F.batch_norm(input, *statistics, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(input)


def pooled_conv(inputs: int, outputs: int) -> nn.Sequential:
    """1x1 conv-BN-ReLU of a pooled map."""
    return nn.Sequential(Conv1x1(inputs, outputs, False), PooledNorm(outputs), nn.ReLU(inplace=True))


def pooled_map(x: Tensor, side: int) -> Tensor:
    """Average-pooled to `side` x `side`; a side of the image that is shorter stays as it is."""
    return means(x, min(side, x.shape[2]), min(side, x.shape[3]))
