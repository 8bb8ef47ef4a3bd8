"""What the mathematics of the newer blocks promises; their formulas are tried in `test_blocks_reference.py`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blocks import create, names
from blocks import ssm as ssm_module
from blocks.multihead import EPS, MultiHead, kernel_attention, scaled, softmax_attention
from blocks.nystrom import pseudo_inverse, segment_means
from blocks.performer import orthogonal_gaussian
from blocks.ssm import Driven, from_directions, in_directions, scan, selective_scan
from ctxbench.gate import relative_error, wake

IN_HEADS = ("agent", "cosformer", "linear-attn", "linformer", "mhsa", "nystrom", "performer", "pooled-attn")
MODERN = (*IN_HEADS, "fft", "ssm")

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def float64_from_one_seed() -> Iterator[None]:
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 16, 6, 5)


@torch.no_grad()
def made(name: str, channels: int = 16, *, spread: float = 1.0, **options: Any) -> Any:
    """The block in evaluation; a `spread` above one makes its scores sharp."""
    block = create(name, channels, **options).eval()
    if isinstance(block, MultiHead):
        block.query.weight.mul_(spread)
        block.key.weight.mul_(spread)
    return block


@torch.no_grad()
def as_softmax_attention(block: MultiHead, x: Tensor) -> Tensor:
    """What plain softmax attention gives with the projections of `block`."""
    plain = made("mhsa", block.channels, head_dim=block.head_dim)
    plain.load_state_dict(
        {key: value for key, value in block.state_dict().items() if key in plain.state_dict()}
    )
    return plain(x)


# What all of them keep


@pytest.mark.parametrize("name", MODERN)
def test_it_can_be_exported(name: str) -> None:
    block, x = create(name, 16).eval(), torch.randn(1, 16, 8, 8)
    exported = torch.export.export(block, (x,)).module()
    close(exported(x), block(x))


@pytest.mark.parametrize("channels", [1, 2, 5, 67, 96])
@pytest.mark.parametrize("name", MODERN)
def test_any_number_of_channels_will_do(name: str, channels: int) -> None:
    x = torch.randn(2, channels, 3, 4)
    y = create(name, channels).eval()(x)
    assert y.shape == x.shape
    assert y.isfinite().all()


@pytest.mark.parametrize("name", IN_HEADS)
def test_heads_have_64_channels_or_what_divides_them(name: str) -> None:
    with torch.device("meta"):
        found = {channels: create(name, channels).heads for channels in (16, 48, 64, 67, 512, 1280)}
    assert found == {16: 1, 48: 3, 64: 1, 67: 67, 512: 8, 1280: 20}


@pytest.mark.parametrize("name", IN_HEADS)
def test_heads_that_do_not_divide_the_channels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="channels=16 cannot be divided by head_dim=5"):
        create(name, 16, head_dim=5)
    with pytest.raises(ValueError, match="head_dim must be above 0"):
        create(name, 16, head_dim=0)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("agent", "agents"),
        ("fft", "size"),
        ("linformer", "tokens"),
        ("nystrom", "landmarks"),
        ("nystrom", "iterations"),
        ("performer", "features"),
        ("pooled-attn", "pool"),
        ("ssm", "state"),
        ("ssm", "expand"),
    ],
)
def test_sizes_must_be_positive(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be above 0"):
        create(name, 16, **{option: 0})


@pytest.mark.parametrize("name", MODERN)
def test_every_pixel_hears_of_every_other(name: str) -> None:
    """A change of one corner reaches the opposite one."""
    block, x = made(name), torch.randn(1, 16, 9, 8)
    changed = x.clone()
    changed[..., 0, 0] += 1
    with torch.no_grad():
        assert (block(changed) - block(x))[..., -1, -1].abs().max() > 1e-9


# Softmax attention, and what is meant to be close to it


def test_mhsa_is_self_attention_in_heads_with_scaled_scores(x: Tensor) -> None:
    block, old = made("mhsa", head_dim=4), made("self-attn", heads=4, scale=True)
    old.load_state_dict(block.state_dict())
    close(block(x), old(x))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linformer", {"tokens": 30}),
        ("linformer", {"tokens": 30, "head_dim": 4}),
        ("nystrom", {"landmarks": 30, "iterations": 30}),
        ("nystrom", {"landmarks": 99, "iterations": 30, "head_dim": 8}),
    ],
)
def test_with_a_token_for_each_pixel_it_is_softmax_attention(
    name: str, options: dict[str, Any], x: Tensor
) -> None:
    block = made(name, spread=2.0, **options)
    close(block(x), as_softmax_attention(block, x))


@torch.no_grad()
def test_more_landmarks_are_closer_to_softmax_attention_on_a_smooth_image() -> None:
    x = F.interpolate(torch.randn(1, 16, 3, 3), (6, 5), mode="bicubic")
    errors = []
    for landmarks in (2, 15, 30):
        torch.manual_seed(1)
        block = made("nystrom", spread=2.0, landmarks=landmarks)
        errors.append(relative_error(block(x) - x, as_softmax_attention(block, x) - x))
    assert errors[0] > 3 * errors[1] > 9 * errors[2], errors


@torch.no_grad()
def test_performer_comes_close_to_softmax_attention_with_many_features(x: Tensor) -> None:
    """Scores must be moderate: the variance of the estimate grows with their exponential."""
    errors = []
    for features in (64, 4096):
        torch.manual_seed(1)
        block = made("performer", head_dim=8, spread=0.5, features=features)
        errors.append(relative_error(block(x) - x, as_softmax_attention(block, x) - x))
    assert errors[1] < 0.01, errors
    assert errors[1] < errors[0] / 3, "as a root of the number, about"


def test_products_of_random_features_are_the_exponential_of_the_scores() -> None:
    q, k = torch.randn(2, 5, 4) / 2
    directions = orthogonal_gaussian(200_000, 4).double()
    phi_q, phi_k = (
        torch.exp(tokens @ directions.T - tokens.square().sum(1, keepdim=True) / 2) for tokens in (q, k)
    )
    torch.testing.assert_close(phi_q @ phi_k.T / 200_000, torch.exp(q @ k.T), rtol=0.02, atol=0)


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_ones() -> None:
    directions = orthogonal_gaussian(10 * 64, 64).double()
    for block in directions.split(64):
        gram = block @ block.T
        assert (gram - gram.diagonal().diag()).abs().max() < 1e-3
    assert abs(directions.square().sum(1).mean() / 64 - 1) < 0.05
    assert orthogonal_gaussian(3, 8).shape == (3, 8)
    with torch.device("meta"):
        assert orthogonal_gaussian(2**31 - 1, 64).shape == (2**31 - 1, 64), "an estimate takes no time"


@pytest.mark.parametrize("matrix", [torch.rand(3, 6, 6) + 3 * torch.eye(6), torch.full((1, 4, 4), 0.25)])
def test_pseudo_inverse_is_moore_and_penroses(matrix: Tensor) -> None:
    matrix = torch.softmax(matrix.double(), -1) if matrix.shape[-1] == 6 else matrix.double()
    close(pseudo_inverse(matrix, 40), torch.from_numpy(np.linalg.pinv(matrix.numpy())))


def test_segment_means_of_equal_segments() -> None:
    tokens = torch.randn(2, 3, 12, 5)
    close(segment_means(tokens, 4), tokens.reshape(2, 3, 4, 3, 5).mean(3))
    close(segment_means(tokens, 99), tokens)


def test_agents_of_every_pixel_are_two_softmax_maps(x: Tensor) -> None:
    block = made("agent", agents=6, conv=False)
    q, k, v = (block.split(project(x)) for project in (block.query, block.key, block.value))
    width = q.shape[-1]
    gather = torch.softmax(torch.einsum("bhad,bhnd->bhan", q, k) / width**0.5, -1)
    hand_out = torch.softmax(torch.einsum("bhnd,bhad->bhna", q, q) / width**0.5, -1)
    context = (hand_out @ gather @ v).mT.reshape(x.shape)
    close(block(x), x + block.out(context))


def test_an_image_smaller_than_the_pooled_map_is_not_enlarged() -> None:
    x = torch.randn(1, 16, 3, 20)
    assert made("pooled-attn").seen(x).shape == (1, 16, 3, 7)
    assert made("linformer").seen(x).shape == (1, 16, 1, 60)


# Linear attention


@pytest.mark.parametrize("features", [1, 3])
def test_kernel_attention_is_the_dense_matrix_of_weights(features: int) -> None:
    q, k, v = torch.rand(2, 1, 7, features), torch.rand(2, 1, 9, features), torch.randn(2, 1, 9, 4)
    weights = torch.zeros(2, 1, 7, 9)
    for b, i, j in np.ndindex(2, 7, 9):
        weights[b, 0, i, j] = q[b, 0, i] @ k[b, 0, j]
    close(kernel_attention(q, k, v), weights / weights.sum(-1, keepdim=True) @ v)


def test_a_query_without_weight_gets_nothing() -> None:
    q, k, v = torch.zeros(1, 1, 2, 3), torch.rand(1, 1, 4, 3), torch.randn(1, 1, 4, 5)
    q[0, 0, 1] = EPS
    found = kernel_attention(q, k, v)
    assert not found[0, 0, 0].any()
    assert found[0, 0, 1].any()


def test_half_precision_sums_many_pixels_without_overflow() -> None:
    q = k = torch.full((1, 1, 70_000, 2), 4.0, dtype=torch.float16)
    v = torch.full((1, 1, 70_000, 2), 3.0, dtype=torch.float16)
    found = kernel_attention(q, k, v)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, v)


@pytest.mark.parametrize("name", ["cosformer", "linear-attn", "linformer", "mhsa", "performer"])
@torch.no_grad()
def test_weights_sum_to_one(name: str, x: Tensor) -> None:
    block = made(name)
    block.value.weight.zero_()
    torch.nn.init.normal_(block.value.bias)
    expected = block.out(block.value.bias.reshape(1, -1, 1, 1).expand_as(x))
    close(block(x) - x, expected)


@pytest.mark.parametrize("name", ["linear-attn", "mhsa", "performer"])
def test_pixels_have_no_order(name: str, x: Tensor) -> None:
    block, order = made(name), torch.randperm(30)

    def shuffled(image: Tensor) -> Tensor:
        return image.flatten(2)[..., order].reshape(image.shape)

    close(block(shuffled(x)), shuffled(block(x)))


@torch.no_grad()
def test_cosformers_weights_fall_with_the_distance_along_the_rows() -> None:
    """With equal queries and keys all that is left is the cosine."""
    block, x = made("cosformer", 1), torch.zeros(1, 1, 4, 5)
    for project in (block.query, block.key):
        torch.nn.init.ones_(project.bias)
    for project in (block.value, block.out):
        torch.nn.init.ones_(project.weight)
        torch.nn.init.zeros_(project.bias)
        project.weight.requires_grad_(True)
    for project in (block.query, block.key):
        project.weight.zero_()
    weights = torch.stack([block.branch(unit.reshape(1, 1, 4, 5)).flatten() for unit in torch.eye(20)], 1)
    i = torch.arange(20.0)
    cosine = torch.cos(torch.pi / 2 * (i[:, None] - i) / 20)
    close(weights, cosine / cosine.sum(1, keepdim=True))
    assert (x == 0).all()


# FFT


@pytest.mark.parametrize("shape", [(14, 14), (6, 5), (1, 1), (1, 9), (31, 2)])
@torch.no_grad()
def test_a_filter_of_ones_changes_nothing(shape: tuple[int, int]) -> None:
    block, x = made("fft"), torch.randn(2, 16, *shape)
    block.filter.zero_()[:, 0] = 1
    close(block(x), x + block.out(x))


@torch.no_grad()
def test_the_filter_is_a_circular_convolution() -> None:
    """With the spectrum of a kernel, at the size it is stored for, pixels are sums over that kernel."""
    block, x, kernel = made("fft", 1, size=5), torch.randn(1, 1, 5, 5), torch.randn(5, 5)
    spectrum = torch.fft.rfft2(kernel)
    block.filter.copy_(torch.stack((spectrum.real, spectrum.imag))[None])
    torch.nn.init.ones_(block.out.weight)
    torch.nn.init.zeros_(block.out.bias)
    expected = torch.zeros(5, 5)
    for i, j, a, b in np.ndindex(5, 5, 5, 5):
        expected[i, j] += kernel[a, b] * x[0, 0, (i - a) % 5, (j - b) % 5]
    close(block.branch(x)[0, 0], expected)


@torch.no_grad()
def test_a_filter_does_not_depend_on_where_in_the_image_something_is(x: Tensor) -> None:
    block = made("fft")
    close(block(x.roll((2, 3), (2, 3))), block(x).roll((2, 3), (2, 3)))


def test_the_mean_of_an_image_is_filtered_alike_at_any_size() -> None:
    block = made("fft")
    small, large = (block.branch(torch.ones(1, 16, *shape)) for shape in ((3, 4), (40, 33)))
    close(small[0, :, 0, 0], large[0, :, 20, 20])


# State space


@settings(max_examples=40, deadline=None, derandomize=True)
@given(length=st.integers(1, 70), state=st.integers(1, 4), seed=st.integers(0, 9))
def test_the_parallel_scan_is_the_recurrence(length: int, state: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    decay = torch.rand(2, state, length, generator=generator)
    drive = torch.randn(2, state, length, generator=generator)
    h, product = torch.zeros(2, state), torch.ones(2, state)
    products, states = scan(decay, drive)
    for t in range(length):
        h, product = decay[..., t] * h + drive[..., t], product * decay[..., t]
        close(states[..., t], h)
        close(products[..., t], product)


def drawn(length: int, state: int, width: int = 3) -> tuple[Driven, Tensor, Tensor]:
    driven = Driven(
        torch.randn(2, 4, width, length),
        torch.randn(2, 4, width, length),
        torch.randn(2, 4, state, length),
        torch.randn(2, 4, state, length),
    )
    return driven, -torch.rand(4, width, state) - 0.1, torch.randn(4, width)


@pytest.mark.parametrize("piece", [1, 5, 16, 1000])
@pytest.mark.parametrize("state", [1, 3])
def test_the_selective_scan_is_its_recurrence_whatever_the_pieces(
    piece: int, state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssm_module, "PIECE", piece)
    driven, rates, skip = drawn(41, state)
    found = selective_scan(driven, rates, skip)
    h = torch.zeros(2, 4, 3, state)
    for t in range(41):
        u, step, into, out_of = (each[..., t] for each in driven)
        delta = torch.log1p(torch.exp(step))
        h = torch.exp(delta[..., None] * rates) * h + (delta * u)[..., None] * into[:, :, None]
        close(found[..., t], torch.einsum("bkes,bks->bke", h, out_of) + skip * u)


def test_what_is_computed_again_in_the_backward_gives_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ssm_module, "PIECE", 12)
    driven, rates, skip = drawn(41, 3)
    leaves = [each.requires_grad_() for each in (*driven, rates, skip)]
    direction = torch.randn(2, 4, 3, 41)
    kept, again = (
        torch.autograd.grad((selective_scan(driven, rates, skip, save_memory=it) * direction).sum(), leaves)
        for it in (False, True)
    )
    for one, other in zip(kept, again, strict=True):
        close(one, other)


def test_a_scan_of_many_pixels_in_bfloat16_keeps_its_digits() -> None:
    """A state that decays slowly sums thousands of small drives: in bfloat16 it would stand still."""
    length, delta = 4096, 1e-3
    step = torch.full((1, 4, 1, length), np.log(np.expm1(delta)))
    ones = torch.ones(1, 4, 1, length)
    half = Driven(*(each.bfloat16() for each in (ones, step, ones, ones)))
    rates, skip = torch.full((4, 1, 1), -1.0), torch.zeros(4, 1)
    exact = selective_scan(Driven(*(each.double() for each in half)), rates, skip)
    found = selective_scan(half, rates.float(), skip.float())
    assert found.dtype == torch.float32
    assert relative_error(found, exact) < 1e-4


def test_the_four_directions_start_at_the_four_corners() -> None:
    image = torch.arange(6.0).reshape(1, 1, 1, 2, 3)  # 0 1 2 / 3 4 5
    sequences = in_directions(image.expand(1, 4, 1, 2, 3))[0, :, 0].int().tolist()
    assert sequences == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]


def test_directions_come_back_to_their_pixels() -> None:
    maps = torch.randn(2, 4, 3, 5, 7)
    close(from_directions(in_directions(maps), 5, 7), maps.sum(1))


@torch.no_grad()
def test_steps_start_between_a_thousandth_and_a_tenth() -> None:
    steps = F.softplus(made("ssm").step.bias)
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 0.1001


def test_training_on_a_large_image_keeps_no_states() -> None:
    """All states of the pixels, of size 16 and in four directions, would take 64 maps of the scans' width."""
    from ctxbench.cost import estimate
    from ctxbench.spec import Grid

    small, large = (
        estimate(cell).memory_bytes
        for cell in Grid(
            "ssm[state=1/16]", resolutions="64", channels="16", modes="train", estimated=True
        ).cells()
    )
    one_map = 64 * 64 * 2 * 16 * 4
    assert large - small < 64 * one_map / 4


def test_large_activations_in_half_precision_stay_finite() -> None:
    block = wake(create("ssm", 16)).half().eval()
    with torch.no_grad():
        assert block((100 * torch.randn(1, 16, 8, 8)).half()).isfinite().all()


def test_the_catalogue_has_all_of_them() -> None:
    assert set(MODERN) <= set(names())
    q, k, v = torch.randn(3, 1, 5, 4)
    close(softmax_attention(q, scaled(k), v), torch.softmax(q @ k.mT / 2, -1) @ v)
