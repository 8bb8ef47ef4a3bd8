"""Asymmetric non-local attention: to a pyramid of pooled keys instead of all pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, conv_bn_relu, flat, require_positive, weighted
from blocks.pooling import means
from blocks.registry import Paper, register

ANN = Paper(
    title="Asymmetric Non-local Neural Networks for Semantic Segmentation",
    authors="Zhen Zhu, Mengdu Xu, Song Bai, Tengteng Huang, Xiang Bai",
    year=2019,
    venue="ICCV",
    url="https://arxiv.org/abs/1908.07678",
    bibtex="""@inproceedings{zhu2019asymmetric,
  title     = {Asymmetric Non-local Neural Networks for Semantic Segmentation},
  author    = {Zhu, Zhen and Xu, Mengdu and Bai, Song and Huang, Tengteng and Bai, Xiang},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2019}
}""",
)

SIDES = (1, 3, 6, 8)
TOKENS = sum(side**2 for side in SIDES)


def pyramid(x: Tensor) -> Tensor:
    """Means over the cells of grids of several sides, (B, C, H, W) -> (B, C, TOKENS)."""
    return torch.cat([flat(means(x, side, side)) for side in SIDES], dim=2)


@register(
    "ann",
    title="Asymmetric pyramid non-local block",
    family="linear attention",
    summary="attends to 110 means over parts of the image; queries and keys share a projection",
    complexity="O(n d^2)",
    formula="Y = cbr([W_o pool(V) softmax(Q^T pool(Q) / sqrt(d))^T, X]);  Q = cbr(X), cbr = ReLU(BN(W x))",
    paper=ANN,
)
class AsymmetricPyramid(ContextBlock):
    """The paper's APNB. Its AFNB fuses two levels of a network, and is no block of one input.

    What is attended to starts at zero. Queries and keys share their projection, which the official
    code computes twice (and in training counts twice in the running statistics); here it is computed
    once, so that the block costs n C d less.

    Args:
        channels: C of the input.
        width: d of queries, keys and values; None: C // 2.
    """

    def __init__(self, channels: int, *, width: int | None = None) -> None:
        super().__init__(channels)
        self.width = max(channels // 2, 1) if width is None else width
        require_positive(width=self.width)
        self.query = conv_bn_relu(channels, self.width)
        self.value = Conv1x1(channels, self.width)
        self.out = Conv1x1(self.width, channels)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        self.fuse = conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)
        key, value = pyramid(query), pyramid(self.value(x))  # (B, d, P)
        scores = (flat(query) * self.width**-0.5).mT @ key  # (B, N, P)
        context = weighted(value, torch.softmax(scores, dim=-1))  # (B, d, N)
        context = self.out(context.reshape(x.shape[0], self.width, *x.shape[2:]))
        return self.fuse(torch.cat([context, x], dim=1))

    def macs(self, height: int, width: int) -> int:
        c, d, n = self.channels, self.width, height * width
        return 3 * n * c * d + 2 * n * TOKENS * d + 2 * n * c * c

    def param_count(self) -> int:
        c, d = self.channels, self.width
        return 3 * c * d + 3 * d + c + 2 * c * c + 2 * c
