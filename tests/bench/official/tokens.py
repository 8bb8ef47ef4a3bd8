"""Official layers that see tokens (B, N, C), with the weights of ours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.bench.official.comparison import Forward, Theirs, linear, put, zero


def on_tokens(forward: Forward) -> Forward:
    """A map is seen as tokens (B, N, C) without a copy, and turned back.

    The form that is kinder to them: with tokens copied into one piece first, the official layers of linear-attn,
    linformer, performer, agent, pooled-attn, nystrom and fft took 0.99 to 1.19 times as long at 64 x 64.
    """
    return lambda x: forward(x.flatten(2).mT).mT.reshape(x.shape)


def agent(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.AgentAttention(
        ours.channels, side**2, ours.heads, qkv_bias=True, agent_num=ours.agents**2
    )
    for name, parameter in theirs.named_parameters():
        if name.startswith(("an_", "na_", "ah_", "aw_", "ha_", "wa_")):
            nn.init.zeros_(parameter)
    put(theirs, q=linear(ours.query), kv=linear(ours.key, ours.value), proj=linear(ours.out), dwc=ours.local)
    return Theirs(theirs, on_tokens(lambda x: x + theirs(x, side, side)))


def cosformer(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.CosformerAttention(ours.channels, ours.heads)
    order = {"q_proj": ours.query, "k_proj": ours.key, "v_proj": ours.value, "out_proj": ours.out}
    put(theirs, **{name: linear(layer) for name, layer in order.items()})
    return Theirs(
        theirs, lambda x: x + theirs(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).reshape(x.shape)
    )


def fft(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.GlobalFilter(ours.channels, side, side // 2 + 1)
    theirs.complex_weight.data.copy_(ours.filter.data.permute(2, 3, 0, 1))
    project = linear(ours.out)
    return Theirs(nn.ModuleList([theirs, project]), on_tokens(lambda x: x + project(theirs(x))))


def linear_attention(ours: Any, official: ModuleType, side: int) -> Theirs:
    inner = official.LinearAttention(ours.head_dim)
    theirs = official.AttentionLayer(inner, ours.channels, ours.heads)
    order = {
        "query_projection": ours.query,
        "key_projection": ours.key,
        "value_projection": ours.value,
        "out_projection": ours.out,
    }
    put(theirs, **{name: linear(layer) for name, layer in order.items()})
    n = side**2
    mask, lengths = official.FullMask(n), official.LengthMask(torch.tensor([n]), n)
    return Theirs(theirs, on_tokens(lambda x: x + theirs(x, x, x, mask, lengths, lengths)))


def linformer(ours: Any, official: ModuleType, side: int) -> Theirs:
    n = side**2
    tokens = min(ours.tokens, n)
    theirs = official.LinformerSelfAttention(
        ours.channels, n, k=tokens, heads=ours.heads, dim_head=ours.head_dim
    )
    zero(ours.query, ours.key, ours.value)
    for name, layer in {"to_q": ours.query, "to_k": ours.key, "to_v": ours.value}.items():
        getattr(theirs, name).weight.data.copy_(layer.weight.data.flatten(1))
    put(theirs, to_out=linear(ours.out))
    means = nn.functional.adaptive_avg_pool1d(torch.eye(n), tokens)  # row n: its share in each segment
    theirs.proj_k.data.copy_(means)
    theirs.proj_v.data.copy_(means)
    return Theirs(theirs, on_tokens(lambda x: x + theirs(x)))


def mhsa(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.MultiheadAttention(ours.channels, ours.heads, batch_first=True)
    joined = linear(ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data.copy_(joined.weight.data)
    theirs.in_proj_bias.data.copy_(joined.bias.data)
    theirs.out_proj.load_state_dict(linear(ours.out).state_dict())
    return Theirs(theirs, on_tokens(lambda x: x + theirs(x, x, x, need_weights=False)[0]))


def nystrom(ours: Any, official: ModuleType, side: int) -> Theirs:
    n, d, h = side**2, ours.head_dim, ours.heads
    sizes = {"head_dim": d, "num_head": h, "num_landmarks": ours.landmarks, "seq_len": n}
    exact = {"inv_coeff_init_option": "exact", "inv_init_coeff_option": "exact"}
    theirs = official.NystromAttention(sizes | exact)
    project, out = linear(ours.query, ours.key, ours.value), linear(ours.out)
    mask = torch.ones(1, n)

    def forward(x: Tensor) -> Tensor:
        q, k, v = project(x).unflatten(-1, (3, h, d)).permute(2, 0, 3, 1, 4)
        y: Tensor = x + out(theirs(q, k, v, mask).transpose(1, 2).flatten(2))
        return y

    return Theirs(nn.ModuleList([theirs, project, out]), on_tokens(forward))


def performer(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.SelfAttention(
        ours.channels, heads=ours.heads, dim_head=ours.head_dim, nb_features=ours.features, qkv_bias=True
    )
    theirs.fast_attention.projection_matrix.copy_(ours.directions)
    order = {"to_q": ours.query, "to_k": ours.key, "to_v": ours.value, "to_out": ours.out}
    put(theirs, **{name: linear(layer) for name, layer in order.items()})
    return Theirs(theirs, on_tokens(lambda x: x + theirs(x)))


@contextlib.contextmanager
def no_floor(ours: Any, theirs: Any) -> Iterator[None]:
    """Nothing is added to the features."""
    kernel = type(theirs.fast_attention).forward.__globals__["softmax_kernel"]
    with (
        mock.patch.object(sys.modules[type(ours).__module__], "FLOOR", 0.0),
        mock.patch.dict(kernel.__kwdefaults__, {"eps": 0.0}),
    ):
        yield


def pooled_attention(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.Attention(ours.channels, ours.heads, qkv_bias=True, linear=True)
    put(theirs, q=linear(ours.query), kv=linear(ours.key, ours.value), proj=linear(ours.out))
    put(theirs, sr=ours.reduce, norm=ours.norm)
    return Theirs(theirs, on_tokens(lambda x: x + theirs(x, side, side)))


def ssm(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.SS2D(
        d_model=ours.channels,
        d_state=ours.state,
        ssm_ratio=ours.inner / ours.channels,
        conv_bias=False,
        forward_type="v05_noz",
        channel_first=True,
    )
    shared = {
        "in_proj.weight": ours.into.weight,
        "conv2d.weight": ours.local.weight,
        "x_proj_weight": ours.select.weight,
        "dt_projs_weight": ours.step.weight,
        "dt_projs_bias": ours.step.bias,
        "A_logs": ours.log_rates,
        "Ds": ours.skip,
        "out_norm.weight": ours.norm.weight,
        "out_norm.bias": ours.norm.bias,
        "out_proj.weight": ours.out.weight,
    }
    state = theirs.state_dict()
    assert state.keys() == shared.keys()
    theirs.load_state_dict(
        {name: value.detach().reshape(state[name].shape) for name, value in shared.items()}
    )
    return Theirs(theirs, lambda x: x + theirs(x))
