"""Kernels of `blocks.nmf_triton`: the multiplicative updates of one iteration.

X (D, N) is read in runs of tiles, BLOCK_N columns wide; a program updates the codes of its run and
leaves float32 sums of `moments` (D + R, R), which are X C above C^T C with the new codes. There is
one program for every run and group; sums of runs are added up by the host, in a fixed order.
Products accumulate in float32, and what stands between them is float32 too.
"""

# mypy: ignore-errors
# ruff: noqa: N803, PLR0917

from __future__ import annotations

import triton
import triton.language as tl

# Triton's interpreter multiplies the bit patterns of bfloat16. In float32 their products are exact.
WIDE = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def added(total, left, right, precision: tl.constexpr):
    """total + left @ right, in float32."""
    if WIDE:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=precision)


@triton.jit
def product(left, right, precision: tl.constexpr):
    """left @ right, in float32."""
    return added(tl.zeros((left.shape[0], right.shape[1]), tl.float32), left, right, precision)


@triton.jit
def updated(codes, numerator, denominator, eps):
    """codes * numerator / (denominator + eps)."""
    return codes * numerator / (denominator + eps)


@triton.jit
def softmax(logits, inside, axis: tl.constexpr):
    """Softmax along `axis` over what is `inside`; zero elsewhere."""
    logits = tl.where(inside, logits, float("-inf"))
    shares = tl.exp(logits - tl.max(logits, axis, keep_dims=True))
    return shares / tl.sum(shares, axis, keep_dims=True)


