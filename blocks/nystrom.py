"""Nyströmformer: softmax attention rebuilt from a few landmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.base import require_positive, wide_precision
from blocks.multihead import MultiHead, scaled, softmax_attention
from blocks.pooling import means
from blocks.registry import Paper, register

NYSTROMFORMER = Paper(
    title="Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention",
    authors="Yunyang Xiong, Zhanpeng Zeng, Rudrasis Chakraborty, Mingxing Tan, Glenn Fung, Yin Li, Vikas Singh",
    year=2021,
    venue="AAAI",
    url="https://arxiv.org/abs/2102.03902",
    bibtex="""@inproceedings{xiong2021nystromformer,
  title     = {Nystr{\\"o}mformer: A {N}ystr{\\"o}m-Based Algorithm for Approximating Self-Attention},
  author    = {Xiong, Yunyang and Zeng, Zhanpeng and Chakraborty, Rudrasis and Tan, Mingxing and Fung, Glenn and Li, Yin and Singh, Vikas},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2021}
}""",
)


def segment_means(tokens: Tensor, segments: int) -> Tensor:
    """(B, heads, N, d) -> (B, heads, min(N, segments), d): means over equal segments of the tokens."""
    columns = tokens.mT.flatten(0, 1).unsqueeze(2)  # (B heads, d, 1, N)
    pooled = means(columns, 1, min(segments, columns.shape[3])).squeeze(2)
    return pooled.unflatten(0, tokens.shape[:2]).mT


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse of matrices (..., M, M) that are not negative, by products alone.

    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from Z = A^T / (|A|_1 |A|_inf): the error
    I - A Z shrinks with its third power. Costs 4 M^3 an iteration.
    """
    norms = a.sum(-2).amax(-1) * a.sum(-1).amax(-1)  # the largest sums of a column and of a row
    z = a.mT / norms[..., None, None]
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    return z


@register(
    "nystrom",
    title="Nyström attention",
    family="linear attention",
    summary="pixels meet through 64 landmarks, means of segments; the middle matrix is pseudo-inverted",
    complexity="O(n d^2 + n m d + h m^3)",
    formula="Y = X + W_o (F A^+ B V);  F = s(Q K~^T), A = s(Q~ K~^T), B = s(Q~ K^T), s = softmax(. / sqrt(d_h)), Q~ and K~ means of segments, in every head",
    paper=NYSTROMFORMER,
)
class NystromAttention(MultiHead):
    """The n x n softmax map approximated from its columns and rows at landmarks.

    Landmarks are the means over equal segments of the pixels in rows, as in the paper's sequences;
    where their number does not divide n, segments share a pixel at their ends (the official code
    pads). With n <= landmarks and enough iterations it is softmax attention. The iteration starts
    from each matrix's own norms (the official code's: from the largest of the batch), in float32 at
    least. The paper's depthwise convolution of the values, a local term, is left out.

    Args:
        channels: C of the input.
        landmarks: number m of landmarks.
        iterations: steps of the pseudo-inverse.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    def __init__(
        self, channels: int, *, landmarks: int = 64, iterations: int = 6, head_dim: int | None = None
    ) -> None:
        super().__init__(channels, head_dim=head_dim)
        require_positive(landmarks=landmarks, iterations=iterations)
        self.landmarks, self.iterations = landmarks, iterations

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with wide_precision(v) as dtype:
            q, k, values = q.to(dtype), k.to(dtype), v.to(dtype)
            some_q, some_k = scaled(segment_means(q, self.landmarks)), segment_means(k, self.landmarks)
            inverse = pseudo_inverse(torch.softmax(some_q @ some_k.mT, dim=-1), self.iterations)
            gathered = softmax_attention(some_q, k, values)  # (B, heads, M, d)
            return softmax_attention(q, scaled(some_k), inverse @ gathered).to(v.dtype)

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        m = min(self.landmarks, n)
        inverse = 4 * m**3 * self.iterations * self.heads
        return 4 * n * c * c + 4 * n * m * c + 2 * m * m * c + inverse
