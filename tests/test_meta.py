"""What came of meta tensors is made again, and only where it is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import blocks
from ctxbench import cost
from ctxbench.meta import Replay
from ctxbench.spec import Grid

aten = torch.ops.aten


def call(replay: Replay, operator: Any, *args: Any, **kwargs: Any) -> Any:
    return replay(operator, args, kwargs)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layout(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device, x.untyped_storage().nbytes()


@pytest.mark.parametrize("name", blocks.names())
def test_estimates_are_those_of_pytorchs_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Grid(name, resolutions="12", modes="infer,train", channels="16", estimated=True).cells()
    monkeypatch.setattr(cost, "REPLAY", Replay())
    found = [cost.estimate(cell) for cell in cells]
    again = [cost.estimate(cell) for cell in cells]
    monkeypatch.setattr(cost, "REPLAY", lambda operator, args, kwargs: operator(*args, **kwargs))
    assert found == again == [cost.estimate(cell) for cell in cells]


def test_what_is_made_again_is_new_and_alike() -> None:
    replay, x = Replay(), meta(2, 3, 4).mT
    first, second = (call(replay, aten.mul.Tensor, x, meta(4, 1)) for _ in range(2))
    assert len(replay.known) == 1
    assert layout(first) == layout(second)
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    for _ in range(2):
        y, mean, deviation = call(replay, aten.native_layer_norm.default, meta(5, 8), [8], None, None, 1e-5)
        assert (y.shape, mean.shape, deviation.shape) == ((5, 8), (5, 1), (5, 1))


def test_numbers_of_another_type_and_other_default_dtypes_are_told_apart() -> None:
    replay, x = Replay(), meta(3, dtype=torch.int64)
    dtypes = [call(replay, aten.mul.Tensor, x, number).dtype for number in (1, 1.0, True, 1)]
    assert dtypes == [torch.int64, torch.float32, torch.int64, torch.int64]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert call(replay, aten.mul.Tensor, x, 1.0).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (aten.mul.Tensor, (torch.ones(3), 2.0)),
        (aten.mul.Tensor, (meta(3, dtype=torch.complex64), 2.0)),
        (aten.real.default, (meta(3, dtype=torch.complex64),)),
        (aten.transpose.int, (meta(3, 2), 0, 1)),
        (aten._unsafe_view.default, (meta(3, 2), [6])),
        (aten.add_.Tensor, (meta(3), 1.0)),
        (aten.split.Tensor, (meta(6), 2)),
    ],
    ids=lambda it: str(it) if not isinstance(it, tuple) else "",
)
def test_nothing_is_remembered_of_data_views_and_changes(operator: Any, arguments: tuple[Any, ...]) -> None:
    replay = Replay()
    for _ in range(2):
        call(replay, operator, *arguments)
    assert not replay.known


def test_memory_of_results_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctxbench.meta.MOST_KNOWN", 2)
    replay = Replay()
    for size in range(1, 6):
        call(replay, aten.mul.Tensor, meta(size), 2.0)
    assert len(replay.known) == 1
