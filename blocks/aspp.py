"""Atrous spatial pyramid pooling: convolutions with holes of several sizes, and the image's mean."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, conv_bn_relu, require_positive
from blocks.pooling import pooled_conv
from blocks.registry import Paper, register

DEEPLAB_V3 = Paper(
    title="Rethinking Atrous Convolution for Semantic Image Segmentation",
    authors="Liang-Chieh Chen, George Papandreou, Florian Schroff, Hartwig Adam",
    year=2017,
    venue="arXiv",
    url="https://arxiv.org/abs/1706.05587",
    bibtex="""@article{chen2017rethinking,
  title   = {Rethinking Atrous Convolution for Semantic Image Segmentation},
  author  = {Chen, Liang-Chieh and Papandreou, George and Schroff, Florian and Adam, Hartwig},
  journal = {arXiv preprint arXiv:1706.05587},
  year    = {2017}
}""",
)

ATROUS = 3  # convolutions, with holes of one, two and three rates


@register(
    "aspp",
    title="Atrous spatial pyramid pooling",
    family="convolution",
    summary="1x1, three dilated 3x3 convolutions and the image's mean, fused by a convolution",
    complexity="O(n d^2)",
    formula="Y = cbr([cbr_1x1 X, cbr_r X, cbr_2r X, cbr_3r X, cbr mean(X)]);  cbr = ReLU(BN(W x)), r the dilation",
    paper=DEEPLAB_V3,
)
class AtrousPyramid(ContextBlock):
    """ASPP with image pooling; there is no residual besides the fusion.

    A batch of one image has one mean per channel, which batch normalisation in training refuses;
    here it is normalised by the running statistics then.

    Args:
        channels: C of the input.
        width: channels of each branch; None: C.
        rate: the first dilation; the others are twice and three times that. 6 belongs to features
            at 1/16 of the image, 12 at 1/8.
        kernel: of the convolution that fuses the branches: mmsegmentation's 3, or the paper's 1.
    """

    def __init__(
        self, channels: int, *, width: int | None = None, rate: int = 6, kernel: Literal[1, 3] = 3
    ) -> None:
        super().__init__(channels)
        self.width = channels if width is None else width
        require_positive(width=self.width, rate=rate)
        self.kernel = kernel
        self.image = pooled_conv(channels, self.width)
        self.branches = nn.ModuleList([conv_bn_relu(channels, self.width)])
        for number in range(1, ATROUS + 1):
            self.branches.append(conv_bn_relu(channels, self.width, 3, dilation=number * rate))
        self.fuse = conv_bn_relu((ATROUS + 2) * self.width, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.fuse(torch.cat([image, *(each(x) for each in self.branches)], dim=1))

    def macs(self, height: int, width: int) -> int:
        c, w, n = self.channels, self.width, height * width
        branches = n * (1 + 9 * ATROUS) * c * w + c * w
        return branches + n * self.kernel**2 * (ATROUS + 2) * w * c

    def param_count(self) -> int:
        c, w, branches = self.channels, self.width, ATROUS + 2
        return (2 + 9 * ATROUS) * c * w + branches * 2 * w + self.kernel**2 * branches * w * c + 2 * c