@triton.jit
def resident(
    x, bases, codes, new_codes, moments,
    n, tiles, x_group, x_row, x_column, d: tl.constexpr, r: tl.constexpr,
    FIRST: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The whole of D in one block: a tile of X, the bases and the sums stay on the chip.

    X is read once. With FIRST the codes before the update are softmax(X^T B).
    """
    group = tl.program_id(1).to(tl.int64)
    rows, ranks = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R)
    row, rank = rows < d, ranks < r
    x += group * x_group
    codes += group * n * r
    new_codes += group * n * r
    moments += (group * tl.num_programs(0) + tl.program_id(0)) * (d + r) * r
    corner = rows[:, None] * r + ranks[None, :]
    inside = row[:, None] & rank[None, :]
    basis = tl.load(bases + group * d * r + corner, mask=inside, other=0.0)
    gram = product(tl.trans(basis), basis, PRECISION).to(basis.dtype)
    above = tl.zeros((BLOCK_D, BLOCK_R), tl.float32)
    below = tl.zeros((BLOCK_R, BLOCK_R), tl.float32)
    first = tl.program_id(0) * tiles
    for tile in tl.range(first, tl.minimum(first + tiles, tl.cdiv(n, BLOCK_N)), num_stages=STAGES):
        here = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        image = tl.load(
            x + rows[:, None] * x_row + here[None, :] * x_column,
            mask=row[:, None] & (here < n)[None, :],
            other=0.0,
        )
        numerator = product(tl.trans(basis), image, PRECISION)  # (R, BLOCK_N), as all codes
        place = here[None, :] * r + ranks[:, None]
        valid = (here < n)[None, :] & rank[:, None]
        if FIRST:
            code = softmax(numerator, rank[:, None], 0)
        else:
            code = tl.load(codes + place, mask=valid, other=0.0).to(tl.float32)
        denominator = product(gram, code.to(gram.dtype), PRECISION)
        code = updated(code, numerator, denominator, EPS).to(new_codes.dtype.element_ty)
        tl.store(new_codes + place, code, mask=valid)
        code = code.to(image.dtype)
        above = added(above, image, tl.trans(code), PRECISION)
        below = added(below, code, tl.trans(code), PRECISION)
    tl.store(moments + corner, above, mask=inside)
    corner = (d + ranks[:, None]) * r + ranks[None, :]
    tl.store(moments + corner, below, mask=rank[:, None] & rank[None, :])


@triton.jit
def weighted(
    rows_of, row_stride, column_stride, codes, out, start, end, n, height: tl.constexpr, r: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out (height, R) = rows_of (height, N) @ codes (N, R), over the columns [start, end)."""
    ranks = tl.arange(0, BLOCK_R)
    rank = ranks < r
    for top in range(0, height, BLOCK):
        rows = top + tl.arange(0, BLOCK)
        row = rows < height
        total = tl.zeros((BLOCK, BLOCK_R), tl.float32)
        for left in range(start, end, INNER):
            here = left + tl.arange(0, INNER)
            part = tl.load(
                rows_of + rows[:, None] * row_stride + here[None, :] * column_stride,
                mask=row[:, None] & (here < n)[None, :],
                other=0.0,
            )
            code = tl.load(
                codes + here[:, None] * r + ranks[None, :],
                mask=(here < n)[:, None] & rank[None, :],
                other=0.0,
            )
            total = added(total, part, code.to(part.dtype), PRECISION)
        place = rows[:, None] * r + ranks[None, :]
        tl.store(out + place, total, mask=row[:, None] & rank[None, :])


@triton.jit
def swept(
    x, bases, gram, codes, new_codes, moments,
    n, tiles, x_group, x_row, x_column, d: tl.constexpr, r: tl.constexpr,
    FIRST: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, INNER: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Any D and R: first the codes of the whole run, then its sums, BLOCK rows at a time.

    The run of X is read twice, the second time from the cache as far as it is still there. Tiles
    are BLOCK columns wide, and products are summed over INNER elements at a time.
    """
    group = tl.program_id(1).to(tl.int64)
    ranks = tl.arange(0, BLOCK_R)
    rank = ranks < r
    x += group * x_group
    bases += group * d * r
    gram += group * r * r
    codes += group * n * r
    new_codes += group * n * r
    moments += (group * tl.num_programs(0) + tl.program_id(0)) * (d + r) * r
    start = tl.program_id(0) * tiles * BLOCK
    end = tl.minimum(start + tiles * BLOCK, n)
    for left in tl.range(start, end, BLOCK, num_stages=1):  # no load may overtake a store of codes
        here = left + tl.arange(0, BLOCK)
        inside = (here < n)[:, None]
        numerator = tl.zeros((BLOCK, BLOCK_R), tl.float32)
        for top in range(0, d, INNER):
            rows = top + tl.arange(0, INNER)
            image = tl.load(
                x + rows[None, :] * x_row + here[:, None] * x_column,
                mask=(rows < d)[None, :] & inside,
                other=0.0,
            )
            basis = tl.load(
                bases + rows[:, None] * r + ranks[None, :],
                mask=(rows < d)[:, None] & rank[None, :],
                other=0.0,
            )
            numerator = added(numerator, image, basis, PRECISION)
        place = here[:, None] * r + ranks[None, :]
        valid = inside & rank[None, :]
        if FIRST:  # the product below reads them again, from memory
            tl.store(new_codes + place, softmax(numerator, rank[None, :], 1), mask=valid)
            tl.debug_barrier()
            old = new_codes
        else:
            old = codes
        denominator = tl.zeros((BLOCK, BLOCK_R), tl.float32)
        for top in range(0, r, INNER):
            inner = top + tl.arange(0, INNER)
            code = tl.load(
                old + here[:, None] * r + inner[None, :],
                mask=inside & (inner < r)[None, :],
                other=0.0,
            )
            square = tl.load(
                gram + inner[:, None] * r + ranks[None, :],
                mask=(inner < r)[:, None] & rank[None, :],
                other=0.0,
            )
            denominator = added(denominator, code.to(square.dtype), square, PRECISION)
        code = tl.load(old + place, mask=valid, other=0.0).to(tl.float32)
        if FIRST:
            tl.debug_barrier()  # nobody overwrites what another thread has yet to read
        tl.store(new_codes + place, updated(code, numerator, denominator, EPS), mask=valid)
    tl.debug_barrier()  # every thread sees the codes of the run
    weighted(
        x, x_row, x_column, new_codes, moments, start, end, n, d, r, PRECISION, BLOCK, INNER, BLOCK_R
    )  # fmt: skip
    weighted(
        new_codes, 1, r, new_codes, moments + d * r, start, end, n, r, r, PRECISION, BLOCK, INNER, BLOCK_R
    )  # fmt: skip


@triton.jit
def finish(
    bases, moments, new_bases, d: tl.constexpr, r: tl.constexpr,
    EPS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The bases' update, B * (X C) / (B C^T C), for BLOCK_D rows of one group; float32 throughout."""
    group = tl.program_id(1).to(tl.int64)
    bases += group * d * r
    new_bases += group * d * r
    moments += group * (d + r) * r
    rows = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_R)
    place = rows[:, None] * r + columns[None, :]
    valid = (rows < d)[:, None] & (columns < r)[None, :]
    denominator = tl.zeros((BLOCK_D, BLOCK_R), tl.float32)
    for left in range(0, r, BLOCK_K):
        ranks = left + tl.arange(0, BLOCK_K)
        basis = tl.load(
            bases + rows[:, None] * r + ranks[None, :],
            mask=(rows < d)[:, None] & (ranks < r)[None, :],
            other=0.0,
        ).to(tl.float32)
        square = tl.load(
            moments + (d + ranks[:, None]) * r + columns[None, :],
            mask=(ranks < r)[:, None] & (columns < r)[None, :],
            other=0.0,
        )
        denominator = added(denominator, basis, square, "ieee")
    basis = tl.load(bases + place, mask=valid, other=0.0).to(tl.float32)
    numerator = tl.load(moments + place, mask=valid, other=0.0)
    tl.store(new_bases + place, updated(basis, numerator, denominator, EPS), mask=valid)
