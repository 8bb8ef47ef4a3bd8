"""The Visual Attention Network: maps, names and numbers of parameters as in its paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tasks.van import SIZES, STRIDES_OS8, VAN, Block, DropPath, LargeKernelAttention


def parameters(size: str) -> int:
    """On paper: per stage the patch convolution, its normalisation, the blocks, the last normalisation."""
    total, before = 0, 3
    for index, (c, depth, ratio) in enumerate(
        zip(SIZES[size].dims, SIZES[size].depths, (8, 8, 4, 4), strict=True)
    ):
        kernel, hidden = (7 if index == 0 else 3), ratio * c
        patch = before * c * kernel**2 + c + 2 * c
        attention = 3 * (c * c + c) + (25 + 1) * c + (49 + 1) * c
        mlp = 2 * c * hidden + hidden + c + (9 + 1) * hidden
        block = attention + mlp + 4 * c + 2 * c  # two normalisations, two scales
        total += patch + depth * block + 2 * c
        before = c
    return total


@pytest.mark.parametrize("size", SIZES)
def test_the_parameters_are_those_on_paper(size: str) -> None:
    with torch.device("meta"):
        model = VAN(size)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(size)


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ((4, 2, 2, 2), [(16, 24), (8, 12), (4, 6), (2, 3)]),
        (STRIDES_OS8, [(16, 24), (8, 12), (8, 12), (8, 12)]),
    ],
)
def test_each_stage_gives_a_map(strides: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    with torch.device("meta"):
        maps = VAN("tiny", strides)(torch.empty(2, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [
        (2, dim, *sides) for dim, sides in zip(SIZES["tiny"].dims, expected, strict=True)
    ]


def test_parameters_are_named_as_in_the_authors_checkpoints() -> None:
    with torch.device("meta"):
        names = VAN("tiny").state_dict().keys()
    for name in (
        "patch_embed1.proj.weight",
        "patch_embed4.norm.running_mean",
        "block1.0.norm1.weight",
        "block2.2.attn.proj_1.weight",
        "block3.4.attn.spatial_gating_unit.conv0.weight",
        "block3.4.attn.spatial_gating_unit.conv_spatial.bias",
        "block3.4.attn.spatial_gating_unit.conv1.weight",
        "block4.1.attn.proj_2.bias",
        "block4.1.layer_scale_1",
        "block4.1.mlp.fc1.weight",
        "block4.1.mlp.dwconv.dwconv.weight",
        "block4.1.mlp.fc2.bias",
        "norm4.weight",
    ):
        assert name in names


def test_attention_looks_as_far_as_its_kernels_reach() -> None:
    """5x5, then 7x7 with dilation 3: 2 + 9 pixels to each side."""
    attention = LargeKernelAttention(1)
    x = torch.zeros(1, 1, 41, 41, requires_grad=True)
    ones = torch.ones_like(x)
    y = attention.conv1(attention.conv_spatial(attention.conv0(x + 0 * ones)))
    (gradient,) = torch.autograd.grad(y[0, 0, 20, 20], x)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (20 - 11, 20 + 11)


def test_a_block_with_closed_scales_is_the_identity() -> None:
    block = Block(8, 4, drop_path=0.0)
    torch.nn.init.zeros_(block.layer_scale_1)
    torch.nn.init.zeros_(block.layer_scale_2)
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(block(x), x)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y: Tensor = drop(torch.ones(4000, 2, 3, 3))
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert bool((y == y[:, :1, :1, :1]).all())
    assert float(y.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(y), y)


def test_it_learns_everywhere() -> None:
    torch.manual_seed(0)
    model = VAN("tiny")
    sum(each.square().mean() for each in model(torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
