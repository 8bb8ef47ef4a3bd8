"""Mistakes told in one line."""


class UsageError(Exception):
    """Wrong usage or missing data: the command prints the message and exits with code 2."""


class WriteError(Exception):
    """Results could not be written: the command prints the message and exits with code 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
