"""NMF's Triton kernels: in Triton's interpreter without a GPU, and compiled on one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import blocks
from blocks import nmf_triton
from blocks.nmf_triton import plan
from blocks.update_rules import nmf_iteration

H200 = {"shared": 227 * 2**10, "processors": 132}
VARIANTS = (("float32", True), ("bfloat16", True), ("bfloat16", False), ("float16", False))
# Of the largest value, after one iteration and after six: four roundings for each and more.
TOLERANCE = {"float32": (1e-5, 1e-5), "bfloat16": (0.03, 0.08), "float16": (0.004, 0.01)}
# G, D, N, R: odd sizes, full tiles, more rows than columns, bases beyond the resident kernel, one pixel.
SHAPES = ((2, 40, 70, 7), (1, 64, 64, 64), (2, 70, 40, 7), (1, 20, 40, 130), (1, 16, 1, 8))


def inputs(
    shape: tuple[int, int, int, int], dtype: str, device: str, *, turned: bool
) -> tuple[Tensor, Tensor]:
    """X, as a transposed view where `turned`, and bases of length one."""
    groups, d, n, r = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((groups, n, d) if turned else (groups, d, n), generator=generator)
    x = x.mT if turned else x
    bases = torch.nn.functional.normalize(torch.rand(groups, d, r, generator=generator), dim=1)
    return tuple(it.to(device, getattr(torch, dtype)) for it in (x, bases))


def reference(x: Tensor, bases: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    x, bases = x.double(), bases.double()
    codes: list[Tensor | None] = [None]
    for _ in range(steps):
        bases, codes[:] = nmf_iteration((x,), bases, codes)
    return bases, cast(Tensor, codes[0])


def check_results(device: str, shapes: tuple[tuple[int, int, int, int], ...] = SHAPES) -> None:
    for shape, (dtype, turned) in itertools.product(shapes, VARIANTS):
        x, bases = inputs(shape, dtype, device, turned=turned)
        assert nmf_triton.available(x, shape[-1])
        for steps, tolerance in zip((1, 6)[: 1 + (turned and shape[0] > 1)], TOLERANCE[dtype], strict=False):
            found = nmf_triton.nmf(x, bases, steps)
            for got, want in zip(found, reference(x, bases, steps), strict=True):
                assert got.dtype == x.dtype
                error = (got.double() - want).abs().max() / want.max()
                assert error <= tolerance, (shape, dtype, turned, steps, float(error))


def check_iterations(device: str) -> None:
    """From given codes, which may be wider than X; and zeros stay zero, with nothing infinite."""
    for shape, dtype in itertools.product(((2, 40, 210, 7), (2, 150, 40, 7)), ("float32", "bfloat16")):
        x, bases = inputs(shape, dtype, device, turned=False)
        codes = torch.rand(shape[0], shape[3], shape[2]).to(device)
        new_bases, new_codes = nmf_triton.iterate(x, bases.float(), codes)
        assert new_bases.dtype == new_codes.dtype == torch.float32
        want, (want_codes,) = nmf_iteration((x.double(),), bases.double(), [codes.double()])
        assert (new_codes - want_codes).abs().max() <= TOLERANCE[dtype][0] * want_codes.max()
        assert (new_bases - want).abs().max() <= TOLERANCE[dtype][0] * want.max()
        for got in nmf_triton.nmf(torch.zeros_like(x), bases, 2):
            assert torch.equal(got, torch.zeros_like(got))


def check_determinism(device: str) -> None:
    for dtype in ("float32", "bfloat16"):
        x, bases = inputs((2, 40, 300, 7), dtype, device, turned=False)
        kept = x.clone(), bases.clone()
        one, two = (nmf_triton.nmf(x, bases, 2) for _ in range(2))
        assert all(map(torch.equal, one, two))
        assert all(map(torch.equal, kept, (x, bases))), "inputs stay as they are"


def check_compiled(device: str, backend: str) -> None:
    def three(x: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        if nmf_triton.available(x, bases.shape[2]):
            bases, codes = nmf_triton.nmf(x, bases, 3)
            return bases + 1, codes
        raise AssertionError

    x, bases = inputs((2, 40, 210, 7), "float32", device, turned=False)
    compiled: Any = torch.compile(three, fullgraph=True, backend=backend)
    for got, want in zip(compiled(x, bases), three(x, bases), strict=True):
        assert torch.equal(got, want)


def in_interpreter() -> None:
    """What `test_in_the_interpreter` runs in its own process."""
    check_results("cpu")
    check_iterations("cpu")
    check_determinism("cpu")
    check_compiled("cpu", "aot_eager")


def test_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed here")
    finished = subprocess.run(
        [sys.executable, "-c", "from tests.test_nmf_triton import in_interpreter as run; run()"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


def test_blocks_do_not_import_triton() -> None:
    command = "import sys, blocks; blocks.names(); assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True, timeout=240)


@pytest.mark.skipif(nmf_triton.INTERPRETED, reason="kernels are interpreted")
def test_a_processor_has_no_kernels() -> None:
    assert not nmf_triton.available(torch.rand(1, 8, 8), 4)


@pytest.mark.skipif(nmf_triton.INTERPRETED, reason="kernels are interpreted")
def test_a_hamburger_says_what_the_kernel_needs() -> None:
    with pytest.raises(ValueError, match="impl='triton' has no gradient='bptt'"):
        blocks.create("ham-nmf", 8, impl="triton", gradient="bptt")
    block = blocks.create("ham-nmf", 8, rank=3, impl="triton")
    with pytest.raises(RuntimeError, match="needs Triton, an NVIDIA GPU"):
        block(torch.rand(1, 8, 4, 4))
    with torch.device("meta"):  # what it costs is told without a GPU
        assert blocks.create("ham-nmf", 8, rank=3, impl="triton")(torch.rand(1, 8, 4, 4)).is_meta


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("shape", [(2, 40, 210, 7), (2, 210, 40, 7)])
def test_shapes_are_known_without_calculating(device: str, shape: tuple[int, int, int, int]) -> None:
    groups, d, n, r = shape
    with FakeTensorMode():
        x = torch.empty(groups, d, n, dtype=torch.bfloat16, device=device)
        bases = torch.empty(groups, d, r, device=device)
        new_bases, codes = nmf_triton.nmf(x, bases, 6)
    assert (new_bases.shape, new_bases.dtype) == ((groups, d, r), torch.float32)
    assert (codes.shape, codes.dtype, codes.device.type) == ((groups, r, n), torch.bfloat16, device)


def test_what_has_room_stays_on_the_chip() -> None:
    common = {"itemsize": 2, "fma": False, **H200}
    assert plan(1, 512, 128 * 128, 64, **common).resident
    assert not plan(1, 512, 128 * 128, 128, **common).resident
    assert not plan(1, 1024, 128 * 128, 16, **common).resident
    assert not plan(1, 512, 128 * 128, 64, **common | {"shared": 99 * 2**10}).resident
    assert not plan(1, 512, 128 * 128, 64, **common | {"itemsize": 4}).resident


@pytest.mark.parametrize("groups", [1, 8, 300])
@pytest.mark.parametrize("n", [1, 33, 4096, 65_536])
def test_runs_cover_all_columns_and_none_is_empty(groups: int, n: int) -> None:
    for r, itemsize, fma in itertools.product((8, 64, 512), (2, 4), (False, True)):
        cut = plan(groups, 512, n, r, itemsize=itemsize, fma=fma, **H200)
        run = cut.tiles * cut.width
        assert (cut.runs - 1) * run < n <= cut.runs * run
        assert cut.resident or cut.width % cut.inner == 0
        assert cut.runs * groups <= max(groups, 2 * H200["processors"])


@pytest.mark.parametrize("kernel", ["resident", "swept", "finish"])
def test_kernels_compile_without_a_device(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter accepts what the compiler does not."""
    triton = pytest.importorskip("triton", reason="triton is not installed here")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from blocks.kernels import nmf as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    dtype = "*fp32" if kernel == "swept" else "*bf16"
    constants = {"x_column": 1, "FIRST": True, "EPS": 1e-6, "PRECISION": "ieee", "d": 40, "r": 7}
    constants |= {"BLOCK_N": 32, "BLOCK_D": 64, "BLOCK_R": 16, "BLOCK_K": 16}
    constants |= {"STAGES": 2, "BLOCK": 64, "INNER": 32}
    pointers = dict.fromkeys(("x", "bases", "gram", "codes", "new_codes", "new_bases"), dtype)
    types = pointers | {"moments": "*fp32"} | dict.fromkeys(constants, "constexpr")
    function = getattr(kernels, kernel)
    names = function.arg_names
    source = ASTSource(
        function,
        {name: types.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items() if name in names},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    assert built.asm["cubin"]


# --- on a GPU ------------------------------------------------------------------------------------

LARGE = ((2, 512, 4096, 64), (1, 512, 4095, 64), (2, 1024, 1000, 32), (1, 256, 3000, 128), (1, 64, 900, 512))


@pytest.mark.gpu
@pytest.mark.parametrize("shapes", [SHAPES, LARGE])
def test_results_on_a_gpu(shapes: tuple[tuple[int, int, int, int], ...]) -> None:
    check_results("cuda", shapes)


@pytest.mark.gpu
def test_iterations_and_determinism_on_a_gpu() -> None:
    check_iterations("cuda")
    check_determinism("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("spatial", [True, False])
def test_a_hamburger_gives_what_the_reference_gives(spatial: bool) -> None:
    def run(impl: str) -> tuple[Tensor, Tensor | None]:
        torch.manual_seed(0)
        block = blocks.create("ham-nmf", 64, rank=16, spatial=spatial, dictionary="frozen", impl=impl).cuda()
        x = torch.randn(2, 64, 30, 33).cuda().requires_grad_()
        y = block(x)
        y.square().mean().backward()
        return y, x.grad

    for got, want in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_tf32_is_used_when_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    x, bases = inputs((1, 512, 4096, 64), "float32", "cuda", turned=False)
    for got, want in zip(nmf_triton.nmf(x, bases, 1), reference(x, bases, 1), strict=True):
        error = (got.double() - want).abs().max() / want.max()
        assert 1e-6 < error < 5e-3


@pytest.mark.gpu
def test_the_operator_is_compiled_and_captured() -> None:
    check_compiled("cuda", "inductor")
    x, bases = inputs((2, 512, 4096, 64), "bfloat16", "cuda", turned=False)
    want = nmf_triton.nmf(x, bases, 6)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = nmf_triton.nmf(x, bases, 6)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, got, want))
