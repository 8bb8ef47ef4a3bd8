"""Where worker processes come from: a server with torch loaded, or fresh interpreters where there is none.

This module imports nothing heavy, so that the server can load torch while this process does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import Any


def context() -> Any:
    """What makes processes: 0.3 s each from the server, seconds for a fresh one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["click", "ctxbench.preload"])
    return forkserver


def start_server() -> None:
    """Start the server ahead of its first use; if it cannot be started, its first use will say so."""
    if context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with contextlib.suppress(OSError):
            forkserver.ensure_running()
