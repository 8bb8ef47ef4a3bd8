"""Performer: softmax attention estimated by positive orthogonal random features (FAVOR+)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blocks.base import require_positive, wide_precision
from blocks.multihead import MultiHead, kernel_attention
from blocks.registry import Paper, register

PERFORMER = Paper(
    title="Rethinking Attention with Performers",
    authors="Krzysztof Choromanski, Valerii Likhosherstov, David Dohan, Xingyou Song, Andreea Gane, "
    "Tamas Sarlos, Peter Hawkins, Jared Davis, Afroz Mohiuddin, Lukasz Kaiser, David Belanger, "
    "Lucy Colwell, Adrian Weller",
    year=2021,
    venue="ICLR",
    url="https://arxiv.org/abs/2009.14794",
    bibtex="""@inproceedings{choromanski2021performer,
  title     = {Rethinking Attention with {P}erformers},
  author    = {Choromanski, Krzysztof and Likhosherstov, Valerii and Dohan, David and Song, Xingyou and Gane, Andreea and Sarlos, Tamas and Hawkins, Peter and Davis, Jared and Mohiuddin, Afroz and Kaiser, Lukasz and Belanger, David and Colwell, Lucy and Weller, Adrian},
  booktitle = {International Conference on Learning Representations},
  year      = {2021}
}""",
)
FLOOR = (
    1e-6  # added to every feature, as in the official code (TensorFlow; 1e-4 in JAX): none is without weight
)


def orthogonal_gaussian(rows: int, width: int) -> Tensor:
    """Directions (rows, width), each from N(0, I), orthogonal within every `width` of them."""
    q, r = torch.linalg.qr(torch.randn(math.ceil(rows / width), width, width, dtype=torch.float32))
    rotations = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # uniform over all, thanks to the sign
    lengths = torch.randn(rows, width, dtype=torch.float32).norm(dim=1, keepdim=True)
    return rotations.flatten(0, 1)[:rows] * lengths


@register(
    "performer",
    title="Performer",
    family="linear attention",
    summary="estimates softmax attention by 256 positive orthogonal random features (FAVOR+)",
    complexity="O(n d^2 + n m d)",
    formula="Y = X + W_o (V phi(K)^T) phi(Q) / (1^T phi(K)^T phi(Q));  phi(x) = exp(W x - |x|^2 / 2) / sqrt(m), x over d_h^(1/4), W orthogonal from N(0, I), in every head",
    paper=PERFORMER,
)
class Performer(MultiHead):
    """FAVOR+ with features drawn once, at construction; they are a buffer, and never drawn again.

    All heads share them. The exponents lose their largest value (of a query, and of all keys of a
    head and image), and the features 1 / sqrt(m), which cancel in the quotient but for the small number that is added to them; so does |q|^2 / 2.
    Exponents are computed in float32 at least.

    Args:
        channels: C of the input.
        features: number m of random features.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    directions: Tensor

    def __init__(self, channels: int, *, features: int = 256, head_dim: int | None = None) -> None:
        super().__init__(channels, head_dim=head_dim)
        require_positive(features=features)
        self.features = features
        directions = orthogonal_gaussian(features, self.head_dim)
        self.register_buffer("directions", directions.to(torch.get_default_dtype()))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernel_attention(self.query_features(q), self.key_features(k), v)

    def query_features(self, q: Tensor) -> Tensor:
        exponent = self.projected(q)  # (B, heads, N, m)
        return torch.exp(exponent - exponent.detach().amax(-1, keepdim=True)) + FLOOR

    def key_features(self, k: Tensor) -> Tensor:
        with wide_precision(k) as dtype:
            half_square = k.to(dtype).square().sum(-1, keepdim=True) * self.head_dim**-0.5 / 2
        exponent = self.projected(k) - half_square
        return torch.exp(exponent - exponent.detach().amax((-2, -1), keepdim=True)) + FLOOR

    def projected(self, x: Tensor) -> Tensor:
        """W x / d^(1/4): (B, heads, N, d) -> (B, heads, N, m)."""
        with wide_precision(x) as dtype:
            return x.to(dtype) @ (self.directions.to(dtype).T * self.head_dim**-0.25)

    def macs(self, height: int, width: int) -> int:
        c, m, n = self.channels, self.features, height * width
        return 4 * n * c * c + 4 * n * m * c + n * m * self.heads
