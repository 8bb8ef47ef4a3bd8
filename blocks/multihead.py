"""What attention in heads shares: projections, splitting, and its softmax and its linear form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blocks.base import (
    ContextBlock,
    Conv1x1,
    full_precision,
    require_divisible,
    require_positive,
    split,
    weighted,
)

HEAD_DIM = 64  # of ViT, PVT and most that followed; a size that every fused kernel takes
EPS = 1e-6


class MultiHead(ContextBlock):
    """Y = X + W_o attend(W_q X, W_k X, W_v X): biased 1x1 projections at full width.

    Args:
        channels: C of the input.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    def __init__(self, channels: int, *, head_dim: int | None = None) -> None:
        super().__init__(channels)
        width = math.gcd(channels, HEAD_DIM) if head_dim is None else head_dim
        require_positive(head_dim=width)
        require_divisible(channels, width, by="head_dim")
        self.head_dim, self.heads = width, channels // width
        self.query = Conv1x1(channels, channels)
        self.key = Conv1x1(channels, channels)
        self.value = Conv1x1(channels, channels)
        self.out = Conv1x1(channels, channels)

    def split(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, heads, N, d): the tokens of each head in rows."""
        return split(x, self.heads).mT

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(x)
        q, k, v = self.split(self.query(x)), self.split(self.key(seen)), self.split(self.value(seen))
        return x + self.out(self.attend(q, k, v).mT.reshape(x.shape))

    def seen(self, x: Tensor) -> Tensor:
        """The map of which keys and values are made, (B, C, ., .): the input unless a block makes it smaller."""
        return x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, heads, N, d), keys and values (B, heads, M, d) -> context (B, heads, N, d)."""
        return softmax_attention(q, scaled(k), v)

    def param_count(self) -> int:
        return 4 * self.channels * (self.channels + 1)


def scaled(tokens: Tensor) -> Tensor:
    """Queries or keys (..., M, d) over the root of d; whichever are fewer, for the product is the same."""
    return tokens * tokens.shape[-1] ** -0.5


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v, of q (..., N, d), k (..., M, d) and v (..., M, d), either q or k being `scaled`."""
    return weighted(v.mT, torch.softmax(q @ k.mT, dim=-1)).mT


def kernel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (k^T v) / (q k^T 1), for features q and k (..., N, D) that are not negative.

    These are the weights q k^T, normalised over the keys, times v; multiplied from the right there
    is no N x N map. A query without any weight (its sum is below 1e-6) gets nothing or little, and
    not the quotient of two zeros. Costs n (2 D d + D).
    """
    with full_precision(v) as dtype:
        q, k, values = q.to(dtype), k.to(dtype), v.to(dtype)
        total = k.sum(-2, keepdim=True) @ q.mT  # (..., 1, N)
        # Channels before pixels: features that are views of maps give one that is a view of a map.
        context = (values.mT @ k) @ q.mT  # (..., d, N)
        return (context * total.clamp_min(EPS).reciprocal()).mT.to(v.dtype)
