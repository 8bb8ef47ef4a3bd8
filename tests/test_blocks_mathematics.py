"""What the mathematics of each block promises, one promise a test."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from blocks import ContextBlock, base, create, update_rules
from blocks.base import FAR_APART, FAR_APART_HALVES, Conv1x1, weighted
from blocks.ccnet import criss_cross
from blocks.decomposition import NMF, Decomposition
from blocks.update_rules import (
    in_tiles,
    indexed_uniform,
    lengths,
    nmf_bases,
    nmf_codes,
    soft_assignment,
    tile_columns,
)
from ctxbench.cost import PeakMemory
from ctxbench.gate import relative_error
from tests import references
from tests.references import Array

HAMS = ("ham-nmf", "ham-cd", "ham-vq")
CPU = torch.device("cpu")

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
small = st.integers(1, 9)
hypothesis_drawn = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def float64_from_one_seed() -> Iterator[None]:
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def x() -> Tensor:
    """Two images of eight channels."""
    return torch.randn(2, 8, 4, 5)


@pytest.fixture
def latent() -> Tensor:
    """Two latent maps of eight channels, not negative: NMF's must not be."""
    return torch.rand(2, 8, 4, 5)


@torch.no_grad()
def awake(name: str, channels: int = 8, **options: Any) -> Any:
    """The block in evaluation, with every parameter that starts at zero (a gate, a BN scale) away from it."""
    block = create(name, channels, **options).eval()
    for parameter in block.parameters():
        if not parameter.any():
            parameter.uniform_(0.5, 1.5)
    return block


def ham(name: str, channels: int = 8, **options: Any) -> Any:
    """The decomposition (of rank 3 unless told) of a hamburger alone, in evaluation."""
    return create(name, channels, **{"rank": 3, **options}).eval().get_submodule("hams.0")


def columns_for(decomposition: Decomposition) -> Tensor:
    """A matrix (1, D, N) of 20 columns, not negative where the decomposition asks for it."""
    x = torch.randn(1, decomposition.channels, 20)
    return x.abs() if isinstance(decomposition, NMF) else x


def direction(shape: torch.Size) -> Tensor:
    """Random, but always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def output_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient at x of its inner product with `direction`."""
    x = x.detach().clone().requires_grad_()
    output = function(x)
    (gradient,) = torch.autograd.grad(output, x, direction(output.shape))
    return output.detach(), gradient


def influence(block: ContextBlock, height: int, width: int) -> Tensor:
    """Whether the output at a pixel (row) depends on the input at a pixel (column), (n, n)."""
    n = height * width
    x = torch.randn(1, block.channels, height, width)
    jacobian = torch.autograd.functional.jacobian(block, x).reshape(block.channels, n, block.channels, n)
    return jacobian.abs().sum((0, 2)) > 0


def cross(height: int, width: int) -> Tensor:
    """Whether two pixels share a row or a column, (n, n)."""
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    return (row[:, None] == row) | (column[:, None] == column)


# --- non-negative matrix factorisation -------------------------------------------------------


def nmf_iterates(rows: int, columns: int, rank: int, seed: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A random X (1, D, N), and bases and codes after every half step of ten iterations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, rows, columns, generator=generator)
    bases = F.normalize(torch.rand(1, rows, rank, generator=generator), dim=1)
    codes = torch.softmax(bases.mT @ x, 1)
    iterates = [(bases, codes)]
    for _ in range(10):
        codes = nmf_codes(x, bases.mT, bases.mT @ bases, codes)
        iterates.append((bases, codes))
        bases = nmf_bases(bases, x @ codes.mT, codes @ codes.mT)
        iterates.append((bases, codes))
    return x, iterates


@hypothesis_drawn
@given(small, small, small, st.integers(0, 99))
def test_nmf_never_raises_its_objective(rows: int, columns: int, rank: int, seed: int) -> None:
    x, iterates = nmf_iterates(rows, columns, rank, seed)
    objective = torch.stack([(x - bases @ codes).square().sum() for bases, codes in iterates])
    # Where the fit is exact, the eps of the denominators may move it, relative to X, by less than eps.
    assert (objective.diff() <= 1e-6 * x.square().sum()).all()
    assert objective[-1] < objective[0]


