"""Attention of SAGAN: every pixel attends to a pooled image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, flat, weighted
from blocks.pooling import halve, halved
from blocks.registry import Paper, register

SAGAN = Paper(
    title="Self-Attention Generative Adversarial Networks",
    authors="Han Zhang, Ian Goodfellow, Dimitris Metaxas, Augustus Odena",
    year=2019,
    venue="ICML",
    url="https://arxiv.org/abs/1805.08318",
    bibtex="""@inproceedings{zhang2019sagan,
  title     = {Self-Attention Generative Adversarial Networks},
  author    = {Zhang, Han and Goodfellow, Ian and Metaxas, Dimitris and Odena, Augustus},
  booktitle = {Proceedings of the International Conference on Machine Learning},
  year      = {2019}
}""",
)


@register(
    "sagan",
    title="Self-attention of SAGAN",
    family="attention",
    summary="attends to keys and values that 2x2 max-pooling has quartered, behind a gate that starts at zero",
    complexity="O(n d^2 + n^2 d)",
    formula="Y = X + g W_o pool(G) softmax(Theta^T pool(Phi))^T",
    paper=SAGAN,
)
class PooledSelfAttention(ContextBlock):
    """Queries and keys of C // 8 channels, values of C // 2, without biases.

    Keys and values are halved in height and width, an odd rest is dropped, and a side of length 1
    stays as it is, where the official code has nothing left. Many ports leave the pooling out and
    give values full width: that is the position attention of `danet`.

    Spectral normalisation is the network's, not the block's: whoever builds a GAN puts it on every
    convolution, this block's among them, as `ctxbench task` does.

    Args:
        channels: C of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.inner, self.wide = max(channels // 8, 1), max(channels // 2, 1)
        self.query = Conv1x1(channels, self.inner, bias=False)
        self.key = Conv1x1(channels, self.inner, bias=False)
        self.value = Conv1x1(channels, self.wide, bias=False)
        self.out = Conv1x1(self.wide, channels, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = flat(self.query(x)), flat(halve(self.key(x))), flat(halve(self.value(x)))
        context = weighted(value, torch.softmax(query.mT @ key, dim=-1))  # (B, C / 2, N)
        return x + self.gate * self.out(context.reshape(x.shape[0], self.wide, *x.shape[2:]))

    def macs(self, height: int, width: int) -> int:
        c, inner, wide, n = self.channels, self.inner, self.wide, height * width
        down, across = halved(height, width)
        return 2 * n * c * (inner + wide) + n * down * across * (inner + wide)

    def param_count(self) -> int:
        return 2 * self.channels * (self.inner + self.wide) + 1
