"""Mistakes told in one line."""

import re

MAX_LENGTH = 10_000
PLACE = re.compile(r"\[enforce fail at [^\]]*\] [^.]*\. ")  # PyTorch's source line, before what it says
# What a block or a plug-in may raise: everything but the user's own interrupt.
RAISED = (Exception, SystemExit)


class UsageError(Exception):
    """Wrong usage or missing data: the command prints the message and exits with code 2."""


class RunError(Exception):
    """A run cannot go on: the command prints the message and exits with code 1."""


class WriteError(RunError):
    """Results could not be written."""


class DeviceLostError(RunError):
    """A block has left the device such that nothing else runs there in this process."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it says nothing."""
    try:
        text = str(error)
    except Exception:  # an error of the user's own may fail even at this
        text = ""
    lines = text.encode(errors="replace").decode().strip().splitlines()
    return PLACE.sub("", lines[0].strip(), count=1)[:MAX_LENGTH] if lines else type(error).__name__