@hypothesis_drawn
@given(small, small, small, st.integers(0, 99))
def test_nmf_keeps_its_factors_non_negative(rows: int, columns: int, rank: int, seed: int) -> None:
    _, iterates = nmf_iterates(rows, columns, rank, seed)
    assert all((bases >= 0).all() and (codes >= 0).all() for bases, codes in iterates)


# --- soft clustering -------------------------------------------------------------------------


@pytest.mark.parametrize("eval_steps", [1, 6])
@pytest.mark.parametrize("spatial", [True, False])
def test_cd_has_bases_of_length_one(eval_steps: int, spatial: bool) -> None:
    cd = ham("ham-cd", eval_steps=eval_steps, spatial=spatial)
    x = columns_for(cd)
    bases, _ = cd.decompose(x, cd.first_bases(x))
    close(bases.norm(dim=1), torch.ones(1, 3))


def test_cd_codes_solve_the_ridge_normal_equations() -> None:
    cd = ham("ham-cd", ridge=0.3)
    x = columns_for(cd)
    bases, codes = cd.decompose(x, cd.first_bases(x))
    codes = cd.final_codes(x, bases, codes)
    close((bases.mT @ bases + 0.3 * torch.eye(3)) @ codes, bases.mT @ x)


@pytest.mark.parametrize("inv_t", [1.0, 100.0])
def test_vq_codes_sum_to_one(inv_t: float) -> None:
    vq = ham("ham-vq", inv_t=inv_t)
    x = columns_for(vq)
    codes = vq.final_codes(x, *vq.decompose(x, vq.first_bases(x)))
    close(codes.sum(1), torch.ones(1, 20))


# --- tiles of columns ------------------------------------------------------------------------


