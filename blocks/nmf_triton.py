"""NMF's multiplicative updates on a GPU, with one pass over X for each iteration.

As products of whole matrices an iteration reads X (D, N) twice, for X^T D and for X C, and takes the
codes C, (N, R) here, through memory several times more. Here a tile of X's columns gives both: once
its codes are updated, the tile adds to X C and C^T C, from which the bases follow. A group and
iteration then cost, in elements,

    D N  +  2 N R  +  2 S (D + R) R

of traffic (X, the codes in and out, float32 sums of S runs of tiles out and in) and about 4 N D R +
4 N R^2 floating-point operations, where the two products alone read 2 D N. The sums count: a run
should be well above 2 R columns. With R = 64 that is 4 R / 2 = 128 operations per byte of X in
bfloat16, below what a GPU's matrix units need to be the limit; float32 products without TF32 are
limited by arithmetic instead, and gain little.

That holds for half precision, D <= 512 and D R <= 32,768, where all of this stays on the chip
(`kernels.nmf.resident`). Other shapes and float32 read X again for X C, from the cache at best
(`kernels.nmf.swept`), and save the traffic of the codes.

The first codes, softmax(X^T D), take no pass of their own. Where D > N (channels explained by pixels)
the roles change: codes and bases follow each other in either order, so that the same kernel runs on
X^T. Sums are added in a fixed order: results are equal bit for bit, on one kind of device, for one
shape. Nothing is differentiable.
"""

from __future__ import annotations

import contextlib
import math
import os
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks.update_rules import EPS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_RANK = 512
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, very slowly
FOUND = find_spec("triton") is not None

SUMS = 2**15  # what one program can hold of X C: half of a multiprocessor's registers
TALLEST = 512  # rows of X beyond which addresses alone overflow the registers
TILE = 2**14  # elements of a resident tile of X at most
STAGES = 3  # tiles of X in shared memory: one in use, the others on their way
SHARED_SLACK = 2**15  # bytes of shared memory for all that is neither X nor bases


def available(x: Tensor, rank: int) -> bool:
    """Whether `nmf` can be called for X (G, D, N) and so many bases."""
    on_device = INTERPRETED or (x.is_cuda and torch.version.cuda is not None)
    d, n = x.shape[1:]
    short = max(d * n, d * rank, n * rank) < 2**31  # offsets in a group have 32 bits
    return FOUND and on_device and x.dtype in DTYPES and rank <= LARGEST_RANK and short


def require(x: Tensor, rank: int) -> None:
    """Raise RuntimeError unless `nmf` can be called for X (G, D, N) and so many bases."""
    if not available(x, rank):
        raise RuntimeError(
            f"impl='triton' needs Triton, an NVIDIA GPU and at most {LARGEST_RANK} bases; use impl='auto'"
        )


