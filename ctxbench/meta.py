"""Tensors with a shape and no data, ready quickly."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

DYNAMO = "torch._dynamo"


@contextlib.contextmanager
def meta_tensors(compiling: bool = False) -> Iterator[None]:
    """New tensors are on the meta device inside.

    PyTorch's Python kernels for meta tensors import torch._dynamo, most of a second, only to be
    left alone by it. Unless this process is `compiling`, a stand-in spares them the import.
    """
    with contextlib.nullcontext() if compiling else _dynamo_stand_in(), torch.device("meta"):
        yield


@contextlib.contextmanager
def _dynamo_stand_in() -> Iterator[None]:
    if DYNAMO in sys.modules:
        yield
        return
    stand_in = _StandIn(DYNAMO)
    sys.modules[DYNAMO] = stand_in
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(types.ModuleType):
    """Answers to `disable` alone; whoever asks for more gets the real module."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.left_alone: list[Any] = []

    def disable(self, function: Any, *_: Any, **__: Any) -> Any:
        self.left_alone.append(function)
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(DYNAMO), name)

    def leave(self) -> None:
        """Make room for the real module, and forget what PyTorch remembers of this one."""
        if sys.modules.get(DYNAMO) is self:
            del sys.modules[DYNAMO]
        for function in self.left_alone:
            vars(function).pop("__dynamo_disable", None)
        self.left_alone.clear()
