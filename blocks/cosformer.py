"""cosFormer: linear attention whose weights fall with the distance of two pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blocks.multihead import MultiHead, kernel_attention
from blocks.registry import Paper, register

COSFORMER = Paper(
    title="cosFormer: Rethinking Softmax in Attention",
    authors="Zhen Qin, Weixuan Sun, Hui Deng, Dongxu Li, Yunshen Wei, Baohong Lv, Junjie Yan, Lingpeng Kong, Yiran Zhong",
    year=2022,
    venue="ICLR",
    url="https://arxiv.org/abs/2202.08791",
    bibtex="""@inproceedings{qin2022cosformer,
  title     = {cos{F}ormer: Rethinking Softmax in Attention},
  author    = {Qin, Zhen and Sun, Weixuan and Deng, Hui and Li, Dongxu and Wei, Yunshen and Lv, Baohong and Yan, Junjie and Kong, Lingpeng and Zhong, Yiran},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
)


@register(
    "cosformer",
    title="cosFormer",
    family="linear attention",
    summary="linear attention with ReLU features, re-weighted by the cosine of the distance along the pixels",
    complexity="O(n d^2)",
    formula="Y = X + W_o V S^T;  S_ij = ReLU(q_i)^T ReLU(k_j) cos(pi (i - j) / 2n), rows of S over their sum, in every head",
    paper=COSFORMER,
)
class CosFormer(MultiHead):
    """cos(a - b) = cos a cos b + sin a sin b splits the weight into features of queries and of keys.

    Positions i are those of the flattened map, row after row, and M of the paper is the number of
    pixels: as published, for sequences. A weight so falls with the distance in rows, and
    hardly within a row. (Extensions to two dimensions exist, none in the paper.)

    Args:
        channels: C of the input.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]
        position = torch.arange(n, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        angle = position * (math.pi / 2 / n)  # (N,), from 0 to below a right angle
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        # Side by side as maps, (B, heads, 2 d, N), which is how they lie in memory
        q, k = (torch.cat((each * cos, each * sin), dim=-2) for each in (torch.relu(q.mT), torch.relu(k.mT)))
        return kernel_attention(q.mT, k.mT, v)

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        return 4 * n * c * c + 2 * n * c * (2 * self.head_dim + 1)
