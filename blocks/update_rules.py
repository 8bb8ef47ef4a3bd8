"""The update rules of matrix decompositions, as pure functions that read like the papers.

X (D, N) holds in its columns what is to be explained, as X ~ bases @ codes with a dictionary
`bases` (D, R) and `codes` (R, N), R << N. Any dimensions before these are matrices side by side.

An iteration reads X twice, for bases^T X and for X codes^T. Both are done for one tile of columns
while it lies in the cache, so that X comes from memory once. What is summed over the tiles is
summed in float32 at least.

Source: Geng et al., "Is Attention Better Than Matrix Decomposition?", ICLR 2021, sections 2 and 3;
NMF's updates are Lee & Seung, "Algorithms for Non-negative Matrix Factorization", NIPS 2000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EPS = 1e-6
TILE_BYTES = 2**20  # of X for each thread: what the second-level cache of today's cores holds
HALVES = 2  # as many bytes in half precision, whose products are quick: fewer and longer ones
MIN_TILE = 128  # columns; products with fewer are slow
LEAST = -60.0  # of a logit below the largest: e^-60 is nothing beside it
Tiles = Sequence[Tensor]
Iterate = Callable[[Tiles, Tensor], tuple[Tensor, Tiles]]  # tiles of X, bases -> bases, codes of each tile


def divisible(x: Tensor) -> bool:
    """Whether x may be gone through in pieces that fit the caches: on a CPU, without a gradient or a compiler."""
    with_gradient = torch.is_grad_enabled() and x.requires_grad
    return x.device.type == "cpu" and not with_gradient and not torch.compiler.is_compiling()


def tile_columns(x: Tensor) -> int | None:
    """Columns of a tile of X (G, D, N); None: take all of X in one, as it is small or not to be divided."""
    if not divisible(x):
        return None
    _, rows, columns = x.shape
    size = TILE_BYTES * (HALVES if x.element_size() == 2 else 1)
    fitting = size * torch.get_num_threads() // (max(rows, 1) * x.element_size())
    return fitting if MIN_TILE <= fitting < columns else None


def in_tiles(
    iterate: Iterate, x: Tensor, bases: Tensor, *, whole: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Run `iterate` on X (G, D, N) and first bases (G, D, R), by tiles of one matrix after the other
    where that is faster, unless X is to be taken `whole`; returns its bases and codes (G, R, N), if it
    gives codes.

    A tile is copied into one piece: rows that lie a power of two apart push one another out of the cache.
    """
    columns = None if whole else tile_columns(x)
    if columns is None or not x.shape[0]:
        bases, codes = iterate((x,), bases)
        return bases, codes[0] if codes else None
    found = []
    for matrix, first in zip(x, bases, strict=True):
        tiles = [tile.contiguous() for tile in matrix.split(columns, dim=1)]
        found.append(iterate(tiles, first))
    bases = torch.stack([last for last, _ in found])
    return bases, torch.stack([torch.cat(list(codes), dim=1) for _, codes in found]) if found[0][1] else None


def wide(x: Tensor) -> torch.dtype:
    """The dtype in which sums over the columns of x are kept: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a b^T, if there is a total yet; `total` itself, where it is a sum over tiles in their precision."""
    if total is None:
        return (a @ b.mT).to(wide(a))
    if a.dim() == 2 and a.dtype == total.dtype:
        return total.addmm_(a, b.mT)
    return total + a @ b.mT


# --- non-negative matrix factorisation -------------------------------------------------------


def nmf_codes(x: Tensor, bases_t: Tensor, gram: Tensor, codes: Tensor | None) -> Tensor:
    """One multiplicative update of the codes: C * (D^T X) / (D^T D C), given D^T (R, D) and D^T D.

    Codes that are None start as the softmax over the bases of D^T X, which is computed once for both.
    """
    numerator = bases_t @ x  # (R, N)
    if codes is None:
        codes = torch.softmax(numerator, dim=-2)
    return numerator.mul_(codes).div_((gram @ codes).add_(EPS))


def nmf_bases(bases: Tensor, x_codes: Tensor, codes_gram: Tensor) -> Tensor:
    """One multiplicative update of the bases: D * (X C^T) / (D C C^T), given X C^T and C C^T."""
    wide_bases = bases.to(x_codes.dtype)
    return (wide_bases * x_codes / (wide_bases @ codes_gram + EPS)).to(bases.dtype)


