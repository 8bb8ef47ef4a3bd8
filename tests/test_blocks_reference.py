"""Every block of the catalogue gives what its formula says: the NumPy references of `references.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from blocks import ContextBlock, create, info, names
from blocks.decomposition import CD, NMF, VQ, Decomposition
from tests import references
from tests.references import Array, Weights, channel_dictionary, murmur3_finaliser
from tests.references_modern import MODERN

REFERENCES = {**references.REFERENCES, **MODERN}
BATCH, HEIGHT, WIDTH = 2, 5, 7
SETTINGS = {"cheese_factor", "dictionary", "dual", "gradient", "impl", "momentum", "train_steps"}
SETTINGS |= {"c_m", "c_n", "kernel", "keys", "latent", "memory", "rank", "ratio", "reduction", "regions"}
SETTINGS |= {"values", "width"}
SETTINGS |= {"expand", "features", "size", "state"}
"""Options that the formula of an evaluation does not name; widths are read off the weights."""


class Case(NamedTuple):
    name: str
    options: Mapping[str, Any] = {}
    channels: int = 16

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}-{self.channels}[{options}]"

    def reference(self, weights: Weights, x: Array) -> Array:
        formula = {name: value for name, value in self.options.items() if name not in SETTINGS}
        return REFERENCES[self.name](weights, x, **formula)


def grid(name: str, **alternatives: tuple[Any, ...]) -> Iterator[Case]:
    """Every combination of the given values of the options."""
    for values in product(*alternatives.values()):
        yield Case(name, dict(zip(alternatives, values, strict=True)))


def hamburgers(name: str, **own: Any) -> Iterator[Case]:
    """The options that all hams have, at `own` settings of this one; then its defaults, in fewer steps."""
    common = {"rank": 5} | own
    for case in (
        *grid(name, version=("v1", "v2", "v2+"), heads=(1, 2), spatial=(True, False)),
        *grid(name, version=("v2+",), heads=(1, 2), dual=(True,), cheese_factor=(1, 2)),
        *grid(name, dictionary=("frozen", "learned"), gradient=("one-step", "bptt")),
        Case(name, {"version": "v2+", "heads": 2, "cheese_factor": 4}),
        Case(name, {"latent": 6, "eval_steps": 2, "train_steps": 3}),
        Case(name, {"dictionary": "frozen", "spatial": False}),
    ):
        yield Case(name, common | dict(case.options))
    yield from (Case(name, {"eval_steps": 2}), Case(name, {"rank": 5, "eval_steps": 2}))


CASES = [
    Case("none"),
    *hamburgers("ham-nmf"),
    *hamburgers("ham-cd", inv_t=10.0),  # six steps at 100 magnify the rounding of float32
    *hamburgers("ham-vq", inv_t=10.0),
    *grid("ham-cd", rank=(5,), inv_t=(10.0,), ridge=(0.01, 2.0)),
    *grid("light-ham", rank=(5,), heads=(1, 2), spatial=(True, False)),
    Case("light-ham", {"rank": 5, "eval_steps": 3, "gradient": "one-step", "dictionary": "learned"}, 12),
    Case("light-ham", {"rank": 5}, 64),  # 32 groups of two channels; 12 make four groups of three
    *grid("self-attn", heads=(1, 2, 4), scale=(False, True), impl=("math", "sdpa")),
    *grid("non-local", mode=("embedded-gaussian", "gaussian"), sub_sample=(False, True), scale=(False, True)),
    *grid("non-local", mode=("dot-product", "concat"), sub_sample=(False, True)),
    *grid("ccnet", recurrence=(1, 2, 3)),
    Case("ccnet", channels=5),  # narrower than the eight that queries and keys are cut by
    *grid("emanet", rank=(5, 64), steps=(1, 3)),
    Case("emanet", {"momentum": 0.5}),
    *grid("a2", c_m=(None, 3), c_n=(None, 6)),
    *grid("danet", convs=(False, True)),
    Case("danet", channels=5),
    *grid("gcnet", pooling=("attention", "average"), fusion=("add", "mul"), ratio=(0.25, 0.5)),
    Case("gcnet", channels=3),  # a quarter of which is none
    *grid("dnl", temperature=(0.05, 1.0), scale=(False, True)),
    *grid("external", memory=(6, 64)),
    *grid("efficient", keys=(None, 4), values=(None, 6), heads=(1, 2)),
    Case("sagan"),
    Case("sagan", channels=5),
    *grid("se", reduction=(2, 16)),
    *grid("psp", width=(None, 3)),
    *grid("aspp", width=(None, 3), rate=(1, 6), kernel=(1, 3)),
    *grid("ann", width=(None, 5)),
    *grid("isa", width=(None, 5), cell=(2, 3, 8)),
    *grid("ocr", width=(None, 5), regions=(1, 4, 19)),
    *grid("apc", width=(None, 5), convs=(False, True)),
    *grid("dm", width=(None, 5), norm=(True, False)),
    *grid("mhsa", head_dim=(None, 1, 4)),
    Case("mhsa", channels=5),  # no divisor in common with 64 but one
    *grid("linear-attn", head_dim=(None, 4)),
    *grid("pooled-attn", pool=(1, 3, 7), head_dim=(None, 4)),  # 7: not above the sides of the image
    *grid("agent", agents=(2, 7), conv=(True, False), head_dim=(None, 4)),
    *grid("linformer", tokens=(5, 8, 256), head_dim=(None, 4)),
    *grid("nystrom", landmarks=(5, 8), iterations=(1, 6), head_dim=(None, 4)),
    Case("nystrom"),
    *grid("performer", features=(6, 40, 256), head_dim=(None, 4)),
    *grid("cosformer", head_dim=(None, 4)),
    *grid("fft", size=(1, 5, 14)),
    *grid("ssm", state=(1, 3), expand=(1, 2)),
    Case("ssm", channels=33),  # step sizes of rank three
]


@torch.no_grad()
def randomised(block: ContextBlock) -> ContextBlock:
    """All parameters and statistics away from their neutral starting values: no gate shut, no BN idle."""
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if name == "bases":
            tensor.mul_(1.5)  # a moving average of unit vectors has another length
        elif name.endswith("bases"):
            pass  # a ham's dictionary: random already, of unit length by its definition
        elif tensor.dim() > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        elif name.endswith((".bias", ".running_mean")):
            tensor.normal_()
        else:  # gates, scales of normalisations, variances
            tensor.uniform_(0.4, 1.4)
    return block


def weights_of(block: ContextBlock, x: torch.Tensor) -> dict[str, Array]:
    """The block's state in float64, with the dictionaries of channels, which are no part of it."""
    weights = {name: value.double().numpy() for name, value in block.state_dict().items()}
    for name, ham in block.named_modules():
        if isinstance(ham, Decomposition) and ham.bases is None:
            columns = x.new_empty(ham.heads, x.shape[2] * x.shape[3], ham.channels // ham.heads)
            weights[f"{name}.bases"] = ham.first_bases(columns).double().numpy()
    return weights


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_every_block_of_the_catalogue_has_a_reference_that_is_used() -> None:
    ours = {name for name in names() if info(name).cls.__module__.startswith("blocks.")}
    assert ours == set(REFERENCES) == {case.name for case in CASES}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_block_equals_its_formula(case: Case, dtype: torch.dtype) -> None:
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    block = randomised(create(case.name, case.channels, **case.options)).to(dtype).eval()
    x = torch.randn(BATCH, case.channels, HEIGHT, WIDTH, dtype=dtype)
    weights = weights_of(block, x)
    for image, output in zip(x.double().numpy(), block(x).double().numpy(), strict=True):
        expected = case.reference(weights, image)
        np.testing.assert_allclose(output, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        assert case.name == "none" or np.abs(expected - np.maximum(image, 0)).max() > 0.01, (
            "no context at all"
        )


def test_hash_of_the_references_gives_murmur3s_published_values() -> None:
    # MurmurHash3_x86_32 of the empty string is the finaliser of its seed.
    assert [murmur3_finaliser(seed) for seed in (0, 1, 0xFFFFFFFF)] == [0, 0x514E28B7, 0x81F16F39]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("decomposition", [NMF, CD, VQ])
def test_dictionary_of_channels_is_the_hash_of_positions(
    decomposition: type[Decomposition], heads: int
) -> None:
    kind = decomposition.__name__.lower()
    ham = create(f"ham-{kind}", 8, rank=3, heads=heads, spatial=False).eval().get_submodule("hams.0")
    assert isinstance(ham, decomposition)
    bases = ham.first_bases(torch.empty(2 * heads, 35, 8 // heads))  # two images
    expected = channel_dictionary(kind, (heads, 35, 3))
    np.testing.assert_allclose(
        bases, np.concatenate((expected, expected)), rtol=0, atol=1e-5
    )  # it is made in float32
