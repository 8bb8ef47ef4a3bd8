"""External attention: pixels attend to a memory that all images share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, full_precision, he_fan_out_, require_positive
from blocks.registry import Paper, register

EXTERNAL = Paper(
    title="Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks",
    authors="Meng-Hao Guo, Zheng-Ning Liu, Tai-Jiang Mu, Shi-Min Hu",
    year=2022,
    venue="IEEE TPAMI",
    url="https://arxiv.org/abs/2105.02358",
    bibtex="""@article{guo2022external,
  title   = {Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks},
  author  = {Guo, Meng-Hao and Liu, Zheng-Ning and Mu, Tai-Jiang and Hu, Shi-Min},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year    = {2022}
}""",
)

EPS = 1e-9


def double_normalised(scores: Tensor) -> Tensor:
    """Softmax over the pixels, then every pixel's shares over their sum: (B, K, H, W) -> (B, K, H, W)."""
    with full_precision(scores) as dtype:
        shares = torch.softmax(scores.to(dtype).flatten(2), dim=2).reshape(scores.shape)
        return (shares / (EPS + shares.sum(1, keepdim=True))).to(scores.dtype)


@register(
    "external",
    title="External attention",
    family="linear attention",
    summary="pixels attend to k learned keys and values, normalised over the pixels first",
    complexity="O(n d^2 + n d k)",
    formula="Y = ReLU(X + BN(W_2 M_v norm(M_k W_1 X)));  norm = l1 over the memory of softmax over the pixels",
    paper=EXTERNAL,
)
class ExternalAttention(ContextBlock):
    """External attention between two 1x1 convolutions.

    The image acts on a pixel through the softmax over the pixels alone. The official PyTorch code
    means to start with M_v = M_k^T, by letting both share one storage; the later initialisation
    overwrites one by the other, and moving the network to another device parts them. Here both
    memories are independent from the start, as in the paper.

    Args:
        channels: C of the input.
        memory: number k of keys and values.
    """

    def __init__(self, channels: int, *, memory: int = 64) -> None:
        super().__init__(channels)
        require_positive(memory=memory)
        self.memory = memory
        self.project = Conv1x1(channels, channels)
        self.keys = Conv1x1(channels, memory, bias=False)
        self.values = Conv1x1(memory, channels, bias=False)
        self.out = nn.Sequential(Conv1x1(channels, channels, bias=False), nn.BatchNorm2d(channels))
        he_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x + self.branch(x))

    def branch(self, x: Tensor) -> Tensor:
        attention = double_normalised(self.keys(self.project(x)))  # (B, K, H, W)
        return self.out(self.values(attention))

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        return 2 * n * c * (c + self.memory)

    def param_count(self) -> int:
        c = self.channels
        return 2 * c * c + 2 * c * self.memory + 3 * c
