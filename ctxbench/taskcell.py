"""Tasks as cells of a run: what all of them are, and how what is typed of them is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import blocks
from ctxbench.errors import UsageError
from ctxbench.spec import BlockSpec, Cell

if TYPE_CHECKING:
    from ctxbench.measure import Settings
    from ctxbench.monitor import Monitor
    from ctxbench.outcome import Outcome

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TaskCell(Cell):
    """One training: networks with one block in their slots, by one protocol, from one seed.

    Attributes:
        task, preset: name the recipe.
        model: the networks.
        data: digest of the data; "": not there.
        iterations: instead of the recipe's.
        checkpoint: digest of the file with the first weights; "": none.
        processes: how many train the networks together.
    """

    task: str = ""
    preset: str = ""
    model: str = ""
    data: str = ""
    iterations: int | None = None
    checkpoint: str = ""
    processes: int = 1

    starts: ClassVar[str]  # what, in a working folder, tells that a training has begun

    @property
    def kind(self) -> Literal["profile", "step", "task"]:
        return "task"

    @property
    def group(self) -> tuple[Any, ...]:
        """Each is trained by itself."""
        return (self.id,)

    @property
    def details(self) -> str:
        return f"{self.model}  {self.dataset}  {self.dtype}  seed {self.seed}"

    @property
    def columns(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "preset": self.preset,
            "model": self.model,
            "dataset": self.dataset,
            "train_iterations": self.steps,
            "first_weights": self.first_weights,
            "protocol_json": json.dumps(self.protocol),
        }

    @property
    def dataset(self) -> str:
        """The name of the data."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """All iterations."""
        raise NotImplementedError

    @property
    def first_weights(self) -> str:
        """Where training starts, in words."""
        raise NotImplementedError

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare a score with another."""
        raise NotImplementedError

    def missing(self, data_root: Path) -> str | None:
        """What is not where it should be, and how to get it; None if all is there."""
        raise NotImplementedError

    def prepare(self, folder: Path) -> None:
        """Make the data that can be made, in the run's folder."""

    def check_weights(self, settings: Settings) -> None:
        """See whether the user's files fit.

        Raises:
            UsageError: naming what does not.
        """

    def notice(self) -> str | None:
        """What the user should know before the training begins."""
        return None

    def train(self, settings: Settings, monitor: Monitor) -> Outcome:
        """Train through to the end, score, and keep what came of it in the run's folder."""
        raise NotImplementedError


def trained_with(spec: BlockSpec, shape: tuple[int, int, int, int], **fields: Any) -> dict[str, Any]:
    """The fields of a cell that is trained with this block, all that training leaves no choice of included.

    Args:
        shape: (B, C, H, W) of the block's input; H and W are the images' where they hang on the network.
        fields: dtype, device and seed.
    """
    batch, channels, height, width = shape
    return fields | {
        "block": spec.name,
        "options": spec.options,
        "label": spec.label,
        "batch": batch,
        "channels": channels,
        "height": height,
        "width": width,
        "mode": "train",
        "compiled": False,
        "estimated": False,
    }


def listed(text: str, known: Any, option: str) -> list[str]:
    """The words between commas, each of which must be known (None: be a whole number from 0 up).

    Raises:
        UsageError: naming the word and what there is.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if known is None and not (word.isascii() and word.isdigit() and len(word) < 10):
            raise UsageError(f"{option}: {word!r} is no whole number from 0 up; write 0,1,2")
        if known is not None and word not in known:
            raise UsageError(f"{option}: {word!r} is not known; choose from {', '.join(known)}")
    if not words:
        raise UsageError(f"{option} is empty")
    return words


def parse_seeds(text: str) -> list[int]:
    return list(dict.fromkeys(int(word) for word in listed(text, None, "--seeds")))


def choose_preset(task: str, presets: Mapping[str, Any], preset: str) -> Any:
    """The recipe of this name.

    Raises:
        UsageError: with those that there are.
    """
    if preset not in presets:
        raise UsageError(f"--preset: {preset!r} is not known; {task} has {', '.join(presets)}")
    return presets[preset]


def fitted(spec: BlockSpec, usual: Mapping[str, Any]) -> BlockSpec:
    """The block with these options where no others were asked for."""
    info = blocks.info(spec.name)
    known = {name: value for name, value in usual.items() if name in info.options}
    typed = {name: value for name, value in spec.options if name in spec.typed}
    return BlockSpec(spec.name, tuple(sorted(info.resolve(known | typed).items())), spec.typed)


def digest_of(path: Path, option: str) -> str:
    try:
        if not path.is_file() and path.exists():
            raise UsageError(f"{option}: {path} is no regular file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UsageError(f"{option}: cannot read {path}: {error.strerror}") from None
