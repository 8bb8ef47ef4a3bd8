"""Blocks as exported programs: `torch.export`, and ONNX in onnxruntime, agree with the block, or a limit says why not."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import blocks
from ctxbench.gate import relative_error, wake

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

CHANNELS = 16
EXAMPLE = (24, 16)  # larger than the pooled maps, cells and numbers of tokens
OTHER = (41, 27)  # nothing divides it, and it is longer than a piece of `ssm`
TOLERANCE = 1e-4
SMALL: dict[
    str, dict[str, Any]
] = {  # with 64 bases in 16 dimensions float32 itself may be beyond the tolerance
    name: {"rank": 4, "eval_steps": 2} for name in ("ham-nmf", "ham-cd", "ham-vq", "light-ham")
}
PATHS: list[tuple[str, dict[str, Any]]] = [
    ("ham-nmf", {"rank": 3, "eval_steps": 2, "version": "v2+", "dual": True}),
    ("ham-nmf", {"rank": 3, "eval_steps": 2, "spatial": False, "heads": 2}),
    ("ham-vq", {"rank": 3, "eval_steps": 2, "version": "v2", "dictionary": "learned"}),
    ("ham-vq", {"rank": 3, "eval_steps": 2, "spatial": False}),
    ("ham-vq", {"rank": 3, "eval_steps": 2, "version": "v2+", "dual": True}),
    ("self-attn", {"impl": "sdpa", "heads": 2}),
    ("non-local", {"mode": "concat", "sub_sample": True}),
    ("danet", {"convs": True}),
    ("gcnet", {"pooling": "average", "fusion": "mul"}),
    ("apc", {"width": 4, "convs": True}),
]
CASES = [(name, SMALL.get(name, {})) for name in blocks.names()] + PATHS
Run = Callable[[Tensor], Tensor]


def case_id(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={setting}" for key, setting in value.items()) or "defaults"
    return str(value)


def make(name: str, options: dict[str, Any]) -> blocks.ContextBlock:
    torch.manual_seed(0)
    return wake(blocks.create(name, CHANNELS, **options)).eval()


def sample(sides: tuple[int, int]) -> Tensor:
    return torch.randn(2, CHANNELS, *sides, generator=torch.Generator().manual_seed(1))


def exported(block: blocks.ContextBlock, *, open_sides: bool) -> ExportedProgram:
    sides = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if open_sides else None
    with torch.no_grad():
        return torch.export.export(block, (sample(EXAMPLE),), dynamic_shapes=(sides,))


def in_onnxruntime(program: ExportedProgram) -> Run:
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    file = io.BytesIO()
    converted.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # of a run that is meant to fail
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {entry.name: x.numpy()})[0])


@torch.no_grad()
def agrees(program: Run, block: blocks.ContextBlock, sides: tuple[int, int]) -> bool:
    x = sample(sides)
    return relative_error(program(x), block(x)) <= TOLERANCE


def fails(program: Run, block: blocks.ContextBlock, sides: tuple[int, int]) -> bool:
    """Whether it refuses these sides, or gives something else."""
    try:
        return not agrees(program, block, sides)
    except Exception:  # of torch, or of onnxruntime
        return True


@pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)
def test_a_block_exports_but_for_what_its_limits_say(name: str, options: dict[str, Any]) -> None:
    block, info = make(name, options), blocks.info(name)
    limits = {(it.program, it.sizes) for it in info.limits if it.applies(info.resolve(options))}
    program = exported(block, open_sides=True)

    run = program.module()
    assert agrees(run, block, EXAMPLE)
    assert fails(run, block, OTHER) == (("torch.export", True) in limits)

    if ("ONNX", False) in limits:
        with pytest.raises(torch.onnx.OnnxExporterError):
            in_onnxruntime(program)
        return
    runtime = in_onnxruntime(program)
    if ("ONNX", True) in limits:
        assert fails(runtime, block, OTHER)
        runtime = in_onnxruntime(exported(block, open_sides=False))
    else:
        assert agrees(runtime, block, OTHER)
    assert agrees(runtime, block, EXAMPLE)


def test_every_limit_is_tried() -> None:
    for name in blocks.names():
        info = blocks.info(name)
        tried = [info.resolve(options) for each, options in CASES if each == name]
        for limit in info.limits:
            if limit.only == ("impl", "triton"):
                continue  # needs a GPU
            assert any(map(limit.applies, tried)), (name, limit)
            assert limit.only is None or not all(map(limit.applies, tried)), (name, limit)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ham-nmf", {"rank": 4}),
        ("ham-cd", {"rank": 4, "dictionary": "learned"}),
        ("emanet", {"rank": 4}),
        ("psp", {}),
        ("ssm", {}),
    ],
    ids=case_id,
)
def test_training_exports_with_its_random_numbers_and_its_state(name: str, options: dict[str, Any]) -> None:
    block, x = make(name, options).train(), sample((9, 7))
    program = torch.export.export(copy.deepcopy(block), (x,)).module()
    outputs = []
    for each in (program, block):
        torch.manual_seed(2)
        outputs.append(each(x).detach())
    assert relative_error(*outputs) <= TOLERANCE
    state = dict(program.named_buffers())
    for key, buffer in block.named_buffers():
        assert torch.allclose(state[key], buffer, rtol=TOLERANCE), key
