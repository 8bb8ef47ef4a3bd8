"""Disentangled non-local block: what sets a pair of pixels apart, and what stands out for all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, flat, require_positive, weighted
from blocks.registry import Paper, register

DNL = Paper(
    title="Disentangled Non-Local Neural Networks",
    authors="Minghao Yin, Zhuliang Yao, Yue Cao, Xiu Li, Zheng Zhang, Stephen Lin, Han Hu",
    year=2020,
    venue="ECCV",
    url="https://arxiv.org/abs/2006.06668",
    bibtex="""@inproceedings{yin2020dnl,
  title     = {Disentangled Non-Local Neural Networks},
  author    = {Yin, Minghao and Yao, Zhuliang and Cao, Yue and Li, Xiu and Zhang, Zheng and Lin, Stephen and Hu, Han},
  booktitle = {Proceedings of the European Conference on Computer Vision},
  year      = {2020}
}""",
)


def whitened(x: Tensor) -> Tensor:
    """Without its mean over the pixels, (B, C, N) -> (B, C, N)."""
    return x - x.mean(2, keepdim=True)


@register(
    "dnl",
    title="Disentangled non-local block",
    family="attention",
    summary="attention between whitened pixels, plus one attention map that all pixels share",
    complexity="O(n d^2 + n^2 d)",
    formula="Y = X + BN(W G (softmax((Q - mean Q)^T (K - mean K) / (t sqrt(d))) + softmax_n(m X))^T)",
    paper=DNL,
)
class DisentangledNonLocal(ContextBlock):
    """Pairwise attention of whitened queries and keys, and a unary term, at width max(C // 2, 1).

    The batch normalisation behind it starts at zero, and with it the block as the identity. The
    official code whitens in place, which in one of its modes changes the caller's input; nothing is
    changed in place here.

    Args:
        channels: C of the input.
        temperature: what the pairwise scores are divided by; small ones sharpen the softmax.
        scale: also divide them by the root of their width.
    """

    def __init__(self, channels: int, *, temperature: float = 0.05, scale: bool = True) -> None:
        super().__init__(channels)
        require_positive(temperature=temperature)
        self.inner = max(channels // 2, 1)
        self.sharpness = (self.inner**-0.5 if scale else 1.0) / temperature
        self.query = Conv1x1(channels, self.inner)
        self.key = Conv1x1(channels, self.inner)
        self.value = Conv1x1(channels, self.inner)
        self.mask = Conv1x1(channels, 1)
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)  # the block starts as the identity
        self.out = nn.Sequential(Conv1x1(self.inner, channels, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = flat(self.query(x)), flat(self.key(x)), flat(self.value(x))
        scores = (whitened(query) * self.sharpness).mT @ whitened(key)  # (B, N, N)
        pairwise = weighted(value, torch.softmax(scores, dim=-1))  # (B, C', N)
        unary = value @ torch.softmax(flat(self.mask(x)), dim=-1).mT  # (B, C', 1)
        return x + self.out((pairwise + unary).reshape(x.shape[0], self.inner, *x.shape[2:]))

    def macs(self, height: int, width: int) -> int:
        c, inner, n = self.channels, self.inner, height * width
        return 4 * n * c * inner + 2 * n * n * inner + n * (c + inner)

    def param_count(self) -> int:
        c, inner = self.channels, self.inner
        return 4 * c * inner + 3 * inner + 2 * c + c + 1
