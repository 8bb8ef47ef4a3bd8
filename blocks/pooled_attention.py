"""Attention whose keys and values are a small, pooled map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from blocks.base import ChannelNorm, Conv1x1, require_positive
from blocks.multihead import MultiHead
from blocks.pooling import pooled_map
from blocks.registry import Paper, register

PVT_V2 = Paper(
    title="PVT v2: Improved Baselines with Pyramid Vision Transformer",
    authors="Wenhai Wang, Enze Xie, Xiang Li, Deng-Ping Fan, Kaitao Song, Ding Liang, Tong Lu, Ping Luo, Ling Shao",
    year=2022,
    venue="Computational Visual Media",
    url="https://arxiv.org/abs/2106.13797",
    bibtex="""@article{wang2022pvtv2,
  title   = {{PVT} v2: Improved Baselines with Pyramid Vision Transformer},
  author  = {Wang, Wenhai and Xie, Enze and Li, Xiang and Fan, Deng-Ping and Song, Kaitao and Liang, Ding and Lu, Tong and Luo, Ping and Shao, Ling},
  journal = {Computational Visual Media},
  volume  = {8},
  number  = {3},
  pages   = {415--424},
  year    = {2022}
}""",
)


@register(
    "pooled-attn",
    title="Attention over a pooled map",
    family="linear attention",
    summary="every pixel attends to the image pooled to 7 x 7 (linear spatial reduction)",
    complexity="O(n d^2 + n p^2 d)",
    formula="Y = X + W_o V softmax(Q^T K / sqrt(d_h))^T, in every head;  Q = W_q X,  [K; V] = W_kv GELU(LN(W_r pool(X)))",
    paper=PVT_V2,
)
class PooledAttention(MultiHead):
    """Linear spatial-reduction attention of PVT v2: queries of all pixels, keys and values of p x p.

    PVT's first version reduces by a strided convolution, which leaves n / R^2 keys; the second's
    linear form pools to a fixed size. An image smaller than the pooled map is not enlarged.

    Args:
        channels: C of the input.
        pool: side p of the pooled map.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    def __init__(self, channels: int, *, pool: int = 7, head_dim: int | None = None) -> None:
        super().__init__(channels, head_dim=head_dim)
        require_positive(pool=pool)
        self.pool = pool
        self.reduce = Conv1x1(channels, channels)
        self.norm = ChannelNorm(channels)

    def seen(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.reduce(pooled_map(x, self.pool))))

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        m = min(self.pool, height) * min(self.pool, width)
        return (2 * n + 3 * m) * c * c + 2 * n * m * c

    def param_count(self) -> int:
        return super().param_count() + self.channels * (self.channels + 1) + 2 * self.channels