@pytest.fixture
def narrow_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six columns of eight rows in float64."""
    monkeypatch.setattr(update_rules, "TILE_BYTES", 6 * 8 * 8)
    monkeypatch.setattr(update_rules, "MIN_TILE", 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("name", [*HAMS, "emanet"])
def test_tiles_change_no_result(
    name: str, spatial: bool, training: bool, x: Tensor, request: pytest.FixtureRequest
) -> None:
    options = {} if name == "emanet" else {"spatial": spatial, "dictionary": "frozen"}
    block = awake(name, rank=3, **options).train(training)
    results = []
    for tiled in (False, True):
        if tiled:
            request.getfixturevalue("narrow_tiles")
        results.append(output_and_gradient(copy.deepcopy(block), x))
    for found, expected in zip(*results, strict=True):
        close(found, expected)


def test_every_matrix_is_taken_in_tiles_of_one_piece(narrow_tiles: None) -> None:
    x, seen = torch.rand(2, 8, 20), []

    def iterate(tiles: update_rules.Tiles, bases: Tensor) -> tuple[Tensor, update_rules.Tiles]:
        seen.append([tile.shape[1] for tile in tiles])
        assert all(tile.is_contiguous() for tile in tiles)
        return bases, tiles

    bases, codes = in_tiles(iterate, x, torch.rand(2, 8, 3))
    assert seen == [[6, 6, 6, 2]] * 2
    assert bases.shape == (2, 8, 3)
    assert codes is not None
    assert torch.equal(codes, x)


def test_no_matrices_have_no_tiles(narrow_tiles: None) -> None:
    none = torch.rand(0, 8, 20)
    assert tile_columns(none) == 6, "one matrix of it would be divided"
    bases, codes = in_tiles(lambda tiles, bases: (bases, tiles), none, torch.rand(0, 8, 3))
    assert bases.shape == (0, 8, 3)
    assert codes is not None
    assert codes.shape == none.shape


def test_what_is_small_differentiated_or_elsewhere_is_taken_whole(narrow_tiles: None) -> None:
    assert tile_columns(torch.rand(2, 8, 20)) == 6
    assert tile_columns(torch.rand(2, 8, 6)) is None
    assert tile_columns(torch.rand(2, 80, 20)) is None, "not a column of it fits"
    assert tile_columns(torch.rand(2, 8, 20, requires_grad=True)) is None
    assert tile_columns(torch.empty(2, 8, 20, device="meta")) is None


@pytest.mark.parametrize("name", [*HAMS, "emanet"])
def test_tiles_take_no_more_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_rules, "TILE_BYTES", 64 * 128 * 8)
    block, x = awake(name, 64, rank=16), torch.randn(2, 64, 32, 32)
    peaks = []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(update_rules, "tile_columns", lambda x: None)
        with torch.no_grad(), PeakMemory() as memory:
            block(x)
        peaks.append(memory.peak)
    assert peaks[0] <= peaks[1]


@pytest.mark.parametrize("name", [*HAMS, "light-ham", "emanet"])
def test_decompositions_compile_without_graph_breaks(name: str, x: Tensor) -> None:
    block = awake(name, rank=3)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    close(compiled(x), block(x))


def test_decompositions_are_mapped_over_batches(x: Tensor) -> None:
    for name in HAMS:
        block = awake(name, rank=3, dictionary="frozen")
        close(torch.vmap(block)(x.unsqueeze(1)).squeeze(1), block(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of sums over the tiles
def test_tiles_are_mapped_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 8, 20, 20)
    monkeypatch.setattr(update_rules, "TILE_BYTES", 8 * 128 * x.element_size())
    for name in HAMS:
        block = awake(name, rank=3, dictionary="frozen")
        with torch.no_grad():
            close(torch.vmap(block)(x.unsqueeze(1)).squeeze(1), block(x))


def test_a_cheese_factor_that_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match="latent channels=8 cannot be divided by cheese_factor=3"):
        create("ham-nmf", 8, version="v2+", latent=8, cheese_factor=3)


def test_criss_cross_attention_is_mapped_and_differentiated_forward(x: Tensor) -> None:
    block = awake("ccnet")
    jacobian = torch.func.vmap(torch.func.jacrev(lambda image: block(image[None])[0]))(x)
    forward = torch.func.vmap(torch.func.jacfwd(lambda image: block(image[None])[0]))(x)
    close(jacobian, forward)


# --- what is differentiated ------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2", "v2+"])
@pytest.mark.parametrize("name", HAMS)
def test_one_step_and_bptt_have_one_output_and_two_gradients(name: str, version: str, x: Tensor) -> None:
    block = awake(name, rank=3, version=version)
    bptt = create(name, 8, rank=3, version=version, gradient="bptt").eval()
    bptt.load_state_dict(block.state_dict())
    output, gradient = output_and_gradient(block, x)
    output_bptt, gradient_bptt = output_and_gradient(bptt, x)
    close(output, output_bptt)
    assert (gradient - gradient_bptt).norm() > 1e-3 * gradient.norm()


def nmf_pullback(x: Array, bases: Array, codes: Array, towards: Array) -> Array:
    ratio = codes / (x.T @ bases)  # the last update multiplies X^T D by this
    return bases @ ((towards.T @ bases) * ratio).T


def cd_pullback(x: Array, bases: Array, codes: Array, towards: Array) -> Array:
    gram = bases.T @ bases + 0.1 * np.eye(bases.shape[1])
    return bases @ np.linalg.inv(gram) @ bases.T @ towards


def vq_pullback(x: Array, bases: Array, codes: Array, towards: Array) -> Array:
    to_codes = towards.T @ bases
    to_logits = codes * (to_codes - (codes * to_codes).sum(1, keepdims=True))  # through the softmax
    per_length = 10 / (references.EPS + np.linalg.norm(x, axis=0))  # |x| is a constant
    return references.unit(bases, references.EPS) @ to_logits.T * per_length


ONE_STEP: dict[str, tuple[Any, Any, dict[str, Any]]] = {  # reference, pullback, options of both
    "ham-nmf": (references.nmf, nmf_pullback, {}),
    "ham-cd": (references.cd, cd_pullback, {"inv_t": 10.0}),
    "ham-vq": (references.vq, vq_pullback, {"inv_t": 10.0}),
}


@pytest.mark.parametrize("name", HAMS)
def test_one_step_gradient_is_that_of_the_last_update_with_bases_and_codes_constant(name: str) -> None:
    decompose, pullback, options = ONE_STEP[name]
    one_step = ham(name, **options)
    columns = columns_for(one_step)  # (1, D, N), as an image N high and 1 wide for the module
    _, gradient = output_and_gradient(one_step, columns[..., None])
    towards, x, first = (
        t[0].numpy() for t in (direction(columns.shape), columns, one_step.first_bases(columns))
    )
    bases, codes = decompose(x, first, steps=6, **options)
    close(gradient[0, ..., 0], torch.from_numpy(pullback(x, bases, codes, towards)))


@pytest.mark.parametrize("name", ["ham-nmf", "ham-cd"])
@pytest.mark.parametrize("spatial", [True, False])
def test_bptt_gradient_is_the_derivative(name: str, spatial: bool) -> None:
    options = ONE_STEP[name][2]
    block = create(name, 4, rank=2, eval_steps=3, gradient="bptt", spatial=spatial, **options).eval()
    assert torch.autograd.gradcheck(block, torch.randn(1, 4, 3, 2, requires_grad=True))


def test_sharp_shares_are_never_subnormal() -> None:
    """Products with subnormal numbers take many CPUs a hundred times as long."""
    bases, x = F.normalize(torch.randn(8, 16), dim=0), F.normalize(torch.randn(8, 500), dim=0)
    for dtype in (torch.float32, torch.float64):
        sharp = soft_assignment(x.to(dtype), bases.to(dtype), 150.0)
        exact = torch.softmax(150 * (bases.double().mT @ x.double()), dim=-2)
        assert float(exact.min()) < torch.finfo(torch.float32).tiny < float(sharp.min()) / 1e5
        assert float((sharp.double() - exact).abs().max()) < (1e-4 if dtype == torch.float32 else 1e-6)


@pytest.fixture
def vq() -> Decomposition:
    return ham("ham-vq", 4, rank=2, eval_steps=3, gradient="bptt", inv_t=5.0)


def vq_final(vq: Decomposition, x: Tensor, length: Tensor) -> Tensor:
    """VQ's reconstruction of x (1, D, N), with the length of its columns in the final codes given apart."""
    bases, _ = vq.decompose(x, vq.first_bases(x))
    unit_bases = F.normalize(bases, dim=1, eps=references.EPS)
    return bases @ soft_assignment(x, unit_bases, 5.0 / (length.unsqueeze(1) + references.EPS))


