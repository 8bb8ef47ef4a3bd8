"""From the name of a task to its grid."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from ctxbench.errors import UsageError

SPELLING = {"models": "--model", "cues": "--cue"}  # of options whose names are not those of the axes


class TaskGrid(Protocol):
    """What the user asked for, as typed."""

    def cells(self) -> list[Any]:
        """All cells.

        Raises:
            UsageError: for whatever is not known or cannot be read.
        """


def make_grid(task: str, preset: str | None, specs: str | None, **axes: Any) -> TaskGrid:
    """The grid of a task; without blocks the preset or each model brings its own.

    Args:
        axes: fields of the task's grid; None is what was not asked for.

    Raises:
        UsageError: for a task that there is not, packages that it needs, and axes that it does not have.
    """
    from tasks.generation.recipes import RECIPES as GENERATED
    from tasks.segmentation.recipes import RECIPES as SEGMENTED

    if task not in {**SEGMENTED, **GENERATED}:
        raise UsageError(f"{task!r} is no task; there are {', '.join((*SEGMENTED, *GENERATED))}")
    kind: Any
    try:
        if task in SEGMENTED:
            from ctxbench.segmentation import SegmentationGrid
            from tasks.segmentation import compat

            compat.prepare()
            kind = SegmentationGrid
        else:
            from ctxbench.generation import GenerationGrid
            from tasks import generation

            generation.prepare()
            kind = GenerationGrid
    except ImportError as error:
        raise UsageError(str(error)) from None
    given = {name: value for name, value in axes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := [SPELLING.get(name, f"--{name}") for name in given if name not in known]:
        raise UsageError(f"{', '.join(unknown)}: not for {task}")
    return kind.of(task, preset, specs, **given)


def is_generation(task: str) -> bool:
    """Whether the task is one of making images."""
    from tasks.generation.recipes import RECIPES

    return task in RECIPES
