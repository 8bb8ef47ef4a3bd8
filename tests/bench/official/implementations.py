"""Which public implementation each block is compared with, and how that gets the weights of ours.

Each was read: where ours means to compute the same, both must agree before either is timed. A note says
what was set or replaced so that the official code runs on a CPU and computes the same function; nothing
of it makes that code slower. What it adds to the input is added in all of them.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from packaging.version import Version
from torch import Tensor, nn

import blocks
from blocks.decomposition import Decomposition
from blocks.pooling import PooledNorm
from ctxbench.gate import wake
from ctxbench.spec import parse_blocks
from tests.bench.official.sources import Official, Package, Repository, Stubs

SEED = 1
RANK = 64
BLOCK, CORE, CORE_BFLOAT16 = 1.02, 0.90, 0.35  # the largest ratio of times that is meant


Forward = Callable[[Tensor], Tensor]


def on_tokens(forward: Forward) -> Forward:
    """A map is seen as tokens (B, N, C) without a copy, as transformers on images do, and turned back."""
    return lambda x: forward(x.flatten(2).mT).mT.reshape(x.shape)


@dataclass(frozen=True)
class Theirs:
    """An official layer with the weights of ours.

    Attributes:
        module: owner of its parameters.
        forward: what is timed: from a map to a map, what it adds to the input included.
        surplus: how often its output holds the input more than ours does; it is taken away to compare them.
    """

    module: nn.Module
    forward: Forward
    surplus: int = 0


@contextlib.contextmanager
def as_it_is(ours: nn.Module, theirs: nn.Module) -> Iterator[None]:
    """Both compute the same already."""
    yield


@dataclass(frozen=True)
class Comparison:
    """One of our blocks, or the core of one, and the implementation it is compared with.

    Attributes:
        spec: the block with its options; `{side}` stands for the input's side.
        build: gives the official layer the weights of ours; where the official one lacks a bias, ours gets zero.
        notes: what was set or replaced.
        part: which part of a block is compared; empty: the whole.
        create: makes ours, from channels and side.
        same: switches what is random to the same draws, while both are compared.
        dtype: of ours; theirs runs in float32.
        limit: the largest ratio of times that is meant.
        without: modes that are left out, and why.
        patterns: the input is a mixture of few random patterns under noise; 0: noise alone.
        positive: the input is not negative.
    """

    spec: str
    official: Official
    build: Callable[[Any, ModuleType, int], Theirs]
    notes: tuple[str, ...] = ()
    part: str = ""
    create: Callable[[int, int], nn.Module] | None = None
    same: Callable[[Any, Any], contextlib.AbstractContextManager[None]] = as_it_is
    dtype: str = "float32"
    limit: float = BLOCK
    without: Mapping[str, str] = field(default_factory=dict)
    patterns: int = 0
    positive: bool = False

    @property
    def block(self) -> str:
        """The name in the catalogue."""
        return self.spec.partition("[")[0]

    def label(self, side: int | str) -> str:
        return f"{self.spec.format(side=side)}{f' {self.part}' if self.part else ''}"

    def ours(self, channels: int, side: int) -> nn.Module:
        """Our block with open gates and arbitrary weights."""
        torch.manual_seed(SEED)
        if self.create is not None:
            return self.create(channels, side)
        (spec,) = parse_blocks(self.spec.format(side=side))
        return wake(blocks.create(spec.name, channels, **dict(spec.options)))


def given(theirs: nn.Module, *ours: nn.Module) -> nn.Module:
    """Their module with the weights of our layers, which come in the same order; a 1x1 convolution fits a linear layer."""

    def layers(*modules: nn.Module) -> list[nn.Module]:
        inner = [each for module in modules for each in module.modules()]
        return [each for each in inner if each._parameters or each._buffers]

    for target, source in zip(layers(theirs), layers(*ours), strict=True):
        state = target.state_dict()
        weights = source.state_dict()
        if state.keys() - weights.keys() or any(key != "bias" for key in weights.keys() - state.keys()):
            raise ValueError(f"{type(target).__name__} has other weights than {type(source).__name__}")
        if "bias" in weights.keys() - state.keys():
            zero(source)
        target.load_state_dict({key: weights[key].reshape(state[key].shape) for key in state})
    return theirs


@torch.no_grad()
def zero(*ours: nn.Module) -> None:
    """Set biases to zero that the official layers lack."""
    for layer in ours:
        if isinstance(layer.bias, nn.Parameter):
            layer.bias.zero_()


def linear(*ours: nn.Module) -> nn.Linear:
    """Our 1x1 convolutions side by side, as a linear layer of tokens."""
    weight = torch.cat([layer.get_parameter("weight").detach().flatten(1) for layer in ours])
    theirs = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        theirs.weight.copy_(weight)
        theirs.bias.copy_(torch.cat([layer.get_parameter("bias") for layer in ours]))
    return theirs


def put(theirs: nn.Module, **layers: nn.Module) -> None:
    """Replace their layers by ones that have our weights."""
    for name, layer in layers.items():
        old = getattr(theirs, name)
        assert sorted(old.state_dict()) == sorted(layer.state_dict())
        old.load_state_dict(layer.state_dict())


def accept_one_value(*modules: Any) -> None:
    """Let the normalisation of mmcv's ConvModules take one value per channel."""
    for module in modules:
        assert type(module.norm) is nn.BatchNorm2d
        module.norm.__class__ = PooledNorm