def test_bptt_gradient_of_vq_is_the_derivative_with_the_last_lengths_constant(vq: Decomposition) -> None:
    x = torch.randn(1, 4, 6)
    constant_length = partial(vq_final, vq, length=x.norm(dim=1))
    assert torch.autograd.gradcheck(constant_length, x.clone().requires_grad_())
    output, gradient = output_and_gradient(lambda matrix: vq(matrix[..., None]).squeeze(-1), x)
    expected_output, expected_gradient = output_and_gradient(constant_length, x)
    close(output, expected_output)
    close(gradient, expected_gradient)


def test_bptt_gradient_of_vq_misses_the_derivative_only_along_each_pixel(vq: Decomposition) -> None:
    x = torch.randn(1, 4, 6)
    _, gradient = output_and_gradient(lambda matrix: vq(matrix[..., None]).squeeze(-1), x)
    _, derivative = output_and_gradient(lambda matrix: vq_final(vq, matrix, matrix.norm(dim=1)), x)
    missing = derivative - gradient
    assert missing.norm() > 1e-3 * derivative.norm()
    along = F.normalize(x, dim=1)
    close(missing, along * (along * missing).sum(1, keepdim=True))


# --- dictionaries ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HAMS)
def test_random_dictionary_is_drawn_afresh_at_every_training_forward(name: str, latent: Tensor) -> None:
    random = ham(name).train()
    assert not torch.allclose(random(latent), random(latent), rtol=1e-3)


