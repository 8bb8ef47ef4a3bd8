"""Files that are old or whole, whatever happens, and weights that are read without trust."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


class UnreadableError(ValueError):
    """A file that cannot be read as weights; the message says why."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one to write to; it takes this one's place when all is written and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_weights(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, tensors and plain values alone: no code in it is run.

    Raises:
        UnreadableError: for a file that cannot be opened, or whose content is anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # a damaged file may raise anything
        raise UnreadableError(f"{path} is no file of weights that can be loaded safely") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"{path} holds no dictionary of weights")
    return content
