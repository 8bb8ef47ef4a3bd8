"""Official layers that see a map (B, C, H, W), with the weights of ours."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import Conv1x1
from tests.bench.official.comparison import Theirs, accept_one_value, given, put


def a2(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.DoubleAttentionLayer(ours.channels, ours.c_m, ours.c_n, reconstruct=True)
    given(theirs, ours.feature, ours.gather, ours.distribute, ours.out)
    return Theirs(theirs, lambda x: x + theirs(x))


def ccnet(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.CrissCrossAttention(ours.channels)
    put(theirs, query_conv=ours.query, key_conv=ours.key, value_conv=ours.value)
    theirs.gamma.data.copy_(ours.gamma.data)

    def forward(x: Tensor) -> Tensor:
        for _ in range(ours.recurrence):
            x = theirs(x)
        return x

    return Theirs(theirs, forward)


def danet(ours: Any, official: ModuleType, side: int) -> Theirs:
    position, channel = official.PAM_Module(ours.channels), official.CAM_Module(ours.channels)
    put(position, query_conv=ours.query, key_conv=ours.key, value_conv=ours.value)
    position.gamma.data.copy_(ours.position_gate.data)
    channel.gamma.data.copy_(ours.channel_gate.data)
    both = nn.ModuleList([position, channel])
    return Theirs(both, lambda x: position(x) + channel(x), surplus=1)


def dnl(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.DisentangledNonLocal2d(ours.channels, norm_cfg={"type": "BN"}, temperature=0.05)
    given(theirs, ours.value, ours.out, ours.query, ours.key, ours.mask)
    return Theirs(theirs, theirs)


def efficient(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.EfficientAttention(ours.channels, ours.keys, ours.heads, ours.values)
    put(theirs, keys=ours.key, queries=ours.query, values=ours.value, reprojection=ours.out)
    return Theirs(theirs, theirs)


def emanet(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.EMAU(ours.channels, ours.rank, ours.steps)
    put(theirs, conv1=ours.project, conv2=ours.out)
    theirs.mu.copy_(ours.bases)
    return Theirs(theirs, lambda x: theirs(x)[0])


def external(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.External_attention(ours.channels)
    theirs.linear_1.weight = nn.Parameter(ours.values.weight.detach().flatten(2).clone())
    theirs.linear_0.weight = nn.Parameter(ours.keys.weight.detach().flatten(2).clone())
    put(theirs, conv1=ours.project, conv2=ours.out)
    return Theirs(theirs, theirs)


def gcnet(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.ContextBlock(ours.channels, 1 / 4)
    given(theirs, ours.mask, ours.transform)
    return Theirs(theirs, theirs)


def non_local(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.NONLocalBlock2D(ours.channels, sub_sample=ours.sub_sample)
    given(theirs, ours.value, ours.out, ours.query, ours.key)
    return Theirs(theirs, theirs)


def mmcv_non_local(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.NonLocal2d(ours.channels, norm_cfg={"type": "BN"})
    given(theirs, ours.value, ours.out, ours.query, ours.key)
    return Theirs(theirs, theirs)


def sagan(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.Attention(ours.channels, which_conv=nn.Conv2d)
    put(theirs, theta=ours.query, phi=ours.key, g=ours.value, o=ours.out)
    theirs.gamma.data.copy_(ours.gate.data.squeeze())
    return Theirs(theirs, theirs)


def self_attention(ours: Any, official: ModuleType, side: int) -> Theirs:
    c = ours.channels
    downsample = {"query_downsample": None, "key_downsample": None, "share_key_query": False}
    convs = {"key_query_num_convs": 1, "value_out_num_convs": 1, "key_query_norm": False}
    layers: dict[str, Any] = {"conv_cfg": None, "norm_cfg": None, "act_cfg": None}
    theirs = official.SelfAttentionBlock(
        c, c, c, c, **downsample, **convs, value_out_norm=False, matmul_norm=False, with_out=True, **layers
    )
    given(theirs, ours.key, ours.query, ours.value, ours.out)
    return Theirs(theirs, lambda x: x + theirs(x, x))


# mmsegmentation's heads, without what surrounds the block

LAYERS: dict[str, Any] = {"conv_cfg": None, "norm_cfg": {"type": "BN"}, "act_cfg": {"type": "ReLU"}}


def head(cls: Any, channels: int, **options: Any) -> Any:
    """A head without its classifier."""
    theirs = cls(
        in_channels=channels, channels=channels, num_classes=2, norm_cfg=LAYERS["norm_cfg"], **options
    )
    theirs.conv_seg, theirs.dropout = nn.Identity(), None
    return theirs


def ann(ours: Any, official: ModuleType, side: int) -> Theirs:
    c = ours.channels
    theirs = official.APNB(c, ours.width, c, (1,), (1, 3, 6, 8), **LAYERS)
    given(theirs, ours.query, ours.value, ours.out, ours.fuse)
    return Theirs(theirs, theirs)


def apc(ours: Any, official: ModuleType, side: int) -> Theirs:
    modules = nn.ModuleList()
    for level in ours.levels:
        theirs = official.ACM(level.side, True, ours.channels, ours.width, **LAYERS)
        order = level.parts, level.local, level.image, level.affinity, level.context, level.out
        modules.append(given(theirs, *order))
        accept_one_value(theirs.global_info, *([theirs.pooled_redu_conv] if level.side == 1 else []))
    return fused(modules, ours)


def dm(ours: Any, official: ModuleType, side: int) -> Theirs:
    modules = nn.ModuleList()
    for each in ours.filters:
        theirs = official.DCM(each.side, False, ours.channels, ours.width, **LAYERS)
        modules.append(given(theirs, each.kernels, each.reduce, each.norm))
    return fused(modules, ours)


def fused(modules: nn.ModuleList, ours: Any) -> Theirs:
    """Their modules behind one another, and the fusion of ours, which they have in another form."""
    conv, norm = ours.out
    out = nn.Sequential(
        Conv1x1(conv.in_channels, conv.out_channels, bias=False), nn.BatchNorm2d(norm.num_features)
    )
    given(out, ours.out)
    return Theirs(
        nn.ModuleList([modules, out]), lambda x: x + out(torch.cat([each(x) for each in modules], dim=1))
    )


def aspp(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = head(official.ASPPHead, ours.channels)
    given(theirs, ours.image, ours.branches, ours.fuse)
    accept_one_value(theirs.image_pool[1])
    return Theirs(theirs, lambda x: theirs([x]))


def isa(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = head(official.ISAHead, ours.channels, isa_channels=ours.width)
    theirs.in_conv = nn.Identity()
    order = [each for part in (ours.far, ours.near) for each in (part.key, part.query, part.value, part.out)]
    given(theirs, *order, ours.fuse)
    return Theirs(theirs, lambda x: theirs([x]))


def ocr(ours: Any, official: ModuleType, side: int) -> Theirs:
    attend = official.ObjectAttentionBlock(ours.channels, ours.width, 1, **LAYERS)
    given(attend, ours.key, ours.query, ours.value, ours.out, ours.fuse)
    classify = given(Conv1x1(ours.channels, ours.regions), ours.classify)
    gather = official.SpatialGatherModule(1)
    both = nn.ModuleList([attend, classify])
    return Theirs(both, lambda x: attend(x, gather(x, classify(x))))


def psp(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = head(official.PSPHead, ours.channels)
    given(theirs, ours.levels, ours.fuse)
    accept_one_value(theirs.psp_modules[0][1])
    return Theirs(theirs, lambda x: theirs([x]))


def se(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.SELayer(ours.channels, act_cfg=({"type": "ReLU"}, {"type": "Sigmoid"}))
    given(theirs, ours.gate)
    return Theirs(theirs, theirs)
