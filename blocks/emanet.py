"""Expectation-maximisation attention: a few bases found by EM, and their moving average."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from blocks.base import (
    ContextBlock,
    Conv1x1,
    batch_mean,
    flat,
    full_precision,
    he_fan_out_,
    require_positive,
)
from blocks.registry import Paper, register
from blocks.update_rules import EPS, Iterate, Tiles, in_tiles, lengths, soft_clusters

EMANET = Paper(
    title="Expectation-Maximization Attention Networks for Semantic Segmentation",
    authors="Xia Li, Zhisheng Zhong, Jianlong Wu, Yibo Yang, Zhouchen Lin, Hong Liu",
    year=2019,
    venue="ICCV",
    url="https://arxiv.org/abs/1907.13426",
    bibtex="""@inproceedings{li2019emanet,
  title     = {Expectation-Maximization Attention Networks for Semantic Segmentation},
  author    = {Li, Xia and Zhong, Zhisheng and Wu, Jianlong and Yang, Yibo and Lin, Zhouchen and Liu, Hong},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2019}
}""",
)


def soft_unit(x: Tensor) -> Tensor:
    """Columns of (B, C, K) over their length plus eps: a little shorter than one."""
    return x / (lengths(x) + EPS).to(x.dtype)


def expectation_maximisation(steps: int) -> Iterate:
    """Soft clustering of pixels: tiles of X (C, N), bases (C, K) -> the bases that follow from the last
    responsibilities, and these, (K, columns) of each tile.
    """

    def iterate(tiles: Tiles, bases: Tensor) -> tuple[Tensor, Tiles]:
        codes: Tiles = ()
        for _ in range(steps):  # E-step and M-step
            means, codes = soft_clusters(tiles, bases, [None] * len(tiles))
            bases = soft_unit(means)
        return bases, codes

    return iterate


@register(
    "emanet",
    title="Expectation-maximisation attention",
    family="decomposition",
    summary="reconstructs pixels from bases found by EM; the bases start from a moving average",
    complexity="O(n d^2 + n d r)",
    formula="Y = ReLU(X + BN(W_2 ReLU(M Z^T)));  Z = softmax(X'^T M),  M = unit(X' Z / sum(Z)),  X' = W_1 X",
    paper=EMANET,
)
class EMA(ContextBlock):
    """Expectation-maximisation attention unit.

    EM runs outside the gradient, as in the official code, so that the first convolution cannot
    learn: its parameters do not require a gradient here. The bases' moving average is kept inside
    the block, and changes in training only.

    Args:
        channels: C of the input.
        rank: number K of bases.
        steps: EM iterations.
        momentum: the weight of the old bases in the moving average.
    """

    bases: Tensor

    def __init__(self, channels: int, *, rank: int = 64, steps: int = 3, momentum: float = 0.9) -> None:
        super().__init__(channels)
        require_positive(rank=rank, steps=steps)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in 0..1, not {momentum}")
        self.rank, self.steps, self.momentum = rank, steps, momentum
        self.project = Conv1x1(channels, channels)
        self.out = nn.Sequential(Conv1x1(channels, channels, bias=False), nn.BatchNorm2d(channels))
        he_fan_out_(self)
        self.project.requires_grad_(False)
        self.register_buffer("bases", soft_unit(torch.randn(1, channels, rank) * math.sqrt(2 / rank)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x + self.branch(x))

    def branch(self, x: Tensor) -> Tensor:
        return self.out(self.rebuilt(x))

    @torch.no_grad()
    def rebuilt(self, x: Tensor) -> Tensor:
        """The pixels rebuilt from the bases, (B, C, H, W); moves the bases when training."""
        projected = self.project(x)
        with full_precision(projected) as dtype:
            columns = flat(projected).to(dtype)
            first = self.bases.to(dtype).expand(x.shape[0], -1, -1)
            bases, codes = in_tiles(expectation_maximisation(self.steps), columns, first)
            assert codes is not None
            if self.training:
                self.bases.lerp_(batch_mean(bases)[None].to(self.bases.dtype), 1 - self.momentum)
            return torch.relu_(bases @ codes).reshape(x.shape).to(projected.dtype)

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        return 2 * n * c * c + (2 * self.steps + 1) * n * c * self.rank

    def param_count(self) -> int:
        return 2 * self.channels**2 + 3 * self.channels
