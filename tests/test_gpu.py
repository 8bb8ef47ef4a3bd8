"""On a CUDA device: the allocator's peak beside the predicted one, and timings by events."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ctxbench import measure, taskgrid
from ctxbench.cost import estimate
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor
from ctxbench.outcome import failure
from ctxbench.spec import Grid
from ctxbench.updates import UpdateSubject, cells_of
from tasks.generation import training
from tasks.generation.data import digits
from tests.factories import KilledError, killed_at

pytestmark = pytest.mark.gpu

# What kernels take beside the tensors: cuBLAS work spaces of 32 MiB each, and those of cuDNN.
WORK_SPACE = 160 * 2**20


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_the_allocators_peak_is_the_predicted_one_plus_work_space(mode: str) -> None:
    cells = Grid(
        blocks="ham-nmf,ham-cd,self-attn,a2,ccnet,emanet", resolutions="64", modes=mode, device="cuda"
    ).cells()
    for cell, outcome in measure.group(cells, Settings(), Monitor()):
        assert outcome.status == "ok", (cell.label, outcome.columns)
        above = outcome.columns["memory_measured_bytes"] - estimate(cell).memory_bytes
        assert -0.02 * estimate(cell).memory_bytes <= above <= WORK_SPACE, cell.label


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_is_timed(dtype: str) -> None:
    cells = Grid(blocks="all", resolutions="32", dtypes=dtype, device="cuda").cells()
    for cell, outcome in measure.group(cells, Settings(), Monitor()):
        assert outcome.status == "ok", (cell.label, outcome.columns)
        assert outcome.columns["latency_ms_ci_low"] <= outcome.columns["latency_ms_median"]


def test_running_out_of_device_memory_is_told_as_such() -> None:
    with pytest.raises(torch.OutOfMemoryError) as error:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert failure(error.value).status == "oom"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gan_is_trained_and_scored(tmp_path: Path, dtype: str) -> None:
    grid = taskgrid.make_grid(
        "digits", "16x16", "none,ham-nmf,self-attn", iterations=20, device="cuda", dtypes=dtype
    )
    settings = Settings(folder=tmp_path)
    for cell in grid.cells():
        outcome = cell.train(settings, Monitor())
        assert outcome.status == "ok"
        assert outcome.columns["fid"] > 0
        assert outcome.columns["memory_source"] == "allocator"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_updates_of_a_gan_are_timed(dtype: str) -> None:
    grid = taskgrid.make_grid(
        "imagenet", "hamgan-baby", "none,ham-nmf,self-attn", batch=8, device="cuda", dtypes=dtype
    )
    for cell, outcome in measure.group(
        list(cells_of(grid.cells())), Settings(budget_s=1.0), Monitor(), UpdateSubject
    ):
        assert outcome.status == "ok", (cell.label, outcome.columns)
        assert outcome.columns["memory_measured_bytes"] > 2**28


def test_a_gan_that_was_killed_goes_on(tmp_path: Path) -> None:
    (cell,) = taskgrid.make_grid("digits", "16x16", "ham-nmf", iterations=20, device="cuda").cells()
    data = digits(16)
    with pytest.raises(KilledError):
        training.train(cell.job(), data, tmp_path, killed_at("iteration 11 "))
    assert training.train(cell.job(), data, tmp_path).state.iteration == 20
