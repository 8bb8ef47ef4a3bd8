"""Criss-cross attention: every pixel attends to its row and column."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, conv1x1, require_positive
from blocks.registry import Paper, register

CCNET = Paper(
    title="CCNet: Criss-Cross Attention for Semantic Segmentation",
    authors="Zilong Huang, Xinggang Wang, Lichao Huang, Chang Huang, Yunchao Wei, Wenyu Liu",
    year=2019,
    venue="ICCV",
    url="https://arxiv.org/abs/1811.11721",
    bibtex="""@inproceedings{huang2019ccnet,
  title     = {{CCNet}: Criss-Cross Attention for Semantic Segmentation},
  author    = {Huang, Zilong and Wang, Xinggang and Huang, Lichao and Huang, Chang and Wei, Yunchao and Liu, Wenyu},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2019}
}""",
)


def criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every pixel over the H + W - 1 pixels of its row and column.

    Args:
        query, key: (B, c, H, W).
        value: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    height = query.shape[2]
    # Columns of the image are batched over W, rows over H. A pixel is in both: masked in its column.
    in_column = query.permute(0, 3, 2, 1) @ key.permute(0, 3, 1, 2)  # (B, W, H, H)
    itself = torch.eye(height, dtype=torch.bool, device=query.device)
    in_column = in_column.masked_fill(itself, -torch.inf).transpose(1, 2)  # (B, H, W, H)
    in_row = query.permute(0, 2, 3, 1) @ key.permute(0, 2, 1, 3)  # (B, H, W, W)
    weights = torch.softmax(torch.cat((in_column, in_row), -1), dim=-1)  # (B, H, W, H + W)
    over_column, over_row = weights.tensor_split((height,), dim=-1)
    from_column = value.permute(0, 3, 1, 2) @ over_column.permute(0, 2, 3, 1)  # (B, W, C, H)
    from_row = value.permute(0, 2, 1, 3) @ over_row.mT  # (B, H, C, W)
    return from_column.permute(0, 2, 3, 1) + from_row.permute(0, 2, 1, 3)


@register(
    "ccnet",
    title="Criss-cross attention",
    family="attention",
    summary="attends along the row and the column of a pixel; twice in turn reaches every pixel",
    complexity="O(n d^2 + n (h + w) d)",
    formula="X <- X + gamma V softmax(Q^T K over row and column)^T, applied `recurrence` times",
    paper=CCNET,
)
class CrissCross(ContextBlock):
    """Recurrent criss-cross attention with shared weights; queries and keys have C // 8 channels.

    Args:
        channels: C of the input.
        recurrence: how often the module is applied; 2 let every pixel see every other.
    """

    def __init__(self, channels: int, *, recurrence: int = 2) -> None:
        super().__init__(channels)
        require_positive(recurrence=recurrence)
        self.inner, self.recurrence = max(channels // 8, 1), recurrence
        self.query = conv1x1(channels, self.inner)
        self.key = conv1x1(channels, self.inner)
        self.value = conv1x1(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            x = x + self.gamma * criss_cross(self.query(x), self.key(x), self.value(x))
        return x

    def macs(self, height: int, width: int) -> int:
        c, inner, n = self.channels, self.inner, height * width
        return self.recurrence * (n * c * (2 * inner + c) + n * (height + width) * (inner + c))

    def param_count(self) -> int:
        return (self.channels + 1) * (2 * self.inner + self.channels) + 1
