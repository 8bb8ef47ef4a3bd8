"""Criss-cross attention: every pixel attends to its row and column."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, require_positive
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


class Turned(torch.autograd.Function):
    """Matrices (B, M, N) turned to (B, N, M) in one piece, and their gradients back in one piece.

    Products of many strided matrices would copy each of them alone, which takes longer.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].mT.contiguous()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].mT.contiguous()


def turned(x: Tensor) -> Tensor:
    """(B, M, N) -> (B, N, M), contiguous."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, Turned.apply(x))
    return x.mT.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C)."""
    return turned(x.flatten(2)).unflatten(1, x.shape[2:])


def criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every pixel over the H + W - 1 pixels of its row and column.

    Args:
        query, key: (B, c, H, W).
        value: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    height = query.shape[2]
    q, k, v = channels_last(query), channels_last(key), channels_last(value)
    # Rows of the image are batched over H, columns over W. A pixel is in both: masked in its column.
    in_column = q.transpose(1, 2) @ k.transpose(1, 2).mT  # (B, W, H, H)
    itself = torch.eye(height, dtype=torch.bool, device=query.device)
    in_column = in_column.masked_fill(itself, -torch.inf).transpose(1, 2)  # (B, H, W, H)
    in_row = q @ k.mT  # (B, H, W, W)
    weights = torch.softmax(torch.cat((in_column, in_row), -1), dim=-1)  # (B, H, W, H + W)
    over_column, over_row = weights.tensor_split((height,), dim=-1)
    from_column = over_column.transpose(1, 2) @ v.transpose(1, 2)  # (B, W, H, C)
    context = from_column.transpose(1, 2) + over_row @ v  # (B, H, W, C)
    return turned(context.flatten(1, 2)).reshape(value.shape)


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
        self.query = Conv1x1(channels, self.inner)
        self.key = Conv1x1(channels, self.inner)
        self.value = Conv1x1(channels, channels)
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
