"""Official hamburgers and decompositions with the weights of ours."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import blocks
from blocks.decomposition import Decomposition
from tests.bench.official.comparison import Theirs, given

RANK = 64  # of a core; a block's own, but no more than its channels


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
