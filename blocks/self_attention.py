"""Self-attention over all pixels: the block the Hamburger paper compares itself with."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import ContextBlock, Conv1x1, require_divisible, require_positive, split, weighted
from blocks.registry import Paper, register

TRANSFORMER = Paper(
    title="Attention Is All You Need",
    authors="Ashish Vaswani, Noam Shazeer, Niki Parmar, Jakob Uszkoreit, Llion Jones, Aidan N. Gomez, "
    "Lukasz Kaiser, Illia Polosukhin",
    year=2017,
    venue="NeurIPS",
    url="https://arxiv.org/abs/1706.03762",
    bibtex="""@inproceedings{vaswani2017attention,
  title     = {Attention Is All You Need},
  author    = {Vaswani, Ashish and Shazeer, Noam and Parmar, Niki and Uszkoreit, Jakob and Jones, Llion and Gomez, Aidan N. and Kaiser, {\\L}ukasz and Polosukhin, Illia},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2017}
}""",
)


@register(
    "self-attn",
    title="Self-attention",
    family="attention",
    summary="every pixel attends to every pixel; queries, keys, values and output at full width",
    complexity="O(n d^2 + n^2 d)",
    formula="Y = X + W_o V softmax(Q^T K / sqrt(d))^T",
    paper=TRANSFORMER,
)
class SelfAttention(ContextBlock):
    """Softmax attention with biased 1x1 projections at full width.

    Args:
        channels: C of the input.
        heads: splits of the channels that attend separately.
        scale: divide the scores by sqrt(C / heads). The table of the Hamburger paper does not.
        impl: "math" forms the N x N map; "sdpa" calls the fused kernel, which never does.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        scale: bool = False,
        impl: Literal["math", "sdpa"] = "math",
    ) -> None:
        super().__init__(channels)
        require_positive(heads=heads)
        require_divisible(channels, heads)
        self.heads, self.impl = heads, impl
        self.scale = (channels // heads) ** -0.5 if scale else 1.0
        self.query = Conv1x1(channels, channels)
        self.key = Conv1x1(channels, channels)
        self.value = Conv1x1(channels, channels)
        self.out = Conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(project(x), self.heads) for project in (self.query, self.key, self.value))
        attend = self.attend_fused if self.impl == "sdpa" else self.attend
        return x + self.out(attend(q, k, v).reshape(x.shape))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.scale != 1.0:
            q = q * self.scale
        return weighted(v, torch.softmax(q.mT @ k, dim=-1))

    def attend_fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Tokens must be contiguous: strided ones fall back to the N x N map without a word.
        q, k, v = (tokens.mT.contiguous() for tokens in (q, k, v))  # (B, heads, N, d)
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale).mT

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        return 4 * n * c * c + 2 * n * n * c

    def param_count(self) -> int:
        return 4 * self.channels * (self.channels + 1)
