"""What is compared with what, and how an official layer gets the weights of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import blocks
from blocks.pooling import PooledNorm
from ctxbench.gate import wake
from ctxbench.spec import parse_blocks
from tests.bench.official.sources import Official

SEED = 1
BLOCK, CORE, CORE_BFLOAT16 = 1.02, 0.90, 0.35  # the largest ratio of times that is meant


Forward = Callable[[Tensor], Tensor]


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
