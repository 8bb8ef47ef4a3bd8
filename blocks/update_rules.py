"""The update rules of matrix decompositions, as pure functions that read like the papers.

X (D, N) holds in its columns what is to be explained, as X ~ bases @ codes^T with a dictionary
`bases` (D, R) and `codes` (N, R), R << N. Shapes below carry a leading G: matrices side by side.

Source: Geng et al., "Is Attention Better Than Matrix Decomposition?", ICLR 2021, sections 2 and 3;
NMF's updates are Lee & Seung, "Algorithms for Non-negative Matrix Factorization", NIPS 2000.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blocks.base import squared_length

EPS = 1e-6


# --- non-negative matrix factorisation -------------------------------------------------------


def nmf_codes(x: Tensor, bases: Tensor, codes: Tensor) -> Tensor:
    """One multiplicative update of the codes: C * (X^T D) / (C D^T D)."""
    numerator = x.mT @ bases  # (G, N, R)
    denominator = codes @ (bases.mT @ bases)  # (G, N, R), the R x R Gram matrix first
    return codes * numerator / (denominator + EPS)


def nmf_bases(x: Tensor, bases: Tensor, codes: Tensor) -> Tensor:
    """One multiplicative update of the bases: D * (X C) / (D C^T C)."""
    numerator = x @ codes  # (G, D, R)
    denominator = bases @ (codes.mT @ codes)  # (G, D, R)
    return bases * numerator / (denominator + EPS)


# --- soft clustering: concept decomposition and vector quantisation --------------------------


def inverse_norm(x: Tensor, eps: float = 1e-12) -> Tensor:
    """1 / |column| of x, (G, D, N) -> (G, N, 1); a zero column gets 0, and a gradient of zero."""
    squared = squared_length(x).mT
    return torch.where(squared > eps**2, torch.rsqrt(squared.clamp_min(eps**2)), 0)


def soft_assignment(x: Tensor, bases: Tensor, scale: Tensor) -> Tensor:
    """Softmax over the bases of scaled similarities, (G, N, R): every column's codes sum to one.

    With `scale` = inverse temperature / |column| and unit bases the similarity is the cosine.
    Scaling the N x R product spares a normalised copy of the D x N input.
    """
    return torch.softmax(x.mT @ bases * scale, dim=-1)


def cluster_means(x: Tensor, codes: Tensor) -> Tensor:
    """The mean of x's columns under each basis's share of the codes, (G, D, R)."""
    return x @ (codes / (codes.sum(dim=1, keepdim=True) + EPS))


def ridge_codes(x: Tensor, bases: Tensor, ridge: float) -> Tensor:
    """Codes of least squares with a ridge: X^T D (D^T D + ridge I)^-1.

    The R x R system is solved once, by Cholesky, then applied to all codes; both never below
    float32, because the inverse magnifies what rounding does to the Gram matrix.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    precise = bases.to(dtype)
    identity = torch.eye(bases.shape[-1], device=x.device, dtype=dtype)
    gram = precise.mT @ precise  # (G, R, R)
    factor = torch.linalg.cholesky_ex(gram + ridge * identity).L
    inverse = torch.cholesky_solve(identity.expand_as(gram), factor)
    return ((x.mT @ bases).to(dtype) @ inverse).to(x.dtype)


# --- a dictionary without state --------------------------------------------------------------


def indexed_uniform(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers in (0, 1), float32, that are a pure function of their position.

    A dictionary in channel mode has as many rows as the input has pixels, so that it cannot be a
    buffer; this gives the same one on every device, without a generator's state. The integer hash
    is the finaliser of MurmurHash3 (public domain), on 32 bits kept in 64.
    """
    bits = torch.arange(1, math.prod(shape) + 1, device=device)
    low32 = 0xFFFFFFFF
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B & low32
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35 & low32
    bits = bits ^ (bits >> 16)
    return (((bits >> 9).float() + 0.5) / 2**23).reshape(shape)
