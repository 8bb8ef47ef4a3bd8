"""Linformer: keys and values are projected to a fixed number of tokens."""

from __future__ import annotations

from torch import Tensor

from blocks.base import flat, require_positive
from blocks.multihead import MultiHead
from blocks.pooling import means
from blocks.registry import Paper, register

LINFORMER = Paper(
    title="Linformer: Self-Attention with Linear Complexity",
    authors="Sinong Wang, Belinda Z. Li, Madian Khabsa, Han Fang, Hao Ma",
    year=2020,
    venue="arXiv",
    url="https://arxiv.org/abs/2006.04768",
    bibtex="""@article{wang2020linformer,
  title   = {Linformer: Self-Attention with Linear Complexity},
  author  = {Wang, Sinong and Li, Belinda Z. and Khabsa, Madian and Fang, Han and Ma, Hao},
  journal = {arXiv preprint arXiv:2006.04768},
  year    = {2020}
}""",
)


@register(
    "linformer",
    title="Linformer",
    family="linear attention",
    summary="every pixel attends to the means of 256 segments of the image",
    complexity="O(n d^2 + n k d)",
    formula="Y = X + W_o (V E) softmax(Q^T (K E) / sqrt(d_h))^T, in every head;  E averages over k segments of pixels",
    paper=LINFORMER,
)
class Linformer(MultiHead):
    """Attention to k projected tokens, with mean pooling for the projection E along the pixels.

    The paper learns E, an n x k matrix that binds the block to one n. Here any size must do, so that
    E is the projection without parameters which the paper names beside it ("general projections":
    mean pooling), over k equal segments of the pixels in rows. Where k does not divide n, segments
    share a pixel at their ends; with n <= k pixels it is plain attention. E comes before W_k and
    W_v: the result is the same, as a mean and a 1x1 convolution commute, and costs less.

    Args:
        channels: C of the input.
        tokens: number k of projected keys.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    def __init__(self, channels: int, *, tokens: int = 256, head_dim: int | None = None) -> None:
        super().__init__(channels, head_dim=head_dim)
        require_positive(tokens=tokens)
        self.tokens = tokens

    def seen(self, x: Tensor) -> Tensor:
        row = flat(x).unsqueeze(2)  # (B, C, 1, N)
        return means(row, 1, min(self.tokens, row.shape[3]))

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        m = min(self.tokens, n)
        return 2 * (n + m) * c * c + 2 * n * m * c
