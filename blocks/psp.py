"""Pyramid pooling: the image's means over coarser and finer grids, beside every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, conv_bn_relu, require_positive
from blocks.pooling import PYRAMID, enlarged, means, pooled_conv
from blocks.registry import Paper, register

PSPNET = Paper(
    title="Pyramid Scene Parsing Network",
    authors="Hengshuang Zhao, Jianping Shi, Xiaojuan Qi, Xiaogang Wang, Jiaya Jia",
    year=2017,
    venue="CVPR",
    url="https://arxiv.org/abs/1612.01105",
    bibtex="""@inproceedings{zhao2017pyramid,
  title     = {Pyramid Scene Parsing Network},
  author    = {Zhao, Hengshuang and Shi, Jianping and Qi, Xiaojuan and Wang, Xiaogang and Jia, Jiaya},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017}
}""",
)


@register(
    "psp",
    title="Pyramid pooling",
    family="pooling",
    summary="means over 1, 4, 9 and 36 parts of the image, enlarged and fused with it by a 3x3 convolution",
    complexity="O(n d^2)",
    formula="Y = cbr_3x3([X, up(cbr_1(pool_1 X)), ..., up(cbr_6(pool_6 X))]);  cbr = ReLU(BN(W x))",
    paper=PSPNET,
)
class PyramidPooling(ContextBlock):
    """Pyramid pooling module with the convolution that fuses it; there is no residual besides.

    A batch of one image has one mean per channel, which batch normalisation in training refuses;
    here it is normalised by the running statistics then.

    Args:
        channels: C of the input.
        width: channels of each pooled map; None: C, as in mmsegmentation. The paper takes C // 4.
    """

    def __init__(self, channels: int, *, width: int | None = None) -> None:
        super().__init__(channels)
        self.width = channels if width is None else width
        require_positive(width=self.width)
        self.levels = nn.ModuleList(pooled_conv(channels, self.width) for _ in PYRAMID)
        self.fuse = conv_bn_relu(channels + len(PYRAMID) * self.width, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [level(means(x, side, side)) for level, side in zip(self.levels, PYRAMID, strict=True)]
        return self.fuse(torch.cat([x, *(enlarged(each, x) for each in pooled)], dim=1))

    def macs(self, height: int, width: int) -> int:
        c, w, n = self.channels, self.width, height * width
        cells = sum(side**2 for side in PYRAMID)
        return cells * c * w + 9 * n * (c + len(PYRAMID) * w) * c

    def param_count(self) -> int:
        c, w, levels = self.channels, self.width, len(PYRAMID)
        return levels * (c * w + 2 * w) + 9 * (c + levels * w) * c + 2 * c
