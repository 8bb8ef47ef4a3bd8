"""Object-contextual representations: pixels attend to the means of soft regions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, conv_bn_relu, flat, require_positive, weighted
from blocks.pooling import pooled_conv
from blocks.registry import Paper, register

OCR = Paper(
    title="Object-Contextual Representations for Semantic Segmentation",
    authors="Yuhui Yuan, Xilin Chen, Jingdong Wang",
    year=2020,
    venue="ECCV",
    url="https://arxiv.org/abs/1909.11065",
    bibtex="""@inproceedings{yuan2020object,
  title     = {Object-Contextual Representations for Semantic Segmentation},
  author    = {Yuan, Yuhui and Chen, Xilin and Wang, Jingdong},
  booktitle = {Proceedings of the European Conference on Computer Vision},
  year      = {2020}
}""",
)


@register(
    "ocr",
    title="Object-contextual representations",
    family="linear attention",
    summary="attends to the means of k soft regions, which a classifier of its own outlines",
    complexity="O(n d^2 + n d k)",
    formula="Y = cbr([cbr(V softmax(Q^T K / sqrt(d))^T), X]);  K, V from the centres X softmax_n(W_k X)^T",
    paper=OCR,
)
class ObjectContext(ContextBlock):
    """Gather the centres of soft regions, hand them out by attention, fuse with the input.

    In the paper a coarse segmentation, learned from labels of its own, outlines the regions. A block
    has one input and no labels: it owns the classifier, which learns what helps the network's loss.

    Args:
        channels: C of the input.
        regions: number k of soft regions.
        width: d of queries, keys and values; None: C // 2.
    """

    def __init__(self, channels: int, *, regions: int = 19, width: int | None = None) -> None:
        super().__init__(channels)
        self.width = max(channels // 2, 1) if width is None else width
        require_positive(regions=regions, width=self.width)
        self.regions = regions
        self.classify = Conv1x1(channels, regions)
        self.query = nn.Sequential(conv_bn_relu(channels, self.width), conv_bn_relu(self.width, self.width))
        self.key = nn.Sequential(pooled_conv(channels, self.width), pooled_conv(self.width, self.width))
        self.value = pooled_conv(channels, self.width)
        self.out = conv_bn_relu(self.width, channels)
        self.fuse = conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        regions = torch.softmax(flat(self.classify(x)), dim=2)  # (B, K, N), each sums to one
        centres = (flat(x) @ regions.mT)[..., None]  # (B, C, K, 1)
        query, key, value = flat(self.query(x)), flat(self.key(centres)), flat(self.value(centres))
        scores = (query * self.width**-0.5).mT @ key  # (B, N, K)
        context = weighted(value, torch.softmax(scores, dim=-1))  # (B, d, N)
        context = self.out(context.reshape(x.shape[0], self.width, *x.shape[2:]))
        return self.fuse(torch.cat([context, x], dim=1))

    def macs(self, height: int, width: int) -> int:
        c, d, k, n = self.channels, self.width, self.regions, height * width
        regions = 2 * n * k * c
        projections = (n + k) * (c * d + d * d) + k * c * d
        return regions + projections + 2 * n * k * d + n * d * c + 2 * n * c * c

    def param_count(self) -> int:
        c, d, k = self.channels, self.width, self.regions
        return c * k + k + 2 * (c * d + d * d + 4 * d) + c * d + 2 * d + d * c + 2 * c + 2 * c * c + 2 * c