# Hamburger


NORM_STUBS: Stubs = {
    "settings": {"BN_MOM": 3e-4, "STRIDE": 8, "EM_MOM": 0.9},
    "sync_bn.nn.modules": {"SynchronizedBatchNorm2d": nn.BatchNorm2d},
    "bn_lib.nn.modules": {"SynchronizedBatchNorm2d": nn.BatchNorm2d},
    "sync_batchnorm": {"SynchronizedBatchNorm2d": nn.BatchNorm2d},
}
TIMM_STUBS: Stubs = {
    "timm.data": {"IMAGENET_DEFAULT_MEAN": None, "IMAGENET_DEFAULT_STD": None},
    "timm.models.layers": {
        "DropPath": nn.Identity,
        "to_2tuple": lambda size: (size, size),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": lambda model: model},
    "timm.models.vision_transformer": {"_cfg": dict},
}
PATTERNS_NOTE = "the input is 16 random patterns, mixed, under noise: clusters of noise alone are arbitrary, and rounding moves them"
NORM_NOTE = "synchronised batch normalisation, whose package needs CUDA, is torch's BatchNorm2d"
CUDA_NOTE = "`.cuda()` leaves tensors on the CPU"
BASES_NOTE = "both start from our bases, and draw none"
ONE_NOTE = "one value per channel, which its normalisation refuses in training, is normalised by the running statistics"
TOKENS_NOTE = "sees the map as tokens (B, N, C), without a copy"
FUSION_NOTE = "its modules, fused by the same 1x1 convolution and residual as ours"

HAMBURGER = Repository(
    "https://github.com/Gsunshine/Enjoy-Hamburger", "d9b51f6f197486df68c6e059e396520680157c08", "GPL-3.0"
)
BURGER = Official(HAMBURGER, "seg/HamNet/hamburger/burger.py", "seg/HamNet", NORM_STUBS)
HAM = Official(HAMBURGER, "seg/HamNet/hamburger/ham.py", "seg/HamNet", NORM_STUBS)


def ham_options(ham: Any, kind: str) -> SimpleNamespace:
    """The settings of the official code that give what ours does."""
    return SimpleNamespace(
        HAM_TYPE=kind,
        MD_S=ham.heads,
        MD_D=ham.channels,
        MD_R=ham.rank,
        TRAIN_STEPS=ham.train_steps,
        EVAL_STEPS=ham.eval_steps,
        INV_T=getattr(ham, "inv_t", 1),
        BETA=getattr(ham, "ridge", None),
    )


@contextlib.contextmanager
def same_bases(ours: Any, theirs: Any) -> Iterator[None]:
    """Both start from our dictionary, frozen: neither draws one while they are compared or timed."""
    (ham,) = getattr(ours, "hams", [ours])
    (their_ham,) = [each for each in theirs.modules() if hasattr(each, "_build_bases")]

    def build_bases(images: int, *_: Any, **__: Any) -> Tensor:
        dtype = torch.float64 if ham.bases.dtype == torch.float64 else torch.float32
        return ham.bases.to(dtype).repeat(images, 1, 1)

    with (
        mock.patch.object(their_ham, "_build_bases", build_bases),
        mock.patch.object(ham, "dictionary", "frozen"),
    ):
        yield


def burger(kind: str, version: str, ours: Any, official: ModuleType, side: int) -> Theirs:
    options = ham_options(ours.hams[0], kind)
    with quiet():
        theirs = getattr(official, f"Hamburger{version}")(ours.channels, options)
    order = [ours.lower_bread, *([ours.cheese] if version != "V1" else []), ours.upper_bread]
    given(theirs, *order)
    return Theirs(theirs, theirs)


def core(kind: str, ours: Any, official: ModuleType, side: int) -> Theirs:
    with quiet():
        theirs = getattr(official, f"{kind}2D")(ham_options(ours, kind))
    return Theirs(theirs, theirs)


def make_core(kind: str, channels: int, side: int) -> nn.Module:
    """The decomposition of a hamburger alone, with the block's defaults."""
    burger: Any = blocks.create(f"ham-{kind.lower()}", channels, rank=min(RANK, channels))
    (ham,) = burger.hams
    assert isinstance(ham, Decomposition)
    return ham


def light_ham(ours: Any, official: ModuleType, side: int) -> Theirs:
    (ham,) = ours.hams
    options = {"MD_R": ham.rank, "train_steps": ham.train_steps, "eval_steps": ham.eval_steps}
    norm = {"type": "GN", "num_groups": ours.upper_bread[1].num_groups}
    theirs = official.Hamburger(ours.channels, options, norm)
    given(theirs, ours.lower_bread, ours.upper_bread)
    return Theirs(theirs, theirs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Their constructors print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


# Attention over maps


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
        nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False), nn.BatchNorm2d(norm.num_features)
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
    classify = given(nn.Conv2d(ours.channels, ours.regions, 1), ours.classify)
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


# Attention over tokens


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


# The manifest

MMSEG = Package(("mmsegmentation",), "Apache-2.0")
MMCV = Package(("mmcv", "mmcv-lite"), "Apache-2.0")
TORCH = Package(("torch",), "BSD-3-Clause")
NON_LOCAL = Official(
    Repository(
        "https://github.com/AlexHex7/Non-local_pytorch",
        "ec15789af4533448169f3dc36abe542badd34221",
        "Apache-2.0",
    ),
    "lib/non_local_embedded_gaussian.py",
    "lib",
)


def mmseg_head(name: str) -> Official:
    return Official(MMSEG, f"mmseg/models/decode_heads/{name}_head.py")


def hamburgers() -> list[Comparison]:
    """Whole hamburgers, and their decompositions alone."""
    found = []
    for kind in ("NMF", "CD", "VQ"):
        name = f"ham-{kind.lower()}"
        notes = (NORM_NOTE, CUDA_NOTE, BASES_NOTE)
        found.append(Comparison(name, BURGER, partial(burger, kind, "V1"), notes, same=same_bases))
        if kind == "NMF":
            v2 = f"{name}[version=v2]"
            found.append(Comparison(v2, BURGER, partial(burger, kind, "V2"), notes, same=same_bases))
        for dtype, limit in (("float32", CORE), ("bfloat16", CORE_BFLOAT16)):
            found.append(
                Comparison(
                    name,
                    HAM,
                    partial(core, kind),
                    (CUDA_NOTE, BASES_NOTE, PATTERNS_NOTE, *(("it runs in float32",) * (dtype != "float32"))),
                    part="core",
                    create=partial(make_core, kind),
                    same=same_bases,
                    dtype=dtype,
                    limit=limit,
                    patterns=16,
                    positive=kind == "NMF",
                )
            )
    return found


COMPARISONS: tuple[Comparison, ...] = (
    *hamburgers(),
    Comparison(
        "light-ham",
        mmseg_head("ham"),
        light_ham,
        (BASES_NOTE,),
        same=same_bases,
    ),
    Comparison("self-attn", Official(MMSEG, "mmseg/models/utils/self_attention_block.py"), self_attention),
    Comparison("non-local", NON_LOCAL, non_local),
    Comparison("non-local[sub_sample=True]", NON_LOCAL, non_local),
    Comparison(
        "non-local[scale=True]",
        Official(MMCV, "mmcv/cnn/bricks/non_local.py"),
        mmcv_non_local,
        ("its last convolution has no bias: ours is zero",),
    ),
    Comparison(
        "ccnet",
        Official(
            Repository(
                "https://github.com/speedinghzl/CCNet", "1fae6c67229c3863232494762b0afd9a8d7ff309", "MIT"
            ),
            "cc_attention/functions.py",
            "cc_attention",
        ),
        ccnet,
        (CUDA_NOTE,),
    ),
    Comparison(
        "emanet",
        Official(
            Repository(
                "https://github.com/XiaLiPKU/EMANet", "f09ffac3a2294881b353b43300f1295065a398a8", "GPL-3.0"
            ),
            "network.py",
            stubs=NORM_STUBS,
        ),
        emanet,
        (NORM_NOTE, "its training script moves the bases, ours does within the block"),
    ),
    Comparison(
        "a2",
        Official(
            Repository(
                "https://github.com/nguyenvo09/Double-Attention-Network",
                "c378693ff6c0407e9e460570b168c22e642b3f54",
                "none named",
            ),
            "double_attention_layer.py",
        ),
        a2,
        ("there is no official code; the residual, which it lacks, is added",),
    ),
    Comparison(
        "danet",
        Official(
            Repository(
                "https://github.com/junfu1115/DANet", "b0a0fa008148f102321cdaa7ca38fb0ddd0239d1", "MIT"
            ),
            "encoding/nn/da_att.py",
            "encoding/nn",
        ),
        danet,
        ("the sum of both modules; it holds the input twice, ours once",),
    ),
    Comparison("gcnet", Official(MMCV, "mmcv/cnn/bricks/context_block.py"), gcnet),
    Comparison("dnl", mmseg_head("dnl"), dnl),
    Comparison(
        "external",
        Official(
            Repository(
                "https://github.com/MenghaoGuo/EANet",
                "59c03cb0a286d3a29a797f8ea07fb89d7af56b60",
                "none named",
            ),
            "model_torch.py",
            stubs=NORM_STUBS,
        ),
        external,
        (NORM_NOTE, "its two memories, which share one storage by mistake, are two"),
    ),
    Comparison(
        "efficient",
        Official(
            Repository(
                "https://github.com/cmsflash/efficient-attention",
                "46a5f9eaf09470affb0ab30932b7748cc3c871ef",
                "MIT",
            ),
            "efficient_attention.py",
        ),
        efficient,
    ),
    Comparison(
        "sagan",
        Official(
            Repository(
                "https://github.com/ajbrock/BigGAN-PyTorch", "98459431a5d618d644d54cd1e9fceb1e5045648d", "MIT"
            ),
            "layers.py",
            stubs=NORM_STUBS,
        ),
        sagan,
        ("without spectral normalisation, which is the network's here",),
    ),
    Comparison(
        "se",
        Official(MMSEG, "mmseg/models/utils/se_layer.py"),
        se,
        ("with the paper's sigmoid, an option of it",),
    ),
    Comparison("psp", mmseg_head("psp"), psp, (ONE_NOTE,)),
    Comparison("aspp", mmseg_head("aspp"), aspp, (ONE_NOTE,)),
    Comparison("ann", mmseg_head("ann"), ann),
    Comparison("isa", mmseg_head("isa"), isa, ("its head without the first convolution and the classifier",)),
    Comparison(
        "ocr",
        mmseg_head("ocr"),
        ocr,
        ("the regions come from the same classifier, a convolution, as in ours",),
    ),
    Comparison("apc[convs=True]", mmseg_head("apc"), apc, (ONE_NOTE, FUSION_NOTE)),
    Comparison("dm", mmseg_head("dm"), dm, (FUSION_NOTE,)),
    Comparison("mhsa", Official(TORCH, "torch/nn/modules/activation.py"), mhsa, (TOKENS_NOTE,)),
    Comparison(
        "linear-attn",
        Official(
            Repository(
                "https://github.com/idiap/fast-transformers",
                "2ad36b97e64cb93862937bd21fcc9568d989561f",
                "MIT",
            ),
            "fast_transformers/attention/linear_attention.py",
            bare=("fast_transformers.attention",),
            also=("fast_transformers.attention.attention_layer", "fast_transformers.masking"),
        ),
        linear_attention,
        (TOKENS_NOTE,),
    ),
    Comparison(
        "pooled-attn",
        Official(
            Repository(
                "https://github.com/whai362/PVT", "57e2dfaa5a46f9050d76f306a4fcd9a7c061f520", "Apache-2.0"
            ),
            "classification/pvt_v2.py",
            "classification",
            TIMM_STUBS,
        ),
        pooled_attention,
        (TOKENS_NOTE,),
    ),
    Comparison(
        "agent",
        Official(
            Repository(
                "https://github.com/LeapLabTHU/Agent-Attention",
                "207ce3eb357b22ef8a15f8fa21cd1f14697bbaba",
                "none named",
            ),
            "agent_transformer/models/agent_pvt.py",
            "agent_transformer/models",
            TIMM_STUBS,
        ),
        agent,
        (TOKENS_NOTE, "adds biases of position, zero here, which ours has not"),
    ),
    Comparison(
        "linformer",
        Official(
            Repository(
                "https://github.com/lucidrains/linformer", "970e1c3f12fbdc494f60a2bed5e807563850f585", "MIT"
            ),
            "linformer/linformer.py",
        ),
        linformer,
        (
            TOKENS_NOTE,
            "its learned projection is set to the means of segments, which ours takes without a product",
            "its queries, keys and values have no biases: ours are zero",
        ),
    ),
    Comparison(
        "nystrom",
        Official(
            Repository(
                "https://github.com/mlpen/Nystromformer",
                "56893131bf3fa99b5a2d3ab452a591dca722529a",
                "Apache-2.0",
            ),
            "code/attention_nystrom.py",
            "code",
        ),
        nystrom,
        (TOKENS_NOTE, "its attention between linear layers", "its exact start of the inverse, per matrix"),
    ),
    Comparison(
        "performer",
        Official(
            Repository(
                "https://github.com/lucidrains/performer-pytorch",
                "fc8b78441b1e27eb5d9b01fc738a8772cee07127",
                "MIT",
            ),
            "performer_pytorch/performer_pytorch.py",
            stubs={
                "local_attention": {"LocalAttention": None},
                "axial_positional_embedding": {"AxialPositionalEmbedding": None},
                "distutils.version": {"LooseVersion": Version},
            },
            bare=("performer_pytorch",),
        ),
        performer,
        (TOKENS_NOTE, "to compare results, nothing is added to the features: the two add 1e-4 and 1e-6"),
        same=no_floor,
    ),
    Comparison(
        "cosformer",
        Official(
            Repository(
                "https://github.com/OpenNLPLab/cosFormer",
                "8e12da111e2a683ea875711e0bf5810c6b4e8f9f",
                "Apache-2.0",
            ),
            "cosformer.py",
        ),
        cosformer,
        ("gets and gives a sequence (N, B, C), converted outside the timed span",),
    ),
    Comparison(
        "fft[size={side}]",
        Official(
            Repository(
                "https://github.com/raoyongming/GFNet", "2de48b626ea805de82a7f389fed930af1ae0340d", "MIT"
            ),
            "gfnet.py",
            stubs={**TIMM_STUBS, "numpy.lib.arraypad": {"pad": None}},
        ),
        fft,
        (TOKENS_NOTE, "its filter, and the same projection behind it"),
    ),
    Comparison(
        "ssm",
        Official(
            Repository(
                "https://github.com/MzeroMiko/VMamba", "2ed52ead062a51a64521ed3871d52914bf532876", "MIT"
            ),
            "classification/models/vmamba.py",
            "classification/models",
            TIMM_STUBS,
        ),
        ssm,
        ("its scan in plain PyTorch, as without CUDA", "`torch.cuda.device` does nothing"),
        without={"train": "its scan takes minutes a backward without CUDA"},
    ),
)

UNCOMPARED = {
    "none": "it computes nothing",
}
"""Blocks without a comparison, and why."""
