"""The non-local block in its four pairwise functions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, flat, weighted
from blocks.pooling import halve, halved
from blocks.registry import Paper, register

NON_LOCAL = Paper(
    title="Non-local Neural Networks",
    authors="Xiaolong Wang, Ross Girshick, Abhinav Gupta, Kaiming He",
    year=2018,
    venue="CVPR",
    url="https://arxiv.org/abs/1711.07971",
    bibtex="""@inproceedings{wang2018nonlocal,
  title     = {Non-local Neural Networks},
  author    = {Wang, Xiaolong and Girshick, Ross and Gupta, Abhinav and He, Kaiming},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2018}
}""",
)

SOFTMAX_MODES = ("embedded-gaussian", "gaussian")


@register(
    "non-local",
    title="Non-local block",
    family="attention",
    summary="attention at half width behind a batch normalisation that starts at zero",
    complexity="O(n d^2 + n^2 d)",
    formula="Y = X + BN(W G f(Theta, Phi)^T);  f = softmax(Theta^T Phi), Theta^T Phi / m, ReLU(w [Theta; Phi]) / m",
    paper=NON_LOCAL,
)
class NonLocal(ContextBlock):
    """Non-local block of width max(C // 2, 1).

    Args:
        channels: C of the input.
        mode: the pairwise function. "gaussian" compares the input itself, without projections.
        sub_sample: halve height and width of keys and values by 2x2 max-pooling, odd rest dropped;
            a side of length 1 stays as it is.
        scale: divide the scores of a softmax mode by the root of their width.

    Raises:
        ValueError: for `scale` with a mode that has no softmax.
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: Literal["embedded-gaussian", "gaussian", "dot-product", "concat"] = "embedded-gaussian",
        sub_sample: bool = False,
        scale: bool = False,
    ) -> None:
        super().__init__(channels)
        if scale and mode not in SOFTMAX_MODES:
            raise ValueError(
                f"scale=True belongs to a softmax mode ({', '.join(SOFTMAX_MODES)}), not {mode!r}"
            )
        inner = max(channels // 2, 1)
        self.inner, self.mode, self.sub_sample = inner, mode, sub_sample
        self.scale = (channels if mode == "gaussian" else inner) ** -0.5 if scale else 1.0
        self.value = Conv1x1(channels, inner)
        if mode != "gaussian":
            self.query = Conv1x1(channels, inner)
            self.key = Conv1x1(channels, inner)
        if mode == "concat":
            self.pair = Conv1x1(2 * inner, 1, bias=False)
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)  # the block starts as the identity
        self.out = nn.Sequential(Conv1x1(inner, channels), norm)

    def forward(self, x: Tensor) -> Tensor:
        values = flat(self.pooled(self.value(x)))  # (B, C', M)
        context = weighted(values, self.affinity(x))  # (B, C', N)
        return x + self.out(context.reshape(x.shape[0], self.inner, *x.shape[2:]))

    def affinity(self, x: Tensor) -> Tensor:
        """Weights of every position (row) over the pooled positions (column), (B, N, M)."""
        if self.mode == "gaussian":
            query, key = flat(x), flat(self.pooled(x))
        else:
            query, key = flat(self.query(x)), flat(self.pooled(self.key(x)))
        if self.mode in SOFTMAX_MODES:
            query = query * self.scale if self.scale != 1.0 else query
            return torch.softmax(query.mT @ key, dim=-1)
        if self.mode == "dot-product":
            return query.mT @ (key / key.shape[-1])
        # w [query; key] = w_q query + w_k key: two vectors instead of an N x M x 2C' tensor
        for_query, for_key = self.pair.weight.flatten(1).split(self.inner, 1)  # (1, C') each
        pairs = (for_query @ query).mT + for_key @ key  # (B, N, 1) + (B, 1, M)
        return F.relu_(pairs) / key.shape[-1]

    def pooled(self, x: Tensor) -> Tensor:
        return halve(x) if self.sub_sample else x

    def macs(self, height: int, width: int) -> int:
        c, inner, n = self.channels, self.inner, height * width
        down, across = halved(height, width) if self.sub_sample else (height, width)
        m = down * across
        if self.mode == "gaussian":
            return 2 * n * c * inner + n * m * (c + inner)
        if self.mode == "concat":
            return 4 * n * c * inner + (n + m) * inner + n * m * inner
        return 4 * n * c * inner + 2 * n * m * inner

    def param_count(self) -> int:
        c, inner = self.channels, self.inner
        common = 2 * c * inner + inner + 3 * c
        if self.mode == "gaussian":
            return common
        return common + 2 * (c * inner + inner) + (2 * inner if self.mode == "concat" else 0)
