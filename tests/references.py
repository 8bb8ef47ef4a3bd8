"""Every block once more, in NumPy float64, written from the formulas alone and for one image.

A block's reference takes the block's weights (the names are those of its `state_dict`), an image
(C, H, W) and the options that change the formula; widths are read off the weights. Batch
normalisation is the evaluation's. Nothing here is fast: where a loop over pixels is the plainest
statement of a formula, it is a loop over pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]
Decompose = Callable[[Array, Array], tuple[Array, Array]]

EPS = 1e-6
NORM_EPS = 1e-5  # of batch and group normalisation, PyTorch's default


# --- layers ----------------------------------------------------------------------------------


def conv1x1(weights: Weights, name: str, x: Array) -> Array:
    """(C, H, W) -> (C', H, W): one matrix, applied to every pixel."""
    matrix = weights[f"{name}.weight"][:, :, 0, 0]
    bias = weights.get(f"{name}.bias", np.zeros(len(matrix)))
    out = np.empty((len(matrix), *x.shape[1:]))
    for i, j in np.ndindex(x.shape[1:]):
        out[:, i, j] = matrix @ x[:, i, j] + bias
    return out


def conv3x3(weights: Weights, name: str, x: Array, *, dilation: int = 1) -> Array:
    """(C, H, W) -> (C', H, W): a zero outside the image, no bias."""
    kernel = weights[f"{name}.weight"]  # (C', C, 3, 3)
    padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation)))
    out = np.empty((len(kernel), *x.shape[1:]))
    for i, j in np.ndindex(x.shape[1:]):
        window = padded[:, i : i + 2 * dilation + 1 : dilation, j : j + 2 * dilation + 1 : dilation]
        out[:, i, j] = np.tensordot(kernel, window, 3)
    return out


def batch_norm(weights: Weights, name: str, x: Array) -> Array:
    """The evaluation's: every channel by its running mean and variance."""
    scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + NORM_EPS)
    shift = weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def group_norm(weights: Weights, name: str, x: Array, *, most: int = 32) -> Array:
    """Every group of channels to mean 0 and variance 1, in the most groups that `most` and C allow."""
    groups = math.gcd(most, len(x))
    parts = [(g - g.mean()) / np.sqrt(g.var() + NORM_EPS) for g in np.split(x, groups)]
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return np.concatenate(parts) * scale[:, None, None] + shift[:, None, None]


