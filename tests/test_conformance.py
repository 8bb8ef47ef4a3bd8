"""What every block of the catalogue promises, tried on each of them and on a set of its options.

A block of your own is tried too: pytest tests/test_conformance.py --plugin my_block.py
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import blocks
from blocks import base
from ctxbench.gate import relative_error, wake

CHANNELS = 16
SHAPES = [(7, 5), (1, 1), (4, 4), (1, 9), (8, 3)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

HAM_OPTIONS: list[dict[str, Any]] = [
    {"rank": 4},
    {"rank": 3, "version": "v2", "latent": 8},
    {"rank": 3, "version": "v2+", "heads": 2, "latent": 8, "cheese_factor": 2},
    {"rank": 3, "version": "v2+", "dual": True, "latent": 8},
    {"rank": 4, "gradient": "bptt", "train_steps": 3, "eval_steps": 4},
    {"rank": 4, "dictionary": "frozen"},
    {"rank": 4, "dictionary": "learned", "heads": 4},
    {"rank": 4, "spatial": False},
    {"rank": 4, "spatial": False, "heads": 2, "gradient": "bptt"},
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ham-nmf": HAM_OPTIONS,
    "ham-cd": [*HAM_OPTIONS, {"rank": 4, "inv_t": 1.0, "ridge": 0.01}],
    "ham-vq": [*HAM_OPTIONS, {"rank": 4, "inv_t": 1.0}],
    "light-ham": [{"rank": 4}, {"rank": 4, "heads": 2, "gradient": "one-step"}],
    "self-attn": [
        {},
        {"heads": 4},
        {"scale": True, "heads": 2},
        {"impl": "sdpa"},
        {"impl": "sdpa", "heads": 4},
    ],
    "non-local": [
        {"mode": mode, "sub_sample": sub_sample}
        for mode in ("embedded-gaussian", "gaussian", "dot-product", "concat")
        for sub_sample in (False, True)
    ]
    + [{"scale": True}],
    "ccnet": [{}, {"recurrence": 1}, {"recurrence": 3}],
    "emanet": [{"rank": 4}, {"rank": 4, "steps": 1, "momentum": 0.5}],
    "a2": [{}, {"c_m": 4, "c_n": 6}],
    "danet": [{}, {"convs": True}],
    "gcnet": [{"ratio": 0.5, "fusion": "mul"}, {"pooling": "average"}],
    "dnl": [{"temperature": 1.0, "scale": False}],
    "external": [{"memory": 4}],
    "efficient": [{"heads": 2}, {"keys": 4, "values": 6}],
    "se": [{"reduction": 2}],
    "psp": [{"width": 4}],
    "aspp": [{"width": 4, "rate": 2}, {"width": 4, "kernel": 1}],
    "ann": [{"width": 4}],
    "isa": [{"width": 4, "cell": 2}, {"cell": 3}],
    "ocr": [{"regions": 3, "width": 4}],
    "apc": [{"width": 4}, {"convs": True}, {"width": 4, "convs": True}],
    "dm": [{"width": 4}, {"norm": False}],
    "mhsa": [{"head_dim": 4}],
    "linear-attn": [{"head_dim": 4}],
    "pooled-attn": [{"pool": 2}, {"pool": 3, "head_dim": 8}],
    "agent": [{"agents": 2}, {"agents": 3, "conv": False, "head_dim": 8}],
    "linformer": [{"tokens": 2}, {"tokens": 9, "head_dim": 8}],
    "nystrom": [{"landmarks": 2}, {"landmarks": 9, "iterations": 2, "head_dim": 8}],
    "performer": [{"features": 6}, {"features": 40, "head_dim": 8}],
    "cosformer": [{"head_dim": 8}],
    "fft": [{"size": 1}, {"size": 5}],
    "ssm": [{"state": 4}, {"state": 3, "expand": 1}],
}
CASES = [(name, options) for name in blocks.names() for options in ({}, *OPTIONS.get(name, []))]


def case_id(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={setting}" for key, setting in value.items()) or "defaults"
    return str(value)


every_block = pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def make(name: str, options: dict[str, Any], dtype: torch.dtype = torch.float32) -> blocks.ContextBlock:
    """The block in evaluation, all gates open."""
    return wake(blocks.create(name, CHANNELS, **options)).to(dtype).eval()


def sample(shape: tuple[int, int] = (7, 5), batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, CHANNELS, *shape).to(dtype)


@torch.no_grad()
def run(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@every_block
def test_any_resolution_keeps_its_shape(
    name: str, options: dict[str, Any], shape: tuple[int, int], training: bool
) -> None:
    x = sample(shape)
    y = run(make(name, options).train(training), x)
    assert y.shape == x.shape
    assert y.isfinite().all()


@every_block
def test_products_for_convolutions_change_nothing(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x = make(name, options, torch.float64), sample(dtype=torch.float64)

    def output_and_gradient() -> tuple[Tensor, Tensor]:
        own = x.clone().requires_grad_()
        y = block(own)
        return y, torch.autograd.grad(y.square().sum(), own)[0]

    expected = output_and_gradient()
    monkeypatch.setattr(base, "MANY_PIXELS", 0)
    monkeypatch.setattr(base, "MANY_MACS", 0)
    torch.testing.assert_close(output_and_gradient(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_block
def test_a_batch_of_none_stays_one(name: str, options: dict[str, Any], training: bool) -> None:
    x = torch.zeros(0, CHANNELS, 40, 40, requires_grad=True)
    y = make(name, options).train(training)(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@every_block
def test_every_dtype_is_kept_and_close_to_float64(
    name: str, options: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    # A soft assignment at a high temperature is well conditioned in every dtype; a sharp one is not.
    if "inv_t" in blocks.info(name).options and dtype == torch.bfloat16:
        options = options | {"inv_t": 1.0}
    block, x = make(name, options, dtype).to(device), sample(dtype=dtype).to(device)
    y = run(block, x)
    assert (y.dtype, y.device.type) == (dtype, device)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    assert relative_error(y, run(copy.deepcopy(block).double(), x.double())) <= tolerance


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_block
def test_autocast_trains_and_gives_finite_gradients(
    name: str, options: dict[str, Any], training: bool
) -> None:
    block, x = make(name, options).train(training), sample().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()


@every_block
def test_meta_and_fake_tensors_are_enough(name: str, options: dict[str, Any]) -> None:
    for tensors in (torch.device("meta"), FakeTensorMode()):
        with tensors:
            block, x = blocks.create(name, CHANNELS, **options), sample().requires_grad_()
            y = block.train()(x)
            y.backward(torch.ones_like(y))
        assert y.shape == (2, CHANNELS, 7, 5)


@every_block
def test_memory_layout_does_not_matter(name: str, options: dict[str, Any]) -> None:
    block, x = make(name, options, torch.float64), sample(dtype=torch.float64)
    expected = run(block, x)
    layouts = {
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": torch.cat((x, x), dim=1)[:, :CHANNELS],
    }
    for layout, same in layouts.items():
        assert relative_error(run(block, same), expected) <= 1e-10, layout


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_block
def test_the_input_is_never_modified(name: str, options: dict[str, Any], training: bool) -> None:
    x = sample()
    before = x.clone()
    run(make(name, options).train(training), x)
    assert torch.equal(x, before)


@every_block
def test_evaluation_repeats_its_output_and_writes_no_state(name: str, options: dict[str, Any]) -> None:
    block, x = make(name, options), sample()
    state = copy.deepcopy(block.state_dict())
    random = torch.get_rng_state()
    first = run(block, x)
    torch.manual_seed(1)
    assert torch.equal(run(block, x), first)
    for key, value in block.state_dict().items():
        assert torch.equal(value, state[key]), key
    torch.set_rng_state(random)
    run(block, x)
    assert torch.equal(torch.get_rng_state(), random), "evaluation draws no random numbers"


@every_block
def test_images_of_a_batch_do_not_influence_one_another(name: str, options: dict[str, Any]) -> None:
    block, x = make(name, options, torch.float64), sample(batch=3, dtype=torch.float64)
    y = run(block, x)
    assert relative_error(run(block, x[1:2]), y[1:2]) <= 1e-10
    assert relative_error(run(block, x.flip(0)), y.flip(0)) <= 1e-10


@every_block
def test_gradients_reach_all_that_learns(name: str, options: dict[str, Any]) -> None:
    # Longer than a cell of isa, whose far attention then has a choice.
    block, x = make(name, options, torch.float64).train(), sample((9, 7), dtype=torch.float64)
    y = block(x.requires_grad_())
    y.backward(torch.randn_like(y))
    assert x.grad is not None and x.grad.any()
    for key, parameter in block.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # A bias before a softmax or a batch normalisation has no effect, and rightly no gradient.
            assert parameter.grad.abs().max() > 1e-9 or key.endswith("bias"), key


@every_block
def test_state_dict_round_trips_strictly(name: str, options: dict[str, Any]) -> None:
    trained, x = make(name, options), sample()
    run(trained.train(), x)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    loaded = blocks.create(name, CHANNELS, **options)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(run(loaded.eval(), x), run(trained.eval(), x))


@every_block
def test_deepcopy_and_pickle_keep_the_function(name: str, options: dict[str, Any]) -> None:
    block, x = make(name, options), sample()
    expected = run(block, x)
    assert torch.equal(run(copy.deepcopy(block), x), expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(block)), x), expected)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4], ids=["zero", "tiny", "huge"])
@every_block
def test_extreme_inputs_give_finite_outputs_and_gradients(
    name: str, options: dict[str, Any], scale: float
) -> None:
    block, x = make(name, options).train(), (sample() * scale).requires_grad_()
    y = block(x)
    y.backward(torch.ones_like(y))
    assert y.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    for key, parameter in block.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", blocks.names())
def test_an_unknown_option_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(TypeError, match="no option 'no_such_option'; its options: ") as error:
        blocks.create(name, CHANNELS, no_such_option=1)
    for option in blocks.info(name).options:
        assert option in str(error.value)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@every_block
def test_closed_form_macs_equal_the_dispatchers_count(
    name: str, options: dict[str, Any], shape: tuple[int, int], training: bool
) -> None:
    assert counted_macs(name, options, CHANNELS, shape, training) == closed_form(
        name, options, CHANNELS, shape, training
    )


@every_block
def test_closed_form_parameters_equal_the_count(name: str, options: dict[str, Any]) -> None:
    block = blocks.create(name, CHANNELS, **options)
    assert block.param_count() == sum(parameter.numel() for parameter in block.parameters())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_closed_forms_hold_for_drawn_shapes_and_options(data: st.DataObject) -> None:
    name, options = data.draw(st.sampled_from(CASES))
    channels = 8 * data.draw(st.integers(1, 12))
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    training = data.draw(st.booleans())
    if "latent" not in options and options.get("heads", 1) > 1 and channels % options["heads"]:
        channels *= options["heads"]
    counted = counted_macs(name, options, channels, shape, training)
    assert counted == closed_form(name, options, channels, shape, training)


def counted_macs(
    name: str, options: dict[str, Any], channels: int, shape: tuple[int, int], training: bool
) -> float:
    """Half of what PyTorch's own counter sees in one forward on meta tensors."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        block = blocks.create(name, channels, **options).train(training)
        # Two images: batch normalisation in training refuses a single value per channel.
        block(torch.empty(2, channels, *shape))
    return counter.get_total_flops() / 2


def closed_form(
    name: str, options: dict[str, Any], channels: int, shape: tuple[int, int], training: bool
) -> int:
    with torch.device("meta"):
        return 2 * blocks.create(name, channels, **options).train(training).macs(*shape)
