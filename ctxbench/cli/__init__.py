"""The commands: each parses, calls one function, prints and sets the exit code."""

from ctxbench.cli import looking, reading, running, training
from ctxbench.cli.program import main

__all__ = ["looking", "main", "reading", "running", "training"]