def max_pool(x: Array) -> Array:
    """Largest of every 2 x 2 window, (C, H, W) -> (C, H // 2, W // 2)."""
    out = np.empty((len(x), x.shape[1] // 2, x.shape[2] // 2))
    for i, j in np.ndindex(out.shape[1:]):
        out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return out


def conv_bn_relu(weights: Weights, name: str, x: Array, *, dilation: int = 1) -> Array:
    """1x1 or 3x3, as its weights say."""
    if weights[f"{name}.0.weight"].shape[-1] == 1:
        return relu(batch_norm(weights, f"{name}.1", conv1x1(weights, f"{name}.0", x)))
    return relu(batch_norm(weights, f"{name}.1", conv3x3(weights, f"{name}.0", x, dilation=dilation)))


def layer_norm(weights: Weights, name: str, x: Array) -> Array:
    """Over everything."""
    normal = (x - x.mean()) / np.sqrt(x.var() + NORM_EPS)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def mean_pool(x: Array, side: int) -> Array:
    """Means of side x side parts, which overlap where they do not split evenly: (C, H, W) -> (C, side, side)."""

    def part(i: int, length: int) -> slice:
        return slice(i * length // side, math.ceil((i + 1) * length / side))

    out = np.empty((len(x), side, side))
    for i, j in np.ndindex(side, side):
        out[:, i, j] = x[:, part(i, x.shape[1]), part(j, x.shape[2])].mean((1, 2))
    return out


def bilinear(x: Array, height: int, width: int) -> Array:
    """(C, h, w) -> (C, height, width): pixels are areas, and beyond the outer centres nothing changes."""

    def along(length: int, target: int) -> Array:
        matrix = np.zeros((target, length))
        for i in range(target):
            at = min(max((i + 0.5) * length / target - 0.5, 0), length - 1)
            low = int(at)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, length - 1)] += at - low
        return matrix

    return along(x.shape[1], height) @ x @ along(x.shape[2], width).T


def attention(query: Array, key: Array, value: Array, *, scale: bool = True) -> Array:
    """(d, n), (d, m), (D, m) -> (D, n), a pixel at a time."""
    factor = 1 / math.sqrt(len(query)) if scale else 1
    rows = [value @ softmax(factor * (key.T @ each), 0) for each in query.T]
    return np.stack(rows, axis=1)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def pixels(x: Array) -> Array:
    """(C, H, W) -> (C, n)."""
    return x.reshape(len(x), -1)


def unit(x: Array, eps: float) -> Array:
    """Columns of length one; one shorter than eps is divided by eps."""
    return x / np.maximum(np.linalg.norm(x, axis=0), eps)


# --- matrix decompositions: X (D, N), bases (D, R) -> bases (D, R), codes (N, R) --------------


def nmf(x: Array, bases: Array, *, steps: int) -> tuple[Array, Array]:
    codes = softmax(x.T @ bases, 1)
    for _ in range(steps):
        codes = codes * (x.T @ bases) / (codes @ (bases.T @ bases) + EPS)
        bases = bases * (x @ codes) / (bases @ (codes.T @ codes) + EPS)
    return bases, codes * (x.T @ bases) / (codes @ (bases.T @ bases) + EPS)


def cd(
    x: Array, bases: Array, *, steps: int, inv_t: float = 100.0, ridge: float = 0.1
) -> tuple[Array, Array]:
    for _ in range(steps):
        share = softmax(inv_t * unit(x, 1e-12).T @ bases, 1)
        share = share / (EPS + share.sum(0))
        bases = unit(x @ share, EPS)
    return bases, x.T @ bases @ np.linalg.inv(bases.T @ bases + ridge * np.eye(bases.shape[1]))


def vq(x: Array, bases: Array, *, steps: int, inv_t: float = 100.0) -> tuple[Array, Array]:
    for _ in range(steps):
        share = softmax(inv_t * unit(x, 1e-12).T @ unit(bases, EPS), 1)
        share = share / (EPS + share.sum(0))
        bases = x @ share
    cosine = (x / (EPS + np.linalg.norm(x, axis=0))).T @ unit(bases, EPS)
    return bases, softmax(inv_t * cosine, 1)


def reconstruction(decompose: Decompose, x: Array, dictionary: Array, *, heads: int, spatial: bool) -> Array:
    """x (C, H, W), every head of it from its own bases and codes; dictionary (heads, D, R)."""
    parts = []
    for part, first in zip(np.split(pixels(x), heads), dictionary, strict=True):
        bases, codes = decompose(part if spatial else part.T, first)
        rebuilt = bases @ codes.T
        parts.append(rebuilt if spatial else rebuilt.T)
    return np.concatenate(parts).reshape(x.shape)


def murmur3_finaliser(bits: int) -> int:
    """fmix32 of MurmurHash3 (Austin Appleby, public domain), in Python's own integers."""
    bits ^= bits >> 16
    bits = bits * 0x85EBCA6B % 2**32
    bits ^= bits >> 13
    bits = bits * 0xC2B2AE35 % 2**32
    return bits ^ bits >> 16


def channel_dictionary(ham: str, shape: tuple[int, int, int]) -> Array:
    """First bases (heads, D, R) of a decomposition of channels: hashed positions, uniform or normal."""
    uniform = [((murmur3_finaliser(i + 1) >> 8) + 0.5) / 2**24 for i in range(math.prod(shape))]
    values = uniform if ham == "nmf" else [NormalDist().inv_cdf(u) for u in uniform]
    return np.stack([unit(part, 1e-12) for part in np.reshape(values, shape)])


# --- the blocks ------------------------------------------------------------------------------


def none(weights: Weights, x: Array) -> Array:
    return x


def hamburger(
    decomposition: Callable[..., tuple[Array, Array]],
    weights: Weights,
    x: Array,
    *,
    norm: Callable[[Weights, str, Array], Array] = batch_norm,
    version: str = "v1",
    heads: int = 1,
    spatial: bool = True,
    eval_steps: int = 6,
    **options: Any,
) -> Array:
    """Two dictionaries among the weights are a dual ham: the first of pixels, the second of channels."""
    decompose = partial(decomposition, steps=eval_steps, **options)
    latent = conv1x1(weights, "lower_bread", x)
    if decomposition is nmf:
        latent = relu(latent)
    views = (True, False) if "hams.1.bases" in weights else (spatial,)
    parts = []
    for i, (part, view) in enumerate(zip(np.split(latent, len(views)), views, strict=True)):
        dictionary = weights[f"hams.{i}.bases"]
        parts.append(reconstruction(decompose, part, dictionary, heads=heads, spatial=view))
    context = np.concatenate(parts)
    if version == "v1":
        return relu(x + norm(weights, "upper_bread.1", conv1x1(weights, "upper_bread.0", context)))
    context = relu(batch_norm(weights, "cheese.1", conv1x1(weights, "cheese.0", context)))
    context = conv1x1(weights, "upper_bread", context)
    if version == "v2":
        return relu(x + context)
    return relu(weights["ham_gate"] * context + weights["shortcut_gate"] * x)


def self_attention(weights: Weights, x: Array, *, heads: int = 1, scale: bool = False) -> Array:
    query, key, value = (pixels(conv1x1(weights, name, x)) for name in ("query", "key", "value"))
    contexts = []
    for q, k, v in zip(np.split(query, heads), np.split(key, heads), np.split(value, heads), strict=True):
        scores = q.T @ k / (math.sqrt(len(q)) if scale else 1)
        contexts.append(v @ softmax(scores, 1).T)
    return x + conv1x1(weights, "out", np.concatenate(contexts).reshape(x.shape))


def non_local(
    weights: Weights,
    x: Array,
    *,
    mode: str = "embedded-gaussian",
    sub_sample: bool = False,
    scale: bool = False,
) -> Array:
    embedded = mode != "gaussian"
    query = conv1x1(weights, "query", x) if embedded else x
    key = conv1x1(weights, "key", x) if embedded else x
    value = conv1x1(weights, "value", x)
    if sub_sample:
        key, value = max_pool(key), max_pool(value)
    query, key, value = pixels(query), pixels(key), pixels(value)

    scores = np.empty((query.shape[1], key.shape[1]))
    for i, j in np.ndindex(scores.shape):
        if mode == "concat":
            together = np.concatenate((query[:, i], key[:, j]))
            scores[i, j] = relu(weights["pair.weight"][0, :, 0, 0] @ together)
        else:
            scores[i, j] = query[:, i] @ key[:, j]
    if mode in ("dot-product", "concat"):
        affinity = scores / key.shape[1]
    else:
        affinity = softmax(scores / math.sqrt(len(query)) if scale else scores, 1)
    context = (value @ affinity.T).reshape(-1, *x.shape[1:])
    return x + batch_norm(weights, "out.1", conv1x1(weights, "out.0", context))


def ccnet(weights: Weights, x: Array, *, recurrence: int = 2) -> Array:
    height, width = x.shape[1:]
    for _ in range(recurrence):
        query, key, value = (conv1x1(weights, name, x) for name in ("query", "key", "value"))
        context = np.empty_like(x)
        for i, j in product(range(height), range(width)):
            column = [(other, j) for other in range(height)]
            row = [(i, other) for other in range(width) if other != j]
            cross = column + row  # H + W - 1 pixels, (i, j) itself once
            attention = softmax(np.array([query[:, i, j] @ key[:, a, b] for a, b in cross]), 0)
            context[:, i, j] = sum(w * value[:, a, b] for w, (a, b) in zip(attention, cross, strict=True))
        x = x + weights["gamma"] * context
    return x


def expectation_maximisation(x: Array, bases: Array, *, steps: int) -> tuple[Array, Array]:
    """x (C, n), bases (C, K) -> the bases after the last step, and the last responsibilities (n, K)."""
    for _ in range(steps):
        codes = softmax(x.T @ bases, 1)
        bases = x @ (codes / (EPS + codes.sum(0)))
        bases = bases / (EPS + np.linalg.norm(bases, axis=0))
    return bases, codes


def emanet(weights: Weights, x: Array, *, steps: int = 3) -> Array:
    columns = pixels(conv1x1(weights, "project", x))
    bases, codes = expectation_maximisation(columns, weights["bases"][0], steps=steps)
    context = relu(bases @ codes.T).reshape(x.shape)
    return relu(x + batch_norm(weights, "out.1", conv1x1(weights, "out.0", context)))


def a2(weights: Weights, x: Array) -> Array:
    gather = softmax(pixels(conv1x1(weights, "gather", x)), 1)  # (c_n, n): every row sums to one
    distribute = softmax(pixels(conv1x1(weights, "distribute", x)), 0)  # (c_n, n): every column does
    context = pixels(conv1x1(weights, "feature", x)) @ gather.T @ distribute
    return x + conv1x1(weights, "out", context.reshape(-1, *x.shape[1:]))


def danet(weights: Weights, x: Array, *, convs: bool = False) -> Array:
    query, key, value = (pixels(conv1x1(weights, name, x)) for name in ("query", "key", "value"))
    by_position = weights["position_gate"] * (value @ softmax(query.T @ key, 1).T).reshape(x.shape)
    energy = pixels(x) @ pixels(x).T  # (C, C)
    least_like = softmax(energy.max(1, keepdims=True) - energy, 1)
    by_channel = weights["channel_gate"] * (least_like @ pixels(x)).reshape(x.shape)
    if not convs:
        return x + by_position + by_channel
    branches = (("position_conv", x + by_position), ("channel_conv", x + by_channel))
    return sum(
        (relu(batch_norm(weights, f"{name}.1", conv3x3(weights, f"{name}.0", y))) for name, y in branches),
        start=np.zeros_like(x),
    )


def gcnet(weights: Weights, x: Array, *, pooling: str = "attention", fusion: str = "add") -> Array:
    shares = np.full(x[0].size, 1 / x[0].size)
    if pooling == "attention":
        shares = softmax(conv1x1(weights, "mask", x).ravel(), 0)
    context = (pixels(x) @ shares)[:, None, None]
    hidden = relu(layer_norm(weights, "transform.1", conv1x1(weights, "transform.0", context)))
    context = conv1x1(weights, "transform.3", hidden)
    return x + context if fusion == "add" else x / (1 + np.exp(-context))


def dnl(weights: Weights, x: Array, *, temperature: float = 0.05, scale: bool = True) -> Array:
    query, key, value = (pixels(conv1x1(weights, name, x)) for name in ("query", "key", "value"))
    query, key = query - query.mean(1, keepdims=True), key - key.mean(1, keepdims=True)
    pairwise = attention(query / temperature, key, value, scale=scale)
    unary = value @ softmax(conv1x1(weights, "mask", x).ravel(), 0)
    context = (pairwise + unary[:, None]).reshape(-1, *x.shape[1:])
    return x + batch_norm(weights, "out.1", conv1x1(weights, "out.0", context))


def external(weights: Weights, x: Array) -> Array:
    shares = softmax(pixels(conv1x1(weights, "keys", conv1x1(weights, "project", x))), 1)  # (k, n)
    shares = shares / (1e-9 + shares.sum(0))
    context = conv1x1(weights, "values", shares.reshape(-1, *x.shape[1:]))
    return relu(x + batch_norm(weights, "out.1", conv1x1(weights, "out.0", context)))


def efficient(weights: Weights, x: Array, *, heads: int = 1) -> Array:
    """By its equation from right to left: what pixel i takes from pixel j is q_i . k_j."""
    query, key, value = (pixels(conv1x1(weights, name, x)) for name in ("query", "key", "value"))
    parts = []
    for q, k, v in zip(*(np.split(each, heads) for each in (query, key, value)), strict=True):
        similarity = softmax(q, 0).T @ softmax(k, 1)  # (n, n)
        parts.append(v @ similarity.T)
    return x + conv1x1(weights, "out", np.concatenate(parts).reshape(-1, *x.shape[1:]))


def sagan(weights: Weights, x: Array) -> Array:
    query, key, value = (conv1x1(weights, name, x) for name in ("query", "key", "value"))
    context = attention(pixels(query), pixels(max_pool(key)), pixels(max_pool(value)), scale=False)
    return x + weights["gate"] * conv1x1(weights, "out", context.reshape(-1, *x.shape[1:]))


def se(weights: Weights, x: Array) -> Array:
    hidden = relu(conv1x1(weights, "gate.0", x.mean((1, 2), keepdims=True)))
    return x / (1 + np.exp(-conv1x1(weights, "gate.2", hidden)))


def psp(weights: Weights, x: Array) -> Array:
    maps = [x]
    for level, side in enumerate((1, 2, 3, 6)):
        maps.append(bilinear(conv_bn_relu(weights, f"levels.{level}", mean_pool(x, side)), *x.shape[1:]))
    return conv_bn_relu(weights, "fuse", np.concatenate(maps))


def aspp(weights: Weights, x: Array, *, rate: int = 6) -> Array:
    image = conv_bn_relu(weights, "image", x.mean((1, 2), keepdims=True))
    maps = [np.broadcast_to(image, (len(image), *x.shape[1:]))]
    for branch in range(4):
        maps.append(conv_bn_relu(weights, f"branches.{branch}", x, dilation=branch * rate))
    return conv_bn_relu(weights, "fuse", np.concatenate(maps))


def ann(weights: Weights, x: Array) -> Array:
    query, value = conv_bn_relu(weights, "query", x), conv1x1(weights, "value", x)
    keys, values = (
        np.concatenate([pixels(mean_pool(each, side)) for side in (1, 3, 6, 8)], axis=1)
        for each in (query, value)
    )
    context = attention(pixels(query), keys, values).reshape(-1, *x.shape[1:])
    return conv_bn_relu(weights, "fuse", np.concatenate((conv1x1(weights, "out", context), x)))


def isa(weights: Weights, x: Array, *, cell: int = 8) -> Array:
    """A pixel attends to those at its place in other cells, then to those in its cell."""
    height, width = x.shape[1:]
    y = x
    for name in ("far", "near"):
        query, key = (
            conv_bn_relu(weights, f"{name}.{each}.1", conv_bn_relu(weights, f"{name}.{each}.0", y))
            for each in ("query", "key")
        )
        value, context = conv1x1(weights, f"{name}.value", y), np.empty_like(y)
        for i, j in product(range(height), range(width)):
            near = [(a // cell, b // cell) == (i // cell, j // cell) for a, b in np.ndindex(height, width)]
            far = [(a % cell, b % cell) == (i % cell, j % cell) for a, b in np.ndindex(height, width)]
            group = np.array(far if name == "far" else near)
            context[:, i, j] = attention(
                query[:, i, j, None], pixels(key)[:, group], pixels(value)[:, group]
            )[:, 0]
        y = conv_bn_relu(weights, f"{name}.out", context)
    return conv_bn_relu(weights, "fuse", np.concatenate((y, x)))


def ocr(weights: Weights, x: Array) -> Array:
    regions = softmax(pixels(conv1x1(weights, "classify", x)), 1)
    centres = (pixels(x) @ regions.T)[:, :, None]  # (C, k, 1)
    query, key = (
        pixels(conv_bn_relu(weights, f"{name}.1", conv_bn_relu(weights, f"{name}.0", each)))
        for name, each in (("query", x), ("key", centres))
    )
    context = attention(query, key, pixels(conv_bn_relu(weights, "value", centres)))
    context = conv_bn_relu(weights, "out", context.reshape(-1, *x.shape[1:]))
    return conv_bn_relu(weights, "fuse", np.concatenate((context, x)))


def apc(weights: Weights, x: Array, *, convs: bool = False) -> Array:
    def conv(name: str, y: Array) -> Array:
        return conv_bn_relu(weights, name, y) if f"{name}.0.weight" in weights else y

    maps = []
    for level, side in enumerate((1, 2, 3, 6)):
        name = f"levels.{level}"
        local = conv(f"{name}.local", x)
        image = conv(f"{name}.image", local.mean((1, 2), keepdims=True))
        gates = 1 / (1 + np.exp(-conv1x1(weights, f"{name}.affinity", local + image)))
        context = np.zeros_like(local)
        for part, gate in zip(pixels(conv(f"{name}.parts", mean_pool(x, side))).T, gates, strict=True):
            context += part[:, None, None] * gate
        maps.append(conv(f"{name}.out", relu(conv(f"{name}.context", context) + local)))
    return x + batch_norm(weights, "out.1", conv1x1(weights, "out.0", np.concatenate(maps)))


def dm(weights: Weights, x: Array, *, norm: bool = True) -> Array:
    maps = []
    for number, side in enumerate((1, 3, 5, 7)):
        name, margin = f"filters.{number}", side // 2
        kernels = conv1x1(weights, f"{name}.kernels", mean_pool(x, side))
        reduced = conv1x1(weights, f"{name}.reduce.0", x)
        reduced = relu(batch_norm(weights, f"{name}.reduce.1", reduced) if norm else reduced)
        padded = np.pad(reduced, ((0, 0), (margin, margin), (margin, margin)))
        out = np.empty_like(reduced)
        for i, j in np.ndindex(x.shape[1:]):
            out[:, i, j] = (kernels * padded[:, i : i + side, j : j + side]).sum((1, 2))
        maps.append(relu(batch_norm(weights, f"{name}.norm", out) if norm else out))
    return x + batch_norm(weights, "out.1", conv1x1(weights, "out.0", np.concatenate(maps)))


REFERENCES: Mapping[str, Callable[..., Array]] = {
    "none": none,
    "ham-nmf": partial(hamburger, nmf),
    "ham-cd": partial(hamburger, cd),
    "ham-vq": partial(hamburger, vq),
    "light-ham": partial(hamburger, nmf, norm=group_norm, eval_steps=7),
    "self-attn": self_attention,
    "non-local": non_local,
    "ccnet": ccnet,
    "emanet": emanet,
    "a2": a2,
    "danet": danet,
    "gcnet": gcnet,
    "dnl": dnl,
    "external": external,
    "efficient": efficient,
    "sagan": sagan,
    "se": se,
    "psp": psp,
    "aspp": aspp,
    "ann": ann,
    "isa": isa,
    "ocr": ocr,
    "apc": apc,
    "dm": dm,
}
