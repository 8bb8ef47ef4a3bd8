"""Where worker processes come from: a server with torch loaded.

This module imports nothing heavy, so that the server can load torch while this process does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from typing import Any

from ctxbench.errors import UsageError


def context() -> Any:
    """What makes processes, in 0.2 s each instead of the seconds of a fresh interpreter.

    Raises:
        UsageError: on a system without process groups, which are ended as a whole.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise UsageError("worker processes need Linux or macOS; measure in this one with --executor inline")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["click", "ctxbench.preload"])
    return forkserver


def start_server() -> None:
    """Start the server ahead of its first use; if it cannot be started, its first use will say so."""
    context()
    from multiprocessing import forkserver

    # A Ctrl-C reaches the server too, which would say so at length while it is loading.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with contextlib.suppress(OSError, EOFError):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