@pytest.mark.parametrize("name", HAMS)
def test_random_dictionary_differs_between_the_images_and_heads_of_a_training_batch(name: str) -> None:
    random = ham(name, heads=2).train()
    alike = torch.rand(1, 4, 4, 5).repeat(2, 2, 1, 1)  # both images and both heads see the same
    parts = random(alike).reshape(4, -1)
    assert (torch.cdist(parts, parts) > 1e-3).sum() == 12, "all four differ from one another"


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("name", HAMS)
def test_random_dictionary_is_fixed_in_evaluation_for_every_image(
    name: str, spatial: bool, latent: Tensor
) -> None:
    random = ham(name, spatial=spatial)
    first, again = random(latent), random(latent.flip(0)).flip(0)
    close(first, again)


@pytest.mark.parametrize("name", HAMS)
def test_random_dictionary_is_reproduced_by_the_seed(name: str, latent: Tensor) -> None:
    random = ham(name).train()
    torch.manual_seed(7)
    first = random(latent)
    torch.manual_seed(7)
    assert torch.equal(first, random(latent))


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("name", HAMS)
def test_frozen_dictionary_is_the_same_in_training(name: str, spatial: bool, latent: Tensor) -> None:
    frozen = ham(name, dictionary="frozen", spatial=spatial)
    evaluated = frozen(latent)
    frozen.train()
    assert torch.equal(frozen(latent), evaluated)
    assert torch.equal(frozen(latent), evaluated)


@pytest.mark.parametrize("name", HAMS)
def test_learned_dictionary_moves_in_training_only(name: str, latent: Tensor) -> None:
    learned = ham(name, heads=2, dictionary="learned")
    start = learned.bases.clone()
    learned(latent)
    assert torch.equal(learned.bases, start)
    learned.train()(latent)
    assert (learned.bases - start).norm() > 1e-3


@pytest.mark.parametrize("name", HAMS)
def test_learned_dictionary_is_nine_tenths_of_the_batchs_final_bases_made_unit(
    name: str, latent: Tensor
) -> None:
    decompose, _, options = ONE_STEP[name]
    learned = ham(name, heads=2, dictionary="learned", **options).train()
    start = learned.bases.numpy().copy()
    learned(latent)
    heads = latent.reshape(2, 2, 4, 20).numpy()  # images, heads, D, N
    for h in range(2):
        new = np.mean([decompose(image[h], start[h], steps=6, **options)[0] for image in heads], axis=0)
        expected = references.unit(0.1 * start[h] + 0.9 * new, 1e-12)
        close(learned.bases[h], torch.from_numpy(expected))


@pytest.mark.parametrize("name", HAMS)
def test_learned_dictionary_stays_of_length_one(name: str, latent: Tensor) -> None:
    learned = ham(name, dictionary="learned").train()
    for _ in range(5):
        learned(latent)
    close(learned.bases.norm(dim=1), torch.ones(1, 3))


@pytest.mark.parametrize("name", [*HAMS, "light-ham"])
def test_learned_dictionary_of_channels_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"learned.*spatial=True"):
        create(name, 8, dictionary="learned", spatial=False)


@pytest.mark.parametrize("name", HAMS)
def test_dictionary_of_channels_is_the_same_for_every_input_dtype_and_seed(name: str) -> None:
    channel = ham(name, spatial=False)
    wide = channel.first_bases(torch.empty(1, 20, 8))
    torch.manual_seed(1)
    narrow = channel.first_bases(torch.empty(1, 20, 8, dtype=torch.float32))
    assert torch.equal(wide.float(), narrow)


def test_indexed_uniform_depends_on_the_position_alone() -> None:
    few, many = indexed_uniform((3, 7), CPU), indexed_uniform((5, 8), CPU)
    assert torch.equal(few.flatten(), many.flatten()[:21])


