"""Dynamic multi-scale filters: depthwise convolutions whose kernels are made from the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, conv_bn_relu, require_positive
from blocks.pooling import means
from blocks.registry import Paper, register

DMNET = Paper(
    title="Dynamic Multi-Scale Filters for Semantic Segmentation",
    authors="Junjun He, Zhongying Deng, Yu Qiao",
    year=2019,
    venue="ICCV",
    url="https://openaccess.thecvf.com/content_ICCV_2019/html/"
    "He_Dynamic_Multi-Scale_Filters_for_Semantic_Segmentation_ICCV_2019_paper.html",
    bibtex="""@inproceedings{he2019dynamic,
  title     = {Dynamic Multi-Scale Filters for Semantic Segmentation},
  author    = {He, Junjun and Deng, Zhongying and Qiao, Yu},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2019}
}""",
)

SIDES = (1, 3, 5, 7)
"""The sides of the filters."""


def filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Every channel of every image by a kernel of its own, zeros around: (B, C, H, W), (B, C, k, k), k odd."""
    if x.shape[0] == 0:  # a convolution without groups is refused
        return x * kernels.sum((2, 3), keepdim=True)
    side = kernels.shape[-1]
    together = x.reshape(1, -1, *x.shape[2:])
    kernels = kernels.reshape(-1, 1, side, side)
    return F.conv2d(together, kernels, padding=side // 2, groups=kernels.shape[0]).reshape(x.shape)


def conv_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Conv1x1(inputs, outputs), nn.ReLU(inplace=True))


class DynamicFilter(nn.Module):
    """Filters of one side: (B, C, H, W) -> (B, width, H, W)."""

    def __init__(self, channels: int, width: int, side: int, norm: bool) -> None:
        super().__init__()
        self.side = side
        self.kernels = Conv1x1(channels, width)
        self.reduce = conv_bn_relu(channels, width) if norm else conv_relu(channels, width)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels(means(x, self.side, self.side))  # (B, w, side, side)
        return torch.relu_(self.norm(filtered(self.reduce(x), kernels)))


@register(
    "dm",
    title="Dynamic multi-scale filters",
    family="convolution",
    summary="depthwise filters of sides 1, 3, 5, 7, which are the pooled image itself, projected",
    complexity="O(n d^2)",
    formula="Y = X + BN(W [ReLU(BN((W_s pool_s X) * cbr_s(X)))]_s);  * depthwise convolution, cbr = ReLU(BN(W x))",
    paper=DMNET,
)
class DynamicMultiScale(ContextBlock):
    """Dynamic convolutional modules, fused by a 1x1 convolution.

    The modules are mmsegmentation's. Its head joins them and the input by a 3x3 convolution, in place
    of the residual; with a 1x1 convolution the block costs what Table 3 of the Hamburger paper prints:
    35.1 GMACs, 268 MB for inference, and 3.01 of 3.00 M parameters, or 3.00 without `norm`.

    Args:
        channels: C of the input.
        width: channels of each module; None: C.
        norm: normalise within the modules; without, a bias is in its place. Behind the fusion is always one.
    """

    def __init__(self, channels: int, *, width: int | None = None, norm: bool = True) -> None:
        super().__init__(channels)
        self.width = channels if width is None else width
        require_positive(width=self.width)
        self.norm = norm
        self.filters = nn.ModuleList(DynamicFilter(channels, self.width, side, norm) for side in SIDES)
        joined = len(SIDES) * self.width
        self.out = nn.Sequential(Conv1x1(joined, channels, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.cat([each(x) for each in self.filters], dim=1))

    def macs(self, height: int, width: int) -> int:
        c, w, n, levels = self.channels, self.width, height * width, len(SIDES)
        cells = sum(side**2 for side in SIDES)
        return (levels * n + cells) * c * w + n * cells * w + n * levels * w * c

    def param_count(self) -> int:
        c, w, levels = self.channels, self.width, len(SIDES)
        return levels * (2 * c * w + (5 if self.norm else 2) * w) + levels * w * c + 2 * c
