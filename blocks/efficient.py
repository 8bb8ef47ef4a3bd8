"""Efficient attention: keys and values meet first, so that no pixel is compared with another."""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.base import ContextBlock, Conv1x1, require_divisible, require_positive, split
from blocks.registry import Paper, register

EFFICIENT = Paper(
    title="Efficient Attention: Attention with Linear Complexities",
    authors="Zhuoran Shen, Mingyuan Zhang, Haiyu Zhao, Shuai Yi, Hongsheng Li",
    year=2021,
    venue="WACV",
    url="https://arxiv.org/abs/1812.01243",
    bibtex="""@inproceedings{shen2021efficient,
  title     = {Efficient Attention: Attention with Linear Complexities},
  author    = {Shen, Zhuoran and Zhang, Mingyuan and Zhao, Haiyu and Yi, Shuai and Li, Hongsheng},
  booktitle = {Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision},
  year      = {2021}
}""",
)


@register(
    "efficient",
    title="Efficient attention",
    family="linear attention",
    summary="softmax of queries over channels and of keys over pixels; their product is never formed",
    complexity="O(n d^2)",
    formula="Y = X + W_o (V softmax_n(K)^T) softmax_d(Q)",
    paper=EFFICIENT,
)
class EfficientAttention(ContextBlock):
    """Linear attention in one product for all heads; the official code loops over them.

    Args:
        channels: C of the input.
        keys: width of queries and keys; None: C // 2.
        values: width of the values; None: C // 2.
        heads: splits of both that attend separately.
    """

    def __init__(
        self, channels: int, *, keys: int | None = None, values: int | None = None, heads: int = 1
    ) -> None:
        super().__init__(channels)
        self.keys = max(channels // 2, 1) if keys is None else keys
        self.values = max(channels // 2, 1) if values is None else values
        require_positive(keys=self.keys, values=self.values, heads=heads)
        require_divisible(self.keys, heads, "keys")
        require_divisible(self.values, heads, "values")
        self.heads = heads
        self.query = Conv1x1(channels, self.keys)
        self.key = Conv1x1(channels, self.keys)
        self.value = Conv1x1(channels, self.values)
        self.out = Conv1x1(self.values, channels)

    def forward(self, x: Tensor) -> Tensor:
        query = torch.softmax(split(self.query(x), self.heads), dim=2)  # over the channels of a head
        key = torch.softmax(split(self.key(x), self.heads), dim=3)  # over the pixels
        context = split(self.value(x), self.heads) @ key.mT  # (B, heads, values / heads, keys / heads)
        return x + self.out((context @ query).reshape(x.shape[0], self.values, *x.shape[2:]))

    def macs(self, height: int, width: int) -> int:
        c, k, v, n = self.channels, self.keys, self.values, height * width
        return 2 * n * c * (k + v) + 2 * n * k * v // self.heads

    def param_count(self) -> int:
        c, k, v = self.channels, self.keys, self.values
        return 2 * c * (k + v) + 2 * k + v + c