def test_indexed_uniform_is_roughly_uniform() -> None:
    numbers = indexed_uniform((64, 1024), CPU)
    count = numbers.numel()
    share = torch.histc(numbers, 32, 0, 1) / count
    tolerance = 5 * (1 / 32 / count) ** 0.5
    assert (share - 1 / 32).abs().max() < tolerance
    neighbours = torch.corrcoef(torch.stack((numbers.flatten()[:-1], numbers.flatten()[1:])))
    assert neighbours[0, 1].abs() < 5 / count**0.5


def test_indexed_uniform_lies_inside_0_and_1() -> None:
    # Position 33,476,378 is the first whose 24 hashed bits are all ones: ham-cd[rank=512,spatial=False]
    # reaches it at 256 x 256. At exactly 1 the normal dictionary of CD and VQ would be infinite.
    numbers = indexed_uniform((33_476_379,), CPU)
    assert numbers.min() > 0
    assert numbers.max() < 1


def test_light_ham_is_ham_nmf_with_bptt_and_seven_steps_but_for_the_normalisation(x: Tensor) -> None:
    light = awake("light-ham", rank=3)
    plain = awake("ham-nmf", rank=3, gradient="bptt", eval_steps=7)
    assert isinstance(light.upper_bread[1], nn.GroupNorm)
    light.upper_bread[1] = plain.upper_bread[1] = nn.Identity()
    plain.load_state_dict(light.state_dict())
    for of_light, of_plain in zip(output_and_gradient(light, x), output_and_gradient(plain, x), strict=True):
        assert torch.equal(of_light, of_plain)


# --- expectation maximisation ----------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.9, 0.5, 1.0])
def test_emanet_bases_move_to_momentum_old_plus_the_rest_of_the_batchs_mean(
    momentum: float, x: Tensor
) -> None:
    block = awake("emanet", rank=3, momentum=momentum).train()
    old = block.bases.clone()
    images = block.project(x).flatten(2).numpy()
    block(x)
    new = [references.expectation_maximisation(image, old[0].numpy(), steps=3)[0] for image in images]
    close(block.bases, momentum * old + (1 - momentum) * torch.from_numpy(np.mean(new, axis=0)))


def test_emanet_bases_never_move_in_evaluation(x: Tensor) -> None:
    block = awake("emanet", rank=3)
    old = block.bases.clone()
    first = block(x)
    assert torch.equal(block(x), first)
    assert torch.equal(block.bases, old)


# --- attention -------------------------------------------------------------------------------


@hypothesis_drawn
@given(st.integers(1, 6), st.integers(1, 6))
def test_criss_cross_is_full_attention_masked_to_the_row_and_the_column(height: int, width: int) -> None:
    query, key, value = (torch.randn(2, channels, height, width) for channels in (3, 3, 5))
    mask = cross(height, width)
    assert (mask.sum(1) == height + width - 1).all()
    scores = query.flatten(2).mT @ key.flatten(2)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = (value.flatten(2) @ weights.mT).reshape(value.shape)
    close(criss_cross(query, key, value), expected)


def test_gradient_of_criss_cross_is_the_derivative() -> None:
    query, key, value = (torch.randn(2, width, 2, 3, requires_grad=True) for width in (2, 2, 3))
    assert torch.autograd.gradcheck(criss_cross, (query, key, value))


@pytest.mark.parametrize("pixels", [5, FAR_APART_HALVES, FAR_APART])
def test_weighted_values_are_the_same_however_far_apart_rows_lie(pixels: int) -> None:
    values, weights = torch.randn(2, 3, pixels), torch.randn(2, 4, pixels)
    close(weighted(values, weights), torch.einsum("bcm,bnm->bcn", values, weights))
    halves = weighted(values.bfloat16(), weights.bfloat16()).double()
    assert relative_error(halves, weighted(values, weights)) < 0.02


# --- 1x1 convolutions ------------------------------------------------------------------------


