"""Tensors with a shape and no data, ready quickly."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

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
    stand_in = types.ModuleType(DYNAMO)
    stand_in.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    sys.modules[DYNAMO] = stand_in
    try:
        yield
    finally:
        del sys.modules[DYNAMO]
