"""What torch lets anyone set for the whole process, and measurements need to be the same for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ctxbench.environment import keep_freed_memory


@dataclass(frozen=True)
class Setting:
    """One setting of torch's: how it is read, how it is set, and its value while we measure."""

    get: Callable[[], Any]
    put: Callable[[Any], Any]
    value: Any


def attribute(owner: Any, name: str, value: Any) -> Setting:
    return Setting(lambda: getattr(owner, name), lambda new: setattr(owner, name, new), value)


def make_deterministic(wanted: bool) -> None:
    """Only where it changes something: `use_deterministic_algorithms` imports the whole compiler."""
    if torch.are_deterministic_algorithms_enabled() != wanted:
        torch.use_deterministic_algorithms(wanted)


CUDA, CUDNN = torch.backends.cuda, torch.backends.cudnn
BACKENDS: Any = torch.backends  # whose stubs lack the newer settings
PINNED = (
    # The older switches first: the newer ones set them as well, but do not clear them.
    attribute(CUDNN, "allow_tf32", False),
    attribute(BACKENDS, "fp32_precision", "ieee"),
    *(
        attribute(part, "fp32_precision", "ieee")
        for library, names in (
            (BACKENDS.cuda, ("matmul",)),
            (BACKENDS.cudnn, ("conv", "rnn")),
            (BACKENDS.mkldnn, ("matmul", "conv", "rnn")),
        )
        for part in (getattr(library, name) for name in names)
    ),
    attribute(CUDNN, "enabled", True),
    attribute(CUDNN, "benchmark", False),
    attribute(CUDNN, "deterministic", False),
    attribute(CUDA.matmul, "allow_fp16_reduced_precision_reduction", True),
    attribute(CUDA.matmul, "allow_bf16_reduced_precision_reduction", True),
    Setting(CUDA.flash_sdp_enabled, CUDA.enable_flash_sdp, True),
    Setting(CUDA.mem_efficient_sdp_enabled, CUDA.enable_mem_efficient_sdp, True),
    Setting(CUDA.math_sdp_enabled, CUDA.enable_math_sdp, True),
    Setting(CUDA.cudnn_sdp_enabled, CUDA.enable_cudnn_sdp, False),
    Setting(torch.is_grad_enabled, torch.set_grad_enabled, True),
    Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    Setting(torch.are_deterministic_algorithms_enabled, make_deterministic, False),
)


def pin(threads: int) -> None:
    """Set what would otherwise differ from one machine or version to the next.

    Threads as given. Full float32 in products and convolutions alike: out of the box, CUDA's
    convolutions round to TF32 and its matrix products do not, which would favour blocks made of
    convolutions. No search among cuDNN's kernels. Fused attention by flash, memory-efficient or
    unfused kernels; which of them ran is recorded with each cell.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    for setting in PINNED:
        setting.put(setting.value)


@contextlib.contextmanager
def restored() -> Iterator[list[bool]]:
    """Set back what a block sets: it would change the other blocks' times.

    Yields a list that holds, once this is left, whether each setting is what it was.
    """
    every = [*PINNED, Setting(torch.get_num_threads, torch.set_num_threads, 1)]
    before = [setting.get() for setting in every]
    kept: list[bool] = []
    try:
        yield kept
    finally:
        for setting, value in zip(every, before, strict=True):
            kept.append(setting.get() == value)
            if not kept[-1]:
                setting.put(value)
