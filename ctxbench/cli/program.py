"""The program: a group of commands whose mistakes are told in one line, and its exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ctxbench import __version__
from ctxbench.errors import RunError, UsageError

OK, SOME_FAILED, WRONG_USAGE, REGRESSION, INTERRUPTED = 0, 1, 2, 3, 130


LOST = (errno.ENOENT, errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EBADF)


class InterruptedRun(Exception):  # noqa: N818, it is no error
    """The user stopped a run; what is finished is kept."""


class Program(click.Group):
    """A group whose commands return their exit code, and whose mistakes are told in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        # A terminal that cannot show a character gets a question mark, and SIGTERM ends like Ctrl-C.
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115, it was closed
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, end)
        try:
            Path.cwd()
            code = super().main(*args, **(extra | {"standalone_mode": False}))
            sys.stdout.flush()
        except click.ClickException as error:
            code = say(error.format_message(), WRONG_USAGE)
        except UsageError as error:
            code = say(str(error), WRONG_USAGE)
        except RunError as error:
            code = say(str(error), SOME_FAILED)
        except InterruptedRun as error:
            code = say(str(error), INTERRUPTED)
        except OSError as error:
            code = self.unwritable(error)
        except click.Abort:
            code = say("interrupted", INTERRUPTED)
        sys.exit(code)

    def unwritable(self, error: OSError) -> int:
        """A folder that is gone, or output that goes nowhere; anything else is a defect of ours."""
        if error.filename is not None or error.errno not in LOST:
            raise error
        if isinstance(error, FileNotFoundError):
            return say("the current folder has been removed; change into another", WRONG_USAGE)
        with contextlib.suppress(OSError):  # what is left in the buffer cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return say(f"cannot write to standard output: {error.strerror}", SOME_FAILED)


def end(number: int, frame: FrameType | None) -> None:
    """End like Ctrl-C, once: who asks again, while the run is being ended, changes nothing.

    Raises:
        KeyboardInterrupt: always.
    """
    signal.signal(
        number, signal.SIG_IGN
    )  # Python leaves that alone when it exits; its own handlers it takes away
    signal.default_int_handler(number, frame)


def say(message: str, code: int) -> int:
    """One line on standard error; returns the exit code that goes with it."""
    line = " ".join(message.split())
    click.echo("ctxbench: " + "".join(mark for mark in line if mark.isprintable()), err=True)
    return code


@click.group(
    cls=Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="ctxbench")
@click.pass_context
def main(context: click.Context) -> None:
    """What a global-context block of a vision network costs, measured the same way for all."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
