"""The newer blocks once more, in NumPy float64: the rules are those of `references.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tests.references import Array, Weights, conv1x1, softmax

LARGEST_HEAD = 64


def heads(x: Array, *maps: Array, head_dim: int | None = None) -> Iterator[tuple[Array, ...]]:
    """The tokens (n, d) of each map, head by head; x says how many channels there are."""
    width = head_dim or math.gcd(len(x), LARGEST_HEAD)
    for start in range(0, len(x), width):
        yield tuple(each.reshape(len(x), -1)[start : start + width].T for each in maps)


def in_heads(
    weights: Weights,
    x: Array,
    attend: Callable[[Array, Array, Array], Array],
    *,
    seen: Array | None = None,
    head_dim: int | None = None,
) -> Array:
    """X + W_o attend(Q, K, V), keys and values made of `seen`."""
    seen = x if seen is None else seen
    maps = conv1x1(weights, "query", x), conv1x1(weights, "key", seen), conv1x1(weights, "value", seen)
    context = [attend(q, k, v).T for q, k, v in heads(x, *maps, head_dim=head_dim)]
    return x + conv1x1(weights, "out", np.concatenate(context).reshape(x.shape))


def scores(q: Array, k: Array) -> Array:
    return softmax(q @ k.T / math.sqrt(q.shape[1]), 1)


def by_softmax(q: Array, k: Array, v: Array) -> Array:
    return scores(q, k) @ v


def normalised(weights: Array) -> Array:
    return weights / np.maximum(weights.sum(1, keepdims=True), 1e-6)


def segments(n: int, most: int) -> list[slice]:
    count = min(n, most)
    return [slice(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]


def pooled(x: Array, side: int) -> Array:
    """(C, H, W) -> means over a grid of regions."""
    return np.array(
        [
            [x[:, rows, columns].mean((1, 2)) for columns in segments(x.shape[2], side)]
            for rows in segments(x.shape[1], side)
        ]
    ).transpose(2, 0, 1)


def mhsa(weights: Weights, x: Array, *, head_dim: int | None = None) -> Array:
    return in_heads(weights, x, by_softmax, head_dim=head_dim)


def linear_attention(weights: Weights, x: Array, *, head_dim: int | None = None) -> Array:
    """The n x n matrix of products of features, which the block never forms."""

    def features(tokens: Array) -> Array:
        return np.where(tokens > 0, tokens + 1, np.exp(np.minimum(tokens, 0)))

    def attend(q: Array, k: Array, v: Array) -> Array:
        return normalised(features(q) @ features(k).T) @ v

    return in_heads(weights, x, attend, head_dim=head_dim)


def layer_norm(weights: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(0)
    scaled = centred / np.sqrt((centred**2).mean(0) + 1e-5)
    return scaled * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def pooled_attention(weights: Weights, x: Array, *, pool: int = 7, head_dim: int | None = None) -> Array:
    small = layer_norm(weights, "norm", conv1x1(weights, "reduce", pooled(x, pool)))
    seen = small * (1 + np.vectorize(math.erf)(small / math.sqrt(2))) / 2  # GELU
    return in_heads(weights, x, by_softmax, seen=seen, head_dim=head_dim)


def depthwise(weights: Weights, name: str, x: Array) -> Array:
    """3x3, every channel with its own kernel; a zero outside the image."""
    kernel = weights[f"{name}.weight"][:, 0]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.empty_like(x)
    for c, i, j in np.ndindex(*x.shape):
        out[c, i, j] = (padded[c, i : i + 3, j : j + 3] * kernel[c]).sum()
    return out + weights.get(f"{name}.bias", np.zeros(len(x)))[:, None, None]


def agent(
    weights: Weights, x: Array, *, agents: int = 7, conv: bool = True, head_dim: int | None = None
) -> Array:
    query, key, value = (conv1x1(weights, name, x) for name in ("query", "key", "value"))
    context = [
        (by_softmax(q, a, by_softmax(a, k, v))).T
        for q, k, v, a in heads(x, query, key, value, pooled(query, agents), head_dim=head_dim)
    ]
    mixed = np.concatenate(context).reshape(x.shape)
    return x + conv1x1(weights, "out", mixed + depthwise(weights, "local", value) if conv else mixed)


def linformer(weights: Weights, x: Array, *, tokens: int = 256, head_dim: int | None = None) -> Array:
    """K and V are made of all pixels and then projected by a matrix E (k, n), as the paper writes it."""
    n = x[0].size
    parts = segments(n, tokens)
    projection = np.zeros((len(parts), n))
    for row, part in zip(projection, parts, strict=True):
        row[part] = 1 / (part.stop - part.start)
    return in_heads(
        weights, x, lambda q, k, v: by_softmax(q, projection @ k, projection @ v), head_dim=head_dim
    )


def nystrom(
    weights: Weights, x: Array, *, landmarks: int = 64, iterations: int = 6, head_dim: int | None = None
) -> Array:
    def attend(q: Array, k: Array, v: Array) -> Array:
        parts = segments(len(q), landmarks)
        some_q, some_k = (np.array([tokens[part].mean(0) for part in parts]) for tokens in (q, k))
        a = scores(some_q, some_k)
        z = a.T / (np.linalg.norm(a, 1) * np.linalg.norm(a, np.inf))
        one = np.eye(len(a))
        for _ in range(iterations):
            z = z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z))) / 4
        return scores(q, some_k) @ z @ scores(some_q, k) @ v

    return in_heads(weights, x, attend, head_dim=head_dim)


def performer(weights: Weights, x: Array, *, head_dim: int | None = None) -> Array:
    directions = weights["directions"]

    def attend(q: Array, k: Array, v: Array) -> Array:
        root = q.shape[1] ** -0.25
        phi_q, phi_k = (
            np.exp(tokens * root @ directions.T - ((tokens * root) ** 2).sum(1, keepdims=True) / 2)
            for tokens in (q, k)
        )
        phi_q = phi_q / phi_q.max(1, keepdims=True) + 1e-6
        phi_k = phi_k / phi_k.max() + 1e-6
        return normalised(phi_q @ phi_k.T) @ v

    return in_heads(weights, x, attend, head_dim=head_dim)


def cosformer(weights: Weights, x: Array, *, head_dim: int | None = None) -> Array:
    def attend(q: Array, k: Array, v: Array) -> Array:
        n = len(q)
        near = np.cos(np.pi / 2 * np.subtract.outer(np.arange(n), np.arange(n)) / n)
        return normalised(np.maximum(q, 0) @ np.maximum(k, 0).T * near) @ v

    return in_heads(weights, x, attend, head_dim=head_dim)


def dft(n: int) -> Array:
    """The unitary matrix of the discrete Fourier transform."""
    return np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / math.sqrt(n)


def fft(weights: Weights, x: Array) -> Array:
    """The whole spectrum by dense matrices; the filter's other half is its complex conjugate's mirror.

    Where a frequency is its own mirror along a row, only the part of the product that belongs to a
    real image is kept, as the transform back to real numbers does.
    """
    _, height, width = x.shape
    kept = width // 2 + 1
    filters = weights["filter"]
    size = filters.shape[2:]

    def grid(old: int, new: int) -> Array:
        """(new, old): linear interpolation, corners on corners."""
        matrix = np.zeros((new, old))
        for i in range(new):
            at = i * (old - 1) / (new - 1) if new > 1 else 0.0
            low = min(int(at), old - 1)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, old - 1)] += at - low
        return matrix

    if size != (height, kept):
        filters = np.einsum("hi,cpij,wj->cphw", grid(size[0], height), filters, grid(size[1], kept))
    spectrum = (dft(height) @ x @ dft(width).T)[:, :, :kept] * (filters[:, 0] + 1j * filters[:, 1])
    rows = dft(height).conj() @ spectrum  # back along the columns: (C, H, kept)
    mixed = np.zeros(x.shape)
    for frequency in range(kept):
        wave = np.exp(2j * np.pi * frequency * np.arange(width) / width) / math.sqrt(width)
        if frequency in (0, width / 2):  # its own mirror
            mixed += rows[:, :, frequency, None].real * wave.real
        else:  # it stands for its mirror too
            mixed += 2 * (rows[:, :, frequency, None] * wave).real
    return x + conv1x1(weights, "out", mixed)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def ssm(weights: Weights, x: Array) -> Array:
    """One pixel after the other, in four orders; nothing is computed in parallel."""
    _, height, width = x.shape
    u = silu(depthwise(weights, "local", conv1x1(weights, "into", x)))
    inner, state = len(u), weights["log_rates"].shape[2]
    selected = conv1x1(weights, "select", u)
    rank = len(selected) // 4 - 2 * state
    by_rows = [(i, j) for i in range(height) for j in range(width)]
    by_columns = [(i, j) for j in range(width) for i in range(height)]
    total = np.zeros_like(u)
    for direction, order in enumerate((by_rows, by_columns, by_rows[::-1], by_columns[::-1])):
        low, into, out_of = np.split(np.split(selected, 4)[direction], [rank, rank + state])
        matrix = np.split(weights["step.weight"][:, :, 0, 0], 4)[direction]
        bias = np.split(weights["step.bias"], 4)[direction]
        rates = -np.exp(weights["log_rates"][direction])  # (E, S)
        h = np.zeros((inner, state))
        for i, j in order:
            delta = np.log1p(np.exp(matrix @ low[:, i, j] + bias))
            h = np.exp(delta[:, None] * rates) * h + np.outer(delta * u[:, i, j], into[:, i, j])
            total[:, i, j] += h @ out_of[:, i, j] + weights["skip"][direction] * u[:, i, j]
    return x + conv1x1(weights, "out", layer_norm(weights, "norm", total))


MODERN: Mapping[str, Callable[..., Array]] = {
    "mhsa": mhsa,
    "linear-attn": linear_attention,
    "pooled-attn": pooled_attention,
    "agent": agent,
    "linformer": linformer,
    "nystrom": nystrom,
    "performer": performer,
    "cosformer": cosformer,
    "fft": fft,
    "ssm": ssm,
}
