"""Each rule of the correctness gate is broken by one block, and named; a good block passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blocks
from ctxbench import gate

CHANNELS = 8


class Good(blocks.ContextBlock):
    """Mixes channels, with a gate that starts closed, as many blocks have one."""

    def __init__(self) -> None:
        super().__init__(CHANNELS)
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.gate = nn.Parameter(torch.zeros(1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.mix(x)

    def macs(self, height: int, width: int) -> int:
        return height * width * CHANNELS**2

    def param_count(self) -> int:
        return CHANNELS**2 + CHANNELS + 1


class WrongShape(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., :-1]


class Transposed(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mT


class NoTensor(Good):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class WrongDtype(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class WrongDevice(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to("meta")


class NotFinite(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / torch.zeros(1)


class ModifiesInput(Good):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.relu_()
        return super().forward(x)


class Random(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x)


class MixesImages(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.mean(0, keepdim=True)


class WritesState(Good):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Inaccurate(Good):
    """As if half of what the block adds had been lost on the way; in float64 it is there."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.dtype == torch.float64 else (x + y) / 2


class Detached(Good):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate.detach() * self.mix(x)


class InputDetached(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class GradientNotFinite(Good):
    """sqrt has no slope at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 * self.gate).sqrt()


class InputGradientNotFinite(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 * x).sqrt()


class FiniteInFloat32(Good):
    """Overflows where digits are few: NaN in bfloat16 and nowhere else."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * float("nan") if y.dtype == torch.bfloat16 else y


BROKEN = [
    (WrongShape, "the output has the shape of the input"),
    (Transposed, "the output has the shape of the input"),
    (NoTensor, "the output has the shape of the input"),
    (WrongDtype, "the output has the input's dtype and device"),
    (WrongDevice, "the output has the input's dtype and device"),
    (NotFinite, "the output is finite"),
    (ModifiesInput, "the input is not modified"),
    (Random, "evaluation repeats its output"),
    (MixesImages, "images of a batch do not influence one another"),
    (WritesState, "evaluation writes no state"),
    (Inaccurate, r"float32 agrees with float64 \(relative error 0\.5\)"),
    (Detached, "a gradient reaches gate"),
    (InputDetached, "a gradient reaches the input"),
    (GradientNotFinite, "the gradient of gate is finite"),
    (InputGradientNotFinite, "the gradient of the input is finite"),
]


@pytest.fixture(autouse=True)
def random_state() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


@pytest.mark.parametrize(("block", "rule"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_rule_is_named(block: type[Good], rule: str) -> None:
    with pytest.raises(gate.BrokenRuleError, match=f"^broken rule: {rule}$"):
        gate.check(block, "cpu", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_good_block_passes_in_every_dtype(dtype: torch.dtype) -> None:
    gate.check(Good, "cpu", dtype)


def test_a_block_that_fails_in_one_dtype_alone_fails_there_alone() -> None:
    gate.check(FiniteInFloat32, "cpu", torch.float32)
    with pytest.raises(gate.BrokenRuleError, match="the output is finite"):
        gate.check(FiniteInFloat32, "cpu", torch.bfloat16)


def test_an_error_behind_a_closed_gate_does_not_hide() -> None:
    """The gate of a fresh `MixesBehindGate` is zero: its output is its input, until it is trained."""

    class MixesBehindGate(Good):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.gate * x.mean(0, keepdim=True)

    x = torch.randn(2, CHANNELS, 3, 3)
    assert torch.equal(MixesBehindGate()(x), x)
    with pytest.raises(gate.BrokenRuleError, match="images of a batch"):
        gate.check(MixesBehindGate, "cpu", torch.float32)


def test_a_block_that_has_no_value_in_float64_is_refused() -> None:
    class OnlyNarrow(Good):
        def forward(self, x: Tensor) -> Tensor:
            return x * float("nan") if x.dtype == torch.float64 else super().forward(x)

    with pytest.raises(gate.BrokenRuleError, match="agrees with float64"):
        gate.check(OnlyNarrow, "cpu", torch.float32)


def test_an_error_in_what_is_added_does_not_hide_behind_the_input() -> None:
    class SmallAndWrong(Good):
        def forward(self, x: Tensor) -> Tensor:
            added = 0.01 * (super().forward(x) - x)
            return x + (added if x.dtype == torch.float64 else 1.1 * added)

    with pytest.raises(gate.BrokenRuleError, match="agrees with float64"):
        gate.check(SmallAndWrong, "cpu", torch.float32)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)], ids=str)
def test_a_small_branch_may_lose_the_digits_that_the_output_cannot_hold(
    dtype: torch.dtype, scale: float
) -> None:
    """A branch behind a small scale that is learned, as many blocks have one, is no error."""

    class LayerScale(Good):
        def __init__(self) -> None:
            super().__init__()
            nn.init.constant_(self.gate, scale)

    gate.check(LayerScale, "cpu", dtype)


def test_what_training_may_do_is_no_fault() -> None:
    """Draw random numbers, normalise over the batch, write state: in training alone."""

    class Trains(Good):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(CHANNELS)
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.drop(self.norm(x)))

    gate.check(Trains, "cpu", torch.float32)


def test_a_parameter_that_does_not_learn_needs_no_gradient() -> None:
    class Frozen(Detached):
        def __init__(self) -> None:
            super().__init__()
            self.gate.requires_grad_(False)

    gate.check(Frozen, "cpu", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", blocks.names())
def test_every_block_of_the_catalogue_passes(name: str, dtype: torch.dtype) -> None:
    gate.check(lambda: blocks.create(name, 16), "cpu", dtype)


def test_the_distance_from_a_reference_is_relative_and_infinite_where_a_value_is_not_finite() -> None:
    reference = torch.tensor([3.0, 4.0])
    assert gate.relative_error(reference, reference) == 0
    assert gate.relative_error(reference + torch.tensor([0.0, 0.5]), reference) == pytest.approx(0.1)
    assert gate.relative_error(torch.tensor([3.0, float("nan")]), reference) == float("inf")
    assert gate.relative_error(torch.ones(2), torch.zeros(2)) > 1e20


@pytest.mark.parametrize(
    ("get", "meddle"),
    [
        (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
        (
            lambda: torch.backends.cudnn.benchmark,
            lambda: setattr(torch.backends.cudnn, "benchmark", True),
        ),
        (
            torch.backends.cuda.math_sdp_enabled,
            lambda: torch.backends.cuda.enable_math_sdp(False),
        ),
        (
            lambda: torch.backends.cuda.matmul.fp32_precision,
            lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        ),
    ],
    ids=["threads", "cudnn.benchmark", "math_sdp", "precision"],
)
def test_a_block_that_changes_torch_itself_is_refused_and_the_change_undone(
    get: Callable[[], Any], meddle: Callable[[], None]
) -> None:
    class Meddles(Good):
        def forward(self, x: Tensor) -> Tensor:
            meddle()
            return super().forward(x)

    before = get()
    with pytest.raises(gate.BrokenRuleError, match="torch's own settings"):
        gate.check(Meddles, "cpu", torch.float32)
    assert get() == before
