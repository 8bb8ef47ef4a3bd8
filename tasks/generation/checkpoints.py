"""Files with the weights of a GAN.

A file is what `torch.save` writes of a dictionary with the state dictionaries "generator", "discriminator" and
"average" (the generator that is scored), as `Generator` and `Discriminator` name their weights; anything else in
it is ignored. A file with "generator" alone serves where nothing is trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tasks.files import UnreadableError, read_weights
from tasks.generation.training import NETWORKS, Job, start

NAMED = 3


class CheckpointError(ValueError):
    """A file whose weights cannot be used; the message says why."""


def load(path: Path, job: Job) -> dict[str, dict[str, Tensor]]:
    """The weights of all three networks of this job.

    Raises:
        CheckpointError: if the file is no such dictionary, or weights are missing, too many or of other shapes.
    """
    try:
        content = read_weights(path)
    except UnreadableError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(content.get("generator"), dict):
        raise CheckpointError(f"{path} holds no 'generator'")
    state = start(job)
    content.setdefault("average", content["generator"])
    if job.steps == 0:
        content.setdefault("discriminator", state.discriminator.state_dict())
    found = {}
    for name in NETWORKS:
        if name not in content:
            raise CheckpointError(f"{path} holds no {name!r}, which training needs")
        wanted = getattr(state, name).state_dict()
        found[name] = checked(path, name, content[name], wanted)
    return found


def checked(path: Path, name: str, given: object, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dictionary if it is one of this network."""
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: {name!r} holds no weights")
    misfits = [key for key in wanted if not fits(given.get(key), wanted[key])]
    misfits += [str(key) for key in given if key not in wanted]
    if misfits:
        more = ", …" if len(misfits) > NAMED else ""
        raise CheckpointError(
            f"{path}: {len(misfits)} weights of {name!r} are missing, too many, of another shape or not finite: "
            f"{', '.join(misfits[:NAMED])}{more}"
        )
    return given


def fits(value: object, wanted: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and value.shape == wanted.shape
        and value.dtype == wanted.dtype
        and bool(value.isfinite().all())
    )
