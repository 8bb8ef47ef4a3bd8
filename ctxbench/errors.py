"""Mistakes of the user, told in one line."""


class UsageError(Exception):
    """Wrong usage or missing data: the command prints the message and exits with code 2."""
