"""Blocks of the user's own: a Python file that registers them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from pathlib import Path

from ctxbench.errors import RAISED, UsageError, first_line


def load(path: Path) -> None:
    """Run the file, so that what it registers joins the catalogue. It is code: name only what you trust.

    Raises:
        UsageError: when it is absent or fails; a name that is taken is told with both places.
    """
    try:
        found = path.is_file()
    except OSError:  # a name that is too long, a folder that is closed
        found = False
    if not found:
        raise UsageError(f"--plugin: no file {path}")
    import blocks

    blocks.names()  # the catalogue comes first: a clash is then the plug-in's
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"ctxbench_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin: {path} is not a Python file")
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # inspect finds a class's source through it
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no result
            spec.loader.exec_module(module)
    except RAISED as error:
        sys.modules.pop(name, None)
        raise UsageError(f"--plugin: {path} failed: {type(error).__name__}: {first_line(error)}") from error