def iterate(x: Tensor, bases: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration: X (G, D, N), bases (G, D, R), codes (G, R, N) -> new bases and codes, in their dtypes."""
    return _nmf(x, bases, codes.mT, 1)


def nmf(x: Tensor, bases: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Codes softmax(D^T X), then `steps` iterations: (G, D, N), (G, D, R) -> bases and codes (G, R, N).

    The kernels keep the codes by columns of X, so that these are views of (G, N, R). Bases keep their dtype and codes get X's; products take both in X's. There must be a step.
    """
    return _nmf(x, bases, None, steps)


def _nmf(x: Tensor, bases: Tensor, codes: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    """The operator's codes are (G, N, R)."""
    bases, codes = torch.ops.ctxbench.nmf.default(x, bases, codes, steps)
    return bases, codes.mT


def _run(x: Tensor, bases: Tensor, codes: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    bases = bases.contiguous()
    codes = None if codes is None else codes.contiguous()
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        if x.shape[1] <= x.shape[2]:
            for _ in range(steps):
                bases, codes = _iteration(x, bases, codes)
            assert codes is not None
            return bases, codes
        after = _first_update(x, bases, codes)
        for _ in range(steps):
            codes = after
            after, bases = _iteration(x.mT, codes, bases)
        assert codes is not None
        return bases, codes


def _shapes(x: Tensor, bases: Tensor, codes: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], x.shape[2], bases.shape[2]
    return bases.new_empty(bases.shape), x.new_empty(shape, dtype=x.dtype if codes is None else codes.dtype)


# One operator for the compiler and for what traces. `custom_op` adds 5 ms to the import, and three times
# the time of a call.
_library = torch.library.Library("ctxbench", "FRAGMENT")
_library.define("nmf(Tensor x, Tensor bases, Tensor? codes, int steps) -> (Tensor, Tensor)")
_library.impl("nmf", _run, "CUDA")
_library.impl("nmf", _run, "CPU")
_library.impl("nmf", _shapes, "Meta")


class Plan(NamedTuple):
    """How a shape is cut: columns of a tile, how many tiles a run has, and how many runs there are."""

    resident: bool
    width: int
    tiles: int
    runs: int
    warps: int
    inner: int  # elements of D or R summed at a time, where not resident


def plan(
    groups: int, d: int, n: int, r: int, *, itemsize: int, shared: int, processors: int, fma: bool
) -> Plan:
    """The cut for a device with so many multiprocessors of so many bytes of shared memory.

    Args:
        fma: products are calculated without matrix units.
    """
    height, rank = _block(d), _block(r)
    width = max(16, min(64, TILE // height, TILE * 64 // (height * rank)))
    bytes_needed = itemsize * (height * rank + STAGES * height * width) + SHARED_SLACK
    resident = itemsize == 2 and height <= TALLEST and height * rank <= SUMS and bytes_needed <= shared
    if resident:
        warps, inner = 8 if height * max(rank, width) >= TILE else 4, 0
    else:
        width = 64 if rank <= 128 else 16 if fma else 32
        warps, inner = (
            8 if fma or rank > 64 else 4,
            min(width, 64 if itemsize == 2 else 32 if rank <= 128 else 16),
        )
        processors *= 2  # two programs share one
    tiles = math.ceil(math.ceil(n / width) / max(1, processors // max(1, groups)))
    return Plan(resident, width, tiles, math.ceil(n / (width * tiles)), warps, inner)


def _block(size: int) -> int:
    """The power of two that holds `size`, and that matrix units accept."""
    return max(16, 1 << (size - 1).bit_length())


@cache
def _device(index: int | None) -> tuple[int, int]:
    """Bytes of shared memory a program may have, and the number of multiprocessors."""
    if index is None:
        return 227 * 2**10, 4
    properties: Any = torch.cuda.get_device_properties(index)
    return properties.shared_memory_per_block_optin, properties.multi_processor_count


def _iteration(x: Tensor, bases: Tensor, codes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes, then bases; (G, D, N), (G, D, R), (G, N, R) or None -> new bases and codes."""
    from blocks.kernels import nmf as kernels

    (groups, d, n), r = x.shape, bases.shape[2]
    tf32 = x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    shared, processors = _device(x.device.index)
    cut = plan(
        *(groups, d, n, r),
        itemsize=x.element_size(),
        shared=shared,
        processors=processors,
        fma=x.dtype == torch.float32 and not tf32,
    )
    first = codes is None
    old = x.new_empty(groups, n, r) if codes is None else codes
    new = torch.empty_like(old)
    moments = x.new_empty(groups, cut.runs, d + r, r, dtype=torch.float32)
    narrow = bases.to(x.dtype)
    sizes = n, cut.tiles, *x.stride(), d, r
    options = {
        "FIRST": first,
        "EPS": EPS,
        "PRECISION": "tf32" if tf32 else "ieee",
        "BLOCK_R": _block(r),
        "num_warps": cut.warps,
        "enable_fp_fusion": True,
    }
    grid = cut.runs, groups
    if cut.resident:
        kernels.resident[grid](
            *(x, narrow, old, new, moments, *sizes),
            **(options | {"BLOCK_N": cut.width, "BLOCK_D": _block(d), "STAGES": STAGES}),
        )
    else:
        gram = narrow.mT @ narrow
        kernels.swept[grid](
            *(x, narrow, gram, old, new, moments, *sizes),
            **(options | {"BLOCK": cut.width, "INNER": cut.inner}),
        )
    return _finished(bases, moments.sum(1) if cut.runs > 1 else moments), new


def _first_update(x: Tensor, bases: Tensor, codes: Tensor | None) -> Tensor:
    """Codes from bases alone, where a column of X is longer than X is wide."""
    narrow = bases.to(x.dtype)
    numerator = x.mT @ narrow
    codes = torch.softmax(numerator, dim=-1) if codes is None else codes
    return _finished(codes, torch.cat([numerator, narrow.mT @ narrow], dim=1).float())


def _finished(bases: Tensor, moments: Tensor) -> Tensor:
    """B * P / (B K) with P (G, D, R) above K (G, R, R) in `moments`."""
    from blocks.kernels import nmf as kernels

    groups, d, r = bases.shape
    new = torch.empty_like(bases)
    rank = _block(r)
    kernels.finish[math.ceil(d / 16), groups](
        *(bases, moments, new, d, r),
        EPS=EPS,
        BLOCK_D=16,
        BLOCK_R=rank,
        BLOCK_K=16,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return new
