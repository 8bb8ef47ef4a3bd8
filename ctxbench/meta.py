"""Tensors with a shape and no data, ready quickly."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

DYNAMO = "torch._dynamo"
MOST_KNOWN = 2**16  # results that are remembered
PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


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


class Layout(NamedTuple):
    """What there is to know of a tensor without data."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def empty(self) -> Tensor:
        """A meta tensor like that, with a storage of its own."""
        empty: Tensor = torch.ops.aten.empty_strided(*self[:2], dtype=self.dtype, device="meta")
        return empty


Layouts = tuple[Layout | None, ...]


class Replay:
    """Calls operators, and makes what came of meta tensors again where arguments have the same layouts.

    Many of PyTorch's kernels for meta tensors are written in Python, and take most of an estimate's time. Nothing is
    remembered of views, nor of operators that write to an argument.
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, tuple[type, Layouts]] = {}

    def __call__(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if operator.is_view or operator._schema.is_mutable:
            return operator(*args, **kwargs)
        try:
            key = operator, torch.get_default_dtype(), told(args), told(tuple(kwargs.items()))
        except Untold:
            return operator(*args, **kwargs)
        if key in self.known:
            kind, layouts = self.known[key]
            made = tuple(None if each is None else each.empty() for each in layouts)
            return made if kind is tuple else made[0]
        result = operator(*args, **kwargs)
        kind = type(result)
        found = layouts_of(result if kind is tuple else (result,), args)
        if found is not None:
            if len(self.known) == MOST_KNOWN:
                self.known.clear()
            self.known[key] = kind, found
        return result


class Untold(Exception):  # noqa: N818, it is no error
    """Of an argument that a result may depend on in more than its layout."""


def told(argument: Any) -> Hashable:
    """What a result on the meta device depends on.

    Raises:
        Untold: if that is more than can be told.
    """
    if isinstance(argument, Tensor) and argument.is_meta and not argument.is_complex():
        return Layout.of(argument)
    if isinstance(argument, list | tuple):
        return tuple(told(each) for each in argument)
    if argument is None or isinstance(argument, PLAIN):
        return type(argument), argument  # as 1, 1.0 and True are one key
    raise Untold


def layouts_of(results: tuple[Any, ...], args: tuple[Any, ...]) -> Layouts | None:
    """Of results that can be made again; None if one is no such tensor, or has not a whole storage of its own."""
    taken = {each.untyped_storage()._cdata for each in pytree.tree_leaves(args) if isinstance(each, Tensor)}
    layouts: list[Layout | None] = []
    for each in results:
        if each is None:
            layouts.append(None)
            continue
        if not isinstance(each, Tensor) or not each.is_meta or each.is_complex():
            return None
        layout, storage = Layout.of(each), each.untyped_storage()
        if storage._cdata in taken or storage.nbytes() != layout.empty().untyped_storage().nbytes():
            return None
        taken.add(storage._cdata)
        layouts.append(layout)
    return tuple(layouts)
