"""Matrix decompositions as differentiable modules: NMF, concept decomposition, vector quantisation.

A feature map becomes G = B * heads matrices X (D, N), one for every image and head, which
`blocks.update_rules` decompose.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from blocks import nmf_triton
from blocks.base import batch_mean, full_precision, require_divisible, require_positive, split, unit
from blocks.update_rules import (
    EPS,
    Tiles,
    in_tiles,
    indexed_uniform,
    inverse_norm,
    lengths,
    nmf_codes,
    nmf_iteration,
    ridge_codes,
    soft_assignment,
    soft_clusters,
)

Gradient = Literal["one-step", "bptt"]
Dictionary = Literal["random", "frozen", "learned"]
Implementation = Literal["auto", "reference", "triton"]

DICTIONARY_MOMENTUM = 0.9  # the weight of the newest bases in a learned dictionary


class Decomposition(nn.Module, ABC):
    """Reconstructs a feature map (B, C, H, W) from the low-rank decomposition it computes.

    The options are those of `blocks.hamburger.Hamburger`.

    Raises:
        ValueError: for sizes that are not above zero, channels that `heads` does not divide, or a
            learned dictionary of channels (its size would be tied to one resolution).
    """

    bases: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        rank: int,
        heads: int,
        train_steps: int,
        eval_steps: int,
        gradient: Gradient,
        dictionary: Dictionary,
        spatial: bool,
        impl: Implementation,
    ) -> None:
        super().__init__()
        require_positive(rank=rank, heads=heads, train_steps=train_steps, eval_steps=eval_steps)
        require_divisible(channels, heads, "latent channels")
        if dictionary == "learned" and not spatial:
            raise ValueError(
                "dictionary='learned' needs spatial=True: with spatial=False a basis is as long as "
                "the image has pixels; use dictionary='random' or 'frozen'"
            )
        self.channels, self.rank, self.heads = channels, rank, heads
        self.train_steps, self.eval_steps = train_steps, eval_steps
        self.gradient, self.dictionary, self.spatial, self.impl = gradient, dictionary, spatial, impl
        bases = unit(self.fill(torch.empty(heads, channels // heads, rank))) if spatial else None
        self.register_buffer("bases", bases)  # (heads, D, R)

    # What tells one decomposition from another:

    @staticmethod
    @abstractmethod
    def fill(empty: Tensor) -> Tensor:
        """Random numbers of the kind this dictionary starts from, drawn into `empty`."""

    @staticmethod
    @abstractmethod
    def from_uniform(uniform: Tensor) -> Tensor:
        """Uniform numbers in (0, 1), turned into numbers of that kind."""

    @abstractmethod
    def iterate(self, tiles: Tiles, bases: Tensor) -> tuple[Tensor, Tiles]:
        """All iterations from the first bases: columns of X, (D, R) -> final bases and, if used, codes."""

    @abstractmethod
    def final_codes(self, x: Tensor, bases: Tensor, codes: Tensor | None) -> Tensor:
        """The codes (G, R, N) that the output is built from, given the final bases."""

    @abstractmethod
    def core_macs(self, d: int, n: int) -> int:
        """Multiply-accumulates for one D x N matrix."""

    def core_spared(self, d: int, n: int) -> int:
        """What the authors' code spends beyond that."""
        return 0

    # What they share:

    @property
    def steps(self) -> int:
        return self.train_steps if self.training else self.eval_steps

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x) as dtype:
            columns = self.to_columns(x.to(dtype))
            bases = self.first_bases(columns)
            with torch.no_grad() if self.gradient == "one-step" else contextlib.nullcontext():
                bases, codes = self.decompose(columns, bases)
            codes = self.final_codes(columns, bases, codes)
            if self.training and self.dictionary == "learned":
                self.learn(bases)
            return self.from_columns(bases @ codes, x)

    def decompose(self, x: Tensor, bases: Tensor) -> tuple[Tensor, Tensor | None]:
        """(G, D, N) and first bases (G, D, R) -> final bases and, if used, codes (G, R, N)."""
        return in_tiles(self.iterate, x, bases, whole=self.impl == "reference")

    def to_columns(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> X (G, D, N)."""
        rows = split(x, self.heads).flatten(0, 1)
        return rows if self.spatial else rows.mT

    def from_columns(self, columns: Tensor, like: Tensor) -> Tensor:
        """X (G, D, N) -> (B, C, H, W)."""
        rows = columns if self.spatial else columns.mT
        return rows.reshape(like.shape).to(like.dtype)

    def first_bases(self, x: Tensor) -> Tensor:
        """The dictionary the iterations start from, (G, D, R): unit columns."""
        groups, d, _ = x.shape
        if self.dictionary == "random" and self.training:
            return unit(self.fill(x.new_empty(groups, d, self.rank)))
        bases = self.bases
        if bases is None:
            uniform = indexed_uniform((self.heads, d, self.rank), x.device)
            bases = unit(self.from_uniform(uniform))
        return bases.to(x.dtype).repeat(groups // self.heads, 1, 1)

    @torch.no_grad()
    def learn(self, final: Tensor) -> None:
        """Move the learned dictionary towards the mean of the final bases (G, D, R)."""
        assert self.bases is not None
        target = batch_mean(final.unflatten(0, (-1, self.heads))).to(self.bases.dtype)
        self.bases.copy_(unit(self.bases.lerp(target, DICTIONARY_MOMENTUM)))

    def macs(self, height: int, width: int) -> int:
        return self.heads * self.core_macs(*self.sides(height, width))

    def spared_macs(self, height: int, width: int) -> int:
        return self.heads * self.core_spared(*self.sides(height, width))

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """D and N of the matrices."""
        rows, columns = self.channels // self.heads, height * width
        return (rows, columns) if self.spatial else (columns, rows)

    def extra_repr(self) -> str:
        names = (
            "channels",
            "rank",
            "heads",
            "train_steps",
            "eval_steps",
            "gradient",
            "dictionary",
            "spatial",
            "impl",
        )
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class NMF(Decomposition):
    """Non-negative matrix factorisation by multiplicative updates; X must not be negative.

    Raises:
        ValueError: for Triton's kernel with a gradient through the iterations, which it has not.
        RuntimeError: in a forward, where Triton's kernel cannot run.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, **options)
        if self.impl == "triton" and self.gradient == "bptt":
            raise ValueError("impl='triton' has no gradient='bptt'; use 'one-step', or impl='auto'")

    @staticmethod
    def fill(empty: Tensor) -> Tensor:
        return empty.uniform_()

    @staticmethod
    def from_uniform(uniform: Tensor) -> Tensor:
        return uniform

    def decompose(self, x: Tensor, bases: Tensor) -> tuple[Tensor, Tensor | None]:
        # Neither the estimate of costs nor the gate's float64 is for the kernel.
        if self.impl == "triton" and not x.is_meta and x.dtype != torch.float64:
            nmf_triton.require(x, self.rank)
            return nmf_triton.nmf(x, bases, self.steps)
        return super().decompose(x, bases)

    def iterate(self, tiles: Tiles, bases: Tensor) -> tuple[Tensor, Tiles]:
        codes: Sequence[Tensor | None] = [None] * len(tiles)
        for _ in range(self.steps):
            bases, codes = nmf_iteration(tiles, bases, codes)
        return bases, cast(Tiles, codes)

    def final_codes(self, x: Tensor, bases: Tensor, codes: Tensor | None) -> Tensor:
        return nmf_codes(x, bases.mT, bases.mT @ bases, codes)

    def core_macs(self, d: int, n: int) -> int:
        r, t = self.rank, self.steps
        return (2 * t + 2) * n * d * r + (2 * t + 1) * (n + d) * r * r

    def core_spared(self, d: int, n: int) -> int:
        return n * d * self.rank  # the first product, which it computes twice


class SoftClustering(Decomposition):
    """What concept decomposition and vector quantisation share: bases are means of soft clusters."""

    def __init__(self, channels: int, *, inv_t: float, **options: Any) -> None:
        super().__init__(channels, **options)
        require_positive(inv_t=inv_t)
        self.inv_t = inv_t

    @staticmethod
    def fill(empty: Tensor) -> Tensor:
        return empty.normal_()

    @staticmethod
    def from_uniform(uniform: Tensor) -> Tensor:
        return math.sqrt(2) * torch.erfinv(2 * uniform - 1)

    def iterate(self, tiles: Tiles, bases: Tensor) -> tuple[Tensor, Tiles]:
        scales = [self.inv_t * inverse_norm(tile) for tile in tiles]  # (1, columns) each
        for _ in range(self.steps):
            bases = self.new_bases(soft_clusters(tiles, self.unit_bases(bases), scales)[0])
        return bases, ()

    @abstractmethod
    def unit_bases(self, bases: Tensor) -> Tensor:
        """The bases with columns of length one, for the cosine."""

    @abstractmethod
    def new_bases(self, means: Tensor) -> Tensor:
        """The bases that follow from the clusters' means."""


class CD(SoftClustering):
    """Concept decomposition: spherical soft k-means, then ridge least squares for the codes."""

    def __init__(self, channels: int, *, ridge: float, **options: Any) -> None:
        super().__init__(channels, **options)
        require_positive(ridge=ridge)
        self.ridge = ridge

    def unit_bases(self, bases: Tensor) -> Tensor:
        return bases

    def new_bases(self, means: Tensor) -> Tensor:
        return unit(means, EPS)

    def final_codes(self, x: Tensor, bases: Tensor, codes: Tensor | None) -> Tensor:
        return ridge_codes(x, bases, self.ridge)

    def core_macs(self, d: int, n: int) -> int:
        r, t = self.rank, self.steps
        return (2 * t + 2) * n * d * r + d * r * r

    def core_spared(self, d: int, n: int) -> int:
        return n * self.rank**2  # the inverse, which it applies to the codes and not to the bases


class VQ(SoftClustering):
    """Soft vector quantisation: codes are assignments that sum to one, bases the clusters' means."""

    def unit_bases(self, bases: Tensor) -> Tensor:
        return unit(bases, EPS)

    def new_bases(self, means: Tensor) -> Tensor:
        return means

    def final_codes(self, x: Tensor, bases: Tensor, codes: Tensor | None) -> Tensor:
        # The norm is a constant to the gradient, as in the official code.
        scale = self.inv_t / (lengths(x.detach()) + EPS)  # (G, 1, N)
        return soft_assignment(x, self.unit_bases(bases), scale)

    def core_macs(self, d: int, n: int) -> int:
        return (2 * self.steps + 2) * n * d * self.rank