def nmf_iteration(tiles: Tiles, bases: Tensor, codes: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """Update the codes (R, columns) of each tile, and then the bases (D, R)."""
    bases_t = bases.mT.contiguous()  # with it, bfloat16 is 5 to 9 % faster on a CPU
    gram = bases_t @ bases
    x_codes = codes_gram = None  # sums over the tiles of X C^T and C C^T
    updated = []
    for x, old in zip(tiles, codes, strict=True):
        new = nmf_codes(x, bases_t, gram, old)
        x_codes = add_product(x_codes, x, new)
        codes_gram = add_product(codes_gram, new, new)
        updated.append(new)
    assert x_codes is not None
    assert codes_gram is not None
    return nmf_bases(bases, x_codes, codes_gram), updated


# --- soft clustering: concept decomposition and vector quantisation --------------------------


def lengths(x: Tensor) -> Tensor:
    """|column| of x, (..., D, N) -> (..., 1, N), in float32 at least.

    PyTorch's norm of columns takes several times as long on a CPU as sums of squares, which would be a
    copy of x if they were not formed piece by piece.
    """
    if not divisible(x):
        return torch.linalg.vector_norm(x, dim=-2, keepdim=True, dtype=wide(x))
    columns = max(TILE_BYTES // (4 * max(x.shape[-2], 1)), 1)
    squares = [piece.to(wide(x)).square().sum(dim=-2, keepdim=True) for piece in x.split(columns, dim=-1)]
    return torch.cat(squares, dim=-1).sqrt_()


def inverse_norm(x: Tensor, eps: float = 1e-12) -> Tensor:
    """1 / |column| of x, (..., D, N) -> (..., 1, N); a zero column gets 0, and a gradient of zero."""
    length = lengths(x)
    return torch.where(length > eps, length.clamp_min(eps).reciprocal(), 0)


def soft_assignment(x: Tensor, bases: Tensor, scale: Tensor | float | None = None) -> Tensor:
    """Softmax over the bases of similarities, scaled or not, (R, N): every column's codes sum to one.

    With `scale` (1, N) = inverse temperature / |column| and unit bases the similarity is the
    cosine. Scaling the R x N product spares a normalised copy of the D x N input.

    Sharp shares underflow. On a CPU products with subnormal numbers can take a hundred times as long,
    so that logits end at LEAST below the largest there. Gradients take no notice of it: that of a
    share so small is nothing beside the others'.
    """
    logits = bases.mT @ x if scale is None else bases.mT @ x * scale
    if logits.device.type == "cpu":
        with torch.no_grad():
            logits.sub_(logits.amax(dim=-2, keepdim=True)).clamp_min_(LEAST)
    return torch.softmax(logits, dim=-2).to(x.dtype)


def soft_clusters(
    tiles: Tiles, bases: Tensor, scales: Sequence[Tensor | float | None]
) -> tuple[Tensor, list[Tensor]]:
    """The means (D, R) of X's columns under each basis's shares of them, and the shares, by tile."""
    sums = None
    weights: Tensor | float = 0.0
    codes = []
    for x, scale in zip(tiles, scales, strict=True):
        shares = soft_assignment(x, bases, scale)
        sums = add_product(sums, x, shares)
        weights = weights + shares.sum(dim=-1, dtype=sums.dtype).unsqueeze(-2)
        codes.append(shares)
    assert sums is not None
    return (sums / (weights + EPS)).to(bases.dtype), codes


def ridge_codes(x: Tensor, bases: Tensor, ridge: float) -> Tensor:
    """Codes of least squares with a ridge: (D^T D + ridge I)^-1 D^T X.

    The R x R system is solved by Cholesky for D^T, not for all of X, and never below float32: the
    inverse magnifies what rounding does to the Gram matrix.
    """
    precise = bases.to(wide(bases))
    gram = precise.mT @ precise
    identity = torch.eye(gram.shape[-1], device=x.device, dtype=gram.dtype)
    factor = torch.linalg.cholesky_ex(gram + ridge * identity).L
    solution = torch.cholesky_solve(precise.mT, factor)  # (R, D)
    return solution.to(x.dtype) @ x


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
