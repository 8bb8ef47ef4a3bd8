"""Selective state-space scans of the image in four directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blocks.base import ChannelNorm, ContextBlock, Conv1x1, require_positive, wide_precision
from blocks.registry import ExportLimit, Paper, register

VMAMBA = Paper(
    title="VMamba: Visual State Space Model",
    authors="Yue Liu, Yunjie Tian, Yuzhong Zhao, Hongtian Yu, Lingxi Xie, Yaowei Wang, Qixiang Ye, "
    "Jianbin Jiao, Yunfan Liu",
    year=2024,
    venue="NeurIPS",
    url="https://arxiv.org/abs/2401.10166",
    bibtex="""@inproceedings{liu2024vmamba,
  title     = {{VM}amba: Visual State Space Model},
  author    = {Liu, Yue and Tian, Yunjie and Zhao, Yuzhong and Yu, Hongtian and Xie, Lingxi and Wang, Yaowei and Ye, Qixiang and Jiao, Jianbin and Liu, Yunfan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}""",
)
DIRECTIONS = 4
PIECE = 1024  # state values a channel that are held at once, at least: pixels of a piece x size of the state
MOST_PIECES = 16  # longer sequences have longer pieces
SLOWEST, FASTEST = 1e-3, 1e-1  # step sizes at the start, as in Mamba


def in_directions(maps: Tensor) -> Tensor:
    """Four maps (B, 4, c, H, W) -> their sequences (B, 4, c, N): along rows, columns, and both from the end."""
    rows, columns, rows_back, columns_back = maps.unbind(1)
    along = [rows.flatten(2), columns.mT.flatten(2)]
    back = [rows_back.flatten(2).flip(-1), columns_back.mT.flatten(2).flip(-1)]
    return torch.stack(along + back, dim=1)


def from_directions(sequences: Tensor, height: int, width: int) -> Tensor:
    """The sum of four sequences (B, 4, c, N), every pixel back in its place: (B, c, H, W)."""
    rows, columns, rows_back, columns_back = sequences.unbind(1)
    by_rows = (rows + rows_back.flip(-1)).unflatten(-1, (height, width))
    by_columns = (columns + columns_back.flip(-1)).unflatten(-1, (width, height))
    return by_rows + by_columns.mT


def scan(decay: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
    """All h_t = decay_t h_(t-1) + drive_t along the last dimension, from h_0 = 0, in log2(T) steps.

    Returns:
        The products of the decays up to every t, and h. Only products of decays, never quotients:
        nothing can overflow where the recurrence does not.
    """
    step = 1
    while step < drive.shape[-1]:
        late, early = decay[..., step:], drive[..., :-step]
        drive = torch.cat((drive[..., :step], torch.addcmul(drive[..., step:], late, early)), dim=-1)
        decay = torch.cat((decay[..., :step], late * decay[..., :-step]), dim=-1)
        step *= 2
    return decay, drive


class Driven(NamedTuple):
    """What drives the recurrences: input and, before its softplus, the step size (B, 4, E, T), and the
    paper's B and C (B, 4, S, T)."""

    u: Tensor
    step: Tensor
    into: Tensor
    out_of: Tensor

    def pieces(self, length: int) -> Iterator[Driven]:
        return map(Driven, *(each.split(length, dim=-1) for each in self))


def scan_piece(driven: Driven, rates: Tensor, skip: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs (B, 4, E, T) of a piece of the sequences, and the state behind it.

    Args:
        driven: of the T pixels of the piece, in any precision.
        rates: the paper's A, (4, E, S), negative, in the precision of the scan.
        skip: the paper's D, (4, E).
        state: h before the piece, (B, 4, E, S).
    """
    u, step, into, out_of = (each.to(rates.dtype) for each in driven)
    delta = F.softplus(step)
    decay = torch.exp(delta.unsqueeze(3) * rates.unsqueeze(-1))  # (B, 4, E, S, T)
    drive = (delta * u).unsqueeze(3) * into.unsqueeze(2)
    decays, states = scan(decay, drive)
    states = torch.addcmul(states, decays, state.unsqueeze(-1))
    y = (states * out_of.unsqueeze(2)).sum(3) + skip.unsqueeze(-1) * u
    return y, states[..., -1].clone()  # a view would keep all states alive


def selective_scan(driven: Driven, rates: Tensor, skip: Tensor, *, save_memory: bool = False) -> Tensor:
    """y_t = C_t h_t + D u_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, piece after piece.

    Args:
        driven, rates, skip: as in `scan_piece`, of whole sequences.
        save_memory: compute the states of a piece again in the backward instead of keeping them.
    """
    run = scan_piece
    if save_memory:
        run = partial(checkpoint, scan_piece, use_reentrant=False, preserve_rng_state=False)
    state = rates.new_zeros(*driven.u.shape[:3], rates.shape[-1])
    outputs = []
    pixels = driven.u.shape[-1]
    held = pixels // MOST_PIECES if pixels > PIECE * MOST_PIECES else PIECE
    for piece in driven.pieces(max(held // rates.shape[-1], 1)):
        y, state = run(piece, rates, skip, state)
        outputs.append(y)
    return torch.cat(outputs, dim=-1)


@register(
    "ssm",
    title="Selective state-space scan",
    family="token mixing",
    summary="recurrences whose steps depend on the input run over the image in four directions (SS2D)",
    complexity="O(n d^2 + n d s log n)",
    formula="Y = X + W_o LN(sum over 4 directions of C_t h_t + D u_t);  h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t, u = SiLU(DWC(W_i X)), delta = softplus(W_d W_r u + b), B = W_b u, C = W_c u",
    paper=VMAMBA,
    limits=(
        ExportLimit("torch.export", "the number of pixels sets the steps of the scan", sizes=True),
        ExportLimit("ONNX", "the number of pixels sets the steps of the scan", sizes=True),
    ),
)
class SelectiveScan(ContextBlock):
    """SS2D of VMamba: Mamba's selective scan (Gu and Dao 2023) along rows and columns, both ways.

    The layer of some of VMamba's released models, without the gate that they dropped ("v05_noz"): states of
    size one, doubled width, no biases but that of the step size. They scan in a CUDA kernel; here it
    is a parallel scan in plain PyTorch, log2 steps deep, within pieces of the image that hand the
    state on, in float32 at least. So its time says what PyTorch does of it, not what the
    kernel can. In training the states of a piece are computed twice, and never all kept.

    MACs count convolutions and matrix products: the projections. The scan is element-wise and
    counts nothing.

    Args:
        channels: C of the input.
        state: size S of the state of a channel.
        expand: width E of the scans, in multiples of C.
    """

    def __init__(self, channels: int, *, state: int = 1, expand: int = 2) -> None:
        super().__init__(channels)
        require_positive(state=state, expand=expand)
        self.state, self.inner, self.rank = state, expand * channels, math.ceil(channels / 16)
        inner, k = self.inner, DIRECTIONS
        self.into = Conv1x1(channels, inner, bias=False)
        self.local = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.select = Conv1x1(inner, k * (self.rank + 2 * state), bias=False)  # of each pixel: delta, B, C
        self.step = nn.Conv2d(k * self.rank, k * inner, 1, groups=k)
        self.log_rates = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(k, inner, 1))  # log(-A)
        self.skip = nn.Parameter(torch.ones(k, inner))  # D
        self.norm = ChannelNorm(inner)
        self.out = Conv1x1(inner, channels, bias=False)
        nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
        # softplus(bias) is spread evenly over the orders of magnitude
        steps = torch.empty(k * inner).uniform_(math.log(SLOWEST), math.log(FASTEST)).exp()
        self.step.bias = nn.Parameter(steps.expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.local(self.into(x)))
        return x + self.out(self.norm(self.scanned(u)).to(u.dtype))

    def scanned(self, u: Tensor) -> Tensor:
        """The sum of the four scans: (B, E, H, W) -> the same, in float32 at least."""
        height, width = u.shape[2:]
        parts = self.select(u).unflatten(1, (DIRECTIONS, -1))
        low, into, out_of = parts.split([self.rank, self.state, self.state], dim=2)
        driven = Driven(
            in_directions(u.unsqueeze(1).expand(-1, DIRECTIONS, -1, -1, -1)),
            in_directions(self.step(low.flatten(1, 2)).unflatten(1, (DIRECTIONS, -1))),
            in_directions(into),
            in_directions(out_of),
        )
        with wide_precision(u) as dtype:
            rates, skip = -self.log_rates.to(dtype).exp(), self.skip.to(dtype)
            y = selective_scan(driven, rates, skip, save_memory=self.training and torch.is_grad_enabled())
            return from_directions(y, height, width)

    def macs(self, height: int, width: int) -> int:
        c, inner, k, n = self.channels, self.inner, DIRECTIONS, height * width
        project = 2 * c * inner + 9 * inner  # in and out, and the depthwise convolution
        select = k * inner * (self.rank + 2 * self.state) + k * self.rank * inner
        return n * (project + select)

    def param_count(self) -> int:
        c, inner, k = self.channels, self.inner, DIRECTIONS
        project = 2 * c * inner + 9 * inner
        select = k * inner * (self.rank + 2 * self.state) + k * inner * (self.rank + 1)
        return project + select + k * inner * (self.state + 1) + 2 * inner
