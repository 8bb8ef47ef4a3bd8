"""Adaptive pyramid context: every pixel weighs the parts of the image by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, conv_bn_relu, flat, require_positive
from blocks.pooling import PYRAMID, means, pooled_conv
from blocks.registry import Paper, register

APCNET = Paper(
    title="Adaptive Pyramid Context Network for Semantic Segmentation",
    authors="Junjun He, Zhongying Deng, Lei Zhou, Yali Wang, Yu Qiao",
    year=2019,
    venue="CVPR",
    url="https://openaccess.thecvf.com/content_CVPR_2019/html/"
    "He_Adaptive_Pyramid_Context_Network_for_Semantic_Segmentation_CVPR_2019_paper.html",
    bibtex="""@inproceedings{he2019adaptive,
  title     = {Adaptive Pyramid Context Network for Semantic Segmentation},
  author    = {He, Junjun and Deng, Zhongying and Zhou, Lei and Wang, Yali and Qiao, Yu},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2019}
}""",
)


class AdaptiveContext(nn.Module):
    """One level of the pyramid: (B, C, H, W) -> (B, width, H, W), from side x side means of the image."""

    def __init__(self, channels: int, width: int, side: int, convs: bool) -> None:
        super().__init__()
        self.side = side
        self.local = conv_bn_relu(channels, width) if convs or width != channels else nn.Identity()
        self.image = pooled_conv(width, width) if convs else nn.Identity()
        self.parts = pooled_conv(channels, width)
        self.affinity = Conv1x1(width, side * side)
        self.context = conv_bn_relu(width, width) if convs else nn.Identity()
        self.out = conv_bn_relu(width, width) if convs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        image = self.image(local.mean((2, 3), keepdim=True))  # (B, w, 1, 1)
        parts = flat(self.parts(means(x, self.side, self.side)))  # (B, w, side^2)
        # A (local + image) = A local + A image: no map of the sum
        affinity = self.affinity(local) + F.conv2d(image, self.affinity.weight)
        weights = torch.sigmoid(flat(affinity))  # (B, side^2, N)
        context = self.context((parts @ weights).reshape(local.shape))
        return self.out(torch.relu_(context + local))


@register(
    "apc",
    title="Adaptive pyramid context",
    family="pooling",
    summary="adds to each pixel the means over parts of the image, weighed by gates of its own",
    complexity="O(n d^2)",
    formula="Y = X + BN(W [ReLU(P_s sigmoid(A_s (X + mean X)) + X)]_s);  P_s = cbr(pool_s X), cbr = ReLU(BN(W x))",
    paper=APCNET,
)
class AdaptivePyramid(ContextBlock):
    """Adaptive context modules at the sides 1, 2, 3, 6 of a pyramid, fused by a 1x1 convolution.

    Without `convs` this is the lightest form of the module, whose parameters and memory are those that
    Table 3 of the Hamburger paper prints (2.03 M, 264 MB); of its 18.0 GMACs the printed 17.6 lack the
    products of parts and weights. mmsegmentation's head joins the modules and the input by a 3x3
    convolution, in place of the residual. A pooled map with one value per channel, which batch
    normalisation in training refuses, is normalised by the running statistics.

    Args:
        channels: C of the input.
        width: w of each module; None: C. Where it is not C, each module first projects its input to it.
        convs: project the input, the image's mean, each module's context and its output, as
            mmsegmentation's modules do.
    """

    def __init__(self, channels: int, *, width: int | None = None, convs: bool = False) -> None:
        super().__init__(channels)
        self.width = channels if width is None else width
        require_positive(width=self.width)
        self.convs = convs
        self.levels = nn.ModuleList(AdaptiveContext(channels, self.width, side, convs) for side in PYRAMID)
        joined = len(PYRAMID) * self.width
        self.out = nn.Sequential(Conv1x1(joined, channels, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.cat([level(x) for level in self.levels], dim=1))

    def macs(self, height: int, width: int) -> int:
        c, w, n, levels = self.channels, self.width, height * width, len(PYRAMID)
        cells = sum(side**2 for side in PYRAMID)
        local = n * c * w if self.convs or w != c else 0
        convs = (2 * n + 1) * w * w if self.convs else 0
        return levels * (local + convs) + cells * c * w + (2 * n + 1) * cells * w + n * levels * w * c

    def param_count(self) -> int:
        c, w, levels = self.channels, self.width, len(PYRAMID)
        cells = sum(side**2 for side in PYRAMID)
        projections = 2 if self.convs or w != c else 1
        each = projections * (c * w + 2 * w) + (3 * (w * w + 2 * w) if self.convs else 0)
        return levels * each + cells * (w + 1) + levels * w * c + 2 * c
