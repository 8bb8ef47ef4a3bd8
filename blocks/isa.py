"""Interlaced sparse attention: first among pixels far apart, then among neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import (
    ContextBlock,
    Conv1x1,
    conv_bn_relu,
    flat,
    open_sides,
    require_positive,
    weighted,
)
from blocks.registry import ExportLimit, Paper, register

ISA = Paper(
    title="Interlaced Sparse Self-Attention for Semantic Segmentation",
    authors="Lang Huang, Yuhui Yuan, Jianyuan Guo, Chao Zhang, Xilin Chen, Jingdong Wang",
    year=2019,
    venue="arXiv",
    url="https://arxiv.org/abs/1907.12273",
    bibtex="""@article{huang2019interlaced,
  title   = {Interlaced Sparse Self-Attention for Semantic Segmentation},
  author  = {Huang, Lang and Yuan, Yuhui and Guo, Jianyuan and Zhang, Chao and Chen, Xilin and Wang, Jingdong},
  journal = {arXiv preprint arXiv:1907.12273},
  year    = {2019}
}""",
)

# Axes of an image in cells: (B, C, row of cells, row within, column of cells, column within). The groups'
# two come first, then C, then the tokens' two; and the way back.
FAR = (0, 3, 5, 1, 2, 4), (0, 3, 4, 1, 5, 2)
NEAR = (0, 2, 4, 1, 3, 5), (0, 3, 1, 4, 2, 5)


class GroupAttention(nn.Module):
    """Attention among the pixels of a group: those at one place of every cell, or those of one cell.

    Args:
        channels: C of input and output.
        width: d of queries and keys.
        cell: side of a cell.
        far: groups of pixels far apart.
    """

    def __init__(self, channels: int, width: int, cell: int, far: bool) -> None:
        super().__init__()
        self.scale, self.cell, self.far = width**-0.5, cell, far
        self.query = nn.Sequential(conv_bn_relu(channels, width), conv_bn_relu(width, width))
        self.key = nn.Sequential(conv_bn_relu(channels, width), conv_bn_relu(width, width))
        self.value = Conv1x1(channels, channels)
        self.out = conv_bn_relu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = open_sides(x) or bool(height % self.cell or width % self.cell)
        # Groups are the images of a batch. Only pixels are projected: what is padded goes apart after it.
        apart = x if padded else self.groups(x)
        query, key, value = (each(apart) for each in (self.query, self.key, self.value))
        if padded:
            query, key, value = map(self.groups, (query, key, value))
        scores = flat(query * self.scale).mT @ flat(key)  # (B * groups, tokens, tokens)
        if padded:
            inside = flat(self.groups(torch.ones_like(x[:, :1]))).bool()  # (B * groups, 1, tokens)
            # Not -inf: a group may hold nothing but padding.
            scores = scores.masked_fill(~inside, torch.finfo(scores.dtype).min)
        context = weighted(flat(value), torch.softmax(scores, dim=-1)).reshape(value.shape)
        if padded:
            return self.out(self.pixels(context, height, width))
        return self.pixels(self.out(context), height, width)

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """How many cells lie below and beside one another."""
        return (height + self.cell - 1) // self.cell, (width + self.cell - 1) // self.cell

    def groups(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B * groups, C, h, w), h w tokens each; zeros beyond the sides."""
        height, width = x.shape[2:]
        down, across = self.cells(height, width)
        padded = F.pad(x, (0, across * self.cell - width, 0, down * self.cell - height))
        cells = padded.unflatten(3, (across, self.cell)).unflatten(2, (down, self.cell))
        return cells.permute((FAR if self.far else NEAR)[0]).flatten(0, 2)

    def pixels(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B * groups, C, h, w) -> (B, C, H, W)."""
        groups = (self.cell, self.cell) if self.far else self.cells(height, width)
        apart = x.unflatten(0, (-1, *groups)).permute((FAR if self.far else NEAR)[1])
        return apart.flatten(4).flatten(2, 3)[..., :height, :width]


@register(
    "isa",
    title="Interlaced sparse self-attention",
    family="attention",
    summary="attention among pixels at one place of every cell, then among those of one cell",
    complexity="O(n d^2 + n (n / s^2 + s^2) d)",
    formula="Y = cbr([near(far(X)), X]);  each = cbr(V softmax(Q^T K / sqrt(d))^T) in groups; cbr = ReLU(BN(W x))",
    paper=ISA,
    limits=(ExportLimit("torch.export", "sides split into cells, or do not, as the example's", sizes=True),),
)
class InterlacedSparse(ContextBlock):
    """Long-range, then short-range attention on a grid of cells, fused with the input.

    Sides that do not split into cells are padded below and to the right. The official code lets the
    padding's zeros take part in attention and batch normalisation, which darkens the border; here they
    are masked, and only pixels are projected. On sides that split both are the same.

    Args:
        channels: C of the input.
        width: d of queries and keys; None: C // 2.
        cell: side s of a cell, in pixels.
    """

    def __init__(self, channels: int, *, width: int | None = None, cell: int = 8) -> None:
        super().__init__(channels)
        self.width = max(channels // 2, 1) if width is None else width
        require_positive(width=self.width, cell=cell)
        self.cell = cell
        self.far = GroupAttention(channels, self.width, cell, far=True)
        self.near = GroupAttention(channels, self.width, cell, far=False)
        self.fuse = conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.near(self.far(x)), x], dim=1))

    def macs(self, height: int, width: int) -> int:
        c, d, n, near = self.channels, self.width, height * width, self.cell**2
        far = -(-height // self.cell) * -(-width // self.cell)  # cells, and tokens of a far group
        projections = 2 * n * (2 * (c * d + d * d) + 2 * c * c)
        return projections + far * near * (far + near) * (d + c) + 2 * n * c * c

    def param_count(self) -> int:
        c, d = self.channels, self.width
        each = 2 * (c * d + d * d + 4 * d) + 2 * c * c + 3 * c
        return 2 * each + 2 * c * c + 2 * c
