"""Random numbers that follow from what they are for: equal names and numbers give equal draws."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(*about: str | int) -> Iterator[None]:
    """With torch's random numbers on the CPU started from these, and as they were afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed(*about))
        yield


def mixed(*about: str | int) -> int:
    """A seed for these: a name says what is drawn, so that no two uses share their numbers."""
    return int.from_bytes(hashlib.sha256(repr(about).encode()).digest()[:8], "big") >> 1