@pytest.fixture
def products_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is to do."""
    monkeypatch.setattr(base, "MANY_PIXELS", 0)
    monkeypatch.setattr(base, "MANY_MACS", 0)


@pytest.mark.usefixtures("products_always")
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_convolution_is_a_convolution(
    bias: bool, memory_format: torch.memory_format, batch: int
) -> None:
    layer, conv = Conv1x1(6, 4, bias), nn.Conv2d(6, 4, 1, bias=bias)
    conv.load_state_dict(layer.state_dict())
    x, gradient = torch.randn(batch, 6, 5, 3).to(memory_format=memory_format), torch.randn(batch, 4, 5, 3)
    found = []
    for module in (layer, conv):
        own = x.clone().requires_grad_()
        module(own).relu_().backward(gradient)
        found.append([own.grad, *(parameter.grad for parameter in module.parameters())])
    close(layer(x), conv(x))
    close(*found)


def test_a_pointwise_convolution_is_a_product_on_a_cpu_of_large_maps_alone() -> None:
    layer, large, small = Conv1x1(256, 128), torch.randn(1, 256, 32, 32), torch.randn(1, 256, 31, 32)

    def operators(x: Tensor) -> set[str]:
        with torch.no_grad(), torch.profiler.profile() as profile:
            layer(x)
        return {event.key for event in profile.key_averages()}

    assert "aten::baddbmm" in operators(large)
    assert "aten::convolution" in operators(small)
    with torch.autocast("cpu", torch.bfloat16):
        assert "aten::convolution" in operators(large)


@pytest.mark.usefixtures("products_always")
@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_convolution_has_derivatives_of_every_kind(bias: bool) -> None:
    layer, x = Conv1x1(3, 2, bias), torch.randn(2, 3, 4, 3, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def squared(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x) ** 2

    inputs = (x, *parameters)
    assert torch.autograd.gradcheck(squared, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(squared, inputs, fast_mode=True)

    def gradient(image: Tensor) -> Tensor:
        return torch.func.grad(lambda it: squared(it.unsqueeze(0), *parameters).sum())(image)

    images = x.detach()
    close(torch.func.vmap(gradient)(images), torch.stack([gradient(image) for image in images]))


@pytest.mark.usefixtures("products_always")
def test_an_activation_in_place_after_a_pointwise_convolution_copies_no_gradient() -> None:
    def trained(layer: nn.Module) -> int:
        memory = PeakMemory()
        memory.leave_out([x, gradient, *layer.parameters()])
        with memory:
            y = layer(x).relu_()
            y.backward(gradient)
        return memory.peak

    x, gradient = torch.randn(1, 64, 4, 3, requires_grad=True), torch.randn(1, 64, 4, 3)
    assert trained(Conv1x1(64, 64, bias=False)) == trained(nn.Conv2d(64, 64, 1, bias=False))


@pytest.mark.usefixtures("products_always")
def test_a_traced_pointwise_convolution_is_one_that_other_tools_know() -> None:
    layer, x = Conv1x1(6, 4), torch.randn(1, 6, 4, 3)
    graph = str(torch.jit.trace(layer, x).inlined_graph)
    assert "aten::_convolution" in graph
    assert "aten::baddbmm" not in graph
    close(torch.fx.symbolic_trace(layer)(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_lengths_are_those_of_the_columns_in_pieces_and_in_one(dtype: torch.dtype) -> None:
    x = 300 * torch.randn(2, 40, 9000, dtype=torch.float64).to(dtype)
    expected = torch.linalg.vector_norm(x.double(), dim=1, keepdim=True)
    for found in (lengths(x), lengths(x.requires_grad_())):
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)


def test_one_criss_cross_reaches_exactly_the_row_and_the_column() -> None:
    assert torch.equal(influence(awake("ccnet", recurrence=1), 3, 4), cross(3, 4))


def test_two_criss_crosses_reach_every_pixel() -> None:
    assert influence(awake("ccnet", recurrence=2), 3, 4).all()


def test_a2_is_its_factorised_attention_from_every_pixel_to_every_pixel(x: Tensor) -> None:
    block = awake("a2", c_m=3, c_n=5)
    gather = block.gather(x).flatten(2).softmax(2)  # (B, c_n, n)
    distribute = block.distribute(x).flatten(2).softmax(1)  # (B, c_n, n)
    weights = gather.mT @ distribute  # (B, n, n): what a pixel (row) gives to a pixel (column)
    close(weights.sum(1), torch.ones(2, 20))
    context = (block.feature(x).flatten(2) @ weights).reshape(2, 3, 4, 5)
    close(block(x), x + block.out(context))


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_fused_self_attention_equals_the_explicit_one(heads: int, scale: bool, x: Tensor) -> None:
    explicit = awake("self-attn", heads=heads, scale=scale, impl="math")
    fused = awake("self-attn", heads=heads, scale=scale, impl="sdpa")
    fused.load_state_dict(explicit.state_dict())
    (output, gradient), (fused_output, fused_gradient) = (
        output_and_gradient(block, x) for block in (explicit, fused)
    )
    close(fused_output, output)
    close(fused_gradient, gradient)


@pytest.mark.parametrize("sub_sample", [False, True])
def test_non_local_concat_equals_the_tensor_of_all_pairs(sub_sample: bool, x: Tensor) -> None:
    block = awake("non-local", mode="concat", sub_sample=sub_sample)

    def naive(x: Tensor) -> Tensor:
        key, value = block.key(x), block.value(x)
        if sub_sample:
            key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        query, key, value = block.query(x).flatten(2), key.flatten(2), value.flatten(2)
        n, m = query.shape[2], key.shape[2]
        pairs = torch.cat((query[..., None].expand(-1, -1, -1, m), key[:, :, None].expand(-1, -1, n, -1)), 1)
        weights = block.pair(pairs).relu().squeeze(1) / m  # (B, n, m) of (B, 2C', n, m)
        return x + block.out((value @ weights.mT).reshape(2, 4, 4, 5))

    (output, gradient), (naive_output, naive_gradient) = (
        output_and_gradient(function, x) for function in (block, naive)
    )
    close(output, naive_output)
    close(gradient, naive_gradient)


# --- Table 3 of the Hamburger paper, at 1 x 512 x 128 x 128 -----------------------------------


TABLE_3 = [  # block, options, parameters, GMACs of the code that the paper's table was made with
    ("self-attn", {}, 1_050_624, "292.058"),
    ("self-attn", {"impl": "sdpa"}, 1_050_624, "292.058"),
    ("a2", {}, 1_050_624, "25.770"),
    ("ham-cd", {}, 525_824, "16.175"),
    ("ham-nmf", {}, 525_824, "17.543"),
    ("ham-nmf", {"eval_steps": 7}, 525_824, "18.755"),
    ("ham-vq", {}, 525_824, "16.106"),
    ("light-ham", {}, 525_824, "18.755"),
    ("danet", {"convs": True}, 5_048_962, "245.887"),
    ("danet", {}, 328_322, "168.58"),
    ("emanet", {}, 525_824, "12.348"),
    ("ccnet", {}, 328_321, "15.569"),
    ("ham-nmf", {"version": "v2"}, None, "21.838"),
    ("non-local", {}, None, "146.03"),
    ("non-local", {"sub_sample": True}, None, "42.95"),
    ("non-local", {"mode": "gaussian"}, None, "210.45"),
    ("non-local", {"mode": "gaussian", "sub_sample": True}, None, "55.83"),
]


@pytest.mark.parametrize(("name", "options", "params", "gmacs"), TABLE_3)
def test_closed_forms_give_the_papers_table(
    name: str, options: dict[str, Any], params: int | None, gmacs: str
) -> None:
    with torch.device("meta"):
        block = create(name, 512, **options).eval()
    digits = len(gmacs.partition(".")[2])
    macs = block.macs(128, 128) + block.spared_macs(128, 128)
    assert f"{macs / 1e9:.{digits}f}" == gmacs
    assert block.param_count() == sum(parameter.numel() for parameter in block.parameters())
    assert params in (None, block.param_count())
