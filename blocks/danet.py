"""Dual attention: pixels attend to pixels, and channels to channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, conv_bn_relu, flat, weighted, wide_precision
from blocks.registry import Paper, register

DANET = Paper(
    title="Dual Attention Network for Scene Segmentation",
    authors="Jun Fu, Jing Liu, Haijie Tian, Yong Li, Yongjun Bao, Zhiwei Fang, Hanqing Lu",
    year=2019,
    venue="CVPR",
    url="https://arxiv.org/abs/1809.02983",
    bibtex="""@inproceedings{fu2019danet,
  title     = {Dual Attention Network for Scene Segmentation},
  author    = {Fu, Jun and Liu, Jing and Tian, Haijie and Li, Yong and Bao, Yongjun and Fang, Zhiwei and Lu, Hanqing},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2019}
}""",
)


def channel_attention(x: Tensor) -> Tensor:
    """Every channel rebuilt from those *least* like it, (B, C, N) -> (B, C, N).

    The official code weighs channels by softmax(max - energy), that is softmax(-energy); the paper
    prints softmax(energy). The energies are sums over N, and
    exponents: half precision is too coarse for them.
    """
    with wide_precision(x) as dtype:
        wide = x.to(dtype)
        return (torch.softmax(-(wide @ wide.mT), dim=-1) @ wide).to(x.dtype)


@register(
    "danet",
    title="Dual attention",
    family="attention",
    summary="position attention with C/8 queries beside channel attention, summed",
    complexity="O(n d^2 + n^2 d)",
    formula="Y = X + g_p V softmax(Q^T K)^T + g_c softmax(-X X^T) X;  with convs: the sum of both branches' 3x3 convs",
    paper=DANET,
)
class DualAttention(ContextBlock):
    """Position and channel attention, each behind a gate that starts at zero.

    Without `convs` both share one residual, so that the block starts as the identity.

    Args:
        channels: C of the input.
        convs: put a 3x3 conv-BN-ReLU after each branch (with its own residual) before the sum, as
            the paper's module does.
    """

    def __init__(self, channels: int, *, convs: bool = False) -> None:
        super().__init__(channels)
        self.inner = max(channels // 8, 1)
        self.query = Conv1x1(channels, self.inner)
        self.key = Conv1x1(channels, self.inner)
        self.value = Conv1x1(channels, channels)
        self.position_gate = nn.Parameter(torch.zeros(1))
        self.channel_gate = nn.Parameter(torch.zeros(1))
        self.convs = convs
        if convs:
            self.position_conv = conv_bn_relu(channels, channels, 3)
            self.channel_conv = conv_bn_relu(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        by_position = self.position_gate * self.position_attention(x)
        by_channel = self.channel_gate * channel_attention(flat(x)).reshape(x.shape)
        if self.convs:
            return self.position_conv(x + by_position) + self.channel_conv(x + by_channel)
        return x + by_position + by_channel

    def position_attention(self, x: Tensor) -> Tensor:
        weights = torch.softmax(flat(self.query(x)).mT @ flat(self.key(x)), dim=-1)  # (B, N, N)
        return weighted(flat(self.value(x)), weights).reshape(x.shape)

    def macs(self, height: int, width: int) -> int:
        c, inner, n = self.channels, self.inner, height * width
        position = n * c * (2 * inner + c) + n * n * (inner + c)
        return position + 2 * n * c * c + (18 * n * c * c if self.convs else 0)

    def param_count(self) -> int:
        c, inner = self.channels, self.inner
        return (c + 1) * (2 * inner + c) + 2 + (18 * c * c + 4 * c if self.convs else 0)
