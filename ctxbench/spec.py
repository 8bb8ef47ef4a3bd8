"""From what the user typed to an ordered list of cells: the grid of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import blocks
from ctxbench.errors import RAISED, UsageError
from ctxbench.meta import meta_tensors

DTYPES = ("float32", "bfloat16", "float16", "float64")
MODES = ("infer", "train")
DEVICES = ("cpu", "cuda")

CONSTANTS = {"true": True, "false": False, "none": None}
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})(e[+-]?[0-9]+)?", re.IGNORECASE)
LARGEST = 2**31 - 1
MAX_SPECS = 10_000
MAX_VALUE = 100  # characters of an option's value
SPEC = re.compile(r"(?P<name>[^\[\]]+?)\s*(\[(?P<options>[^\[\]]*)\])?")


@dataclass(frozen=True)
class BlockSpec:
    """One block with all its options fixed; `typed` names those that the user asked for."""

    name: str
    options: tuple[tuple[str, Any], ...]
    typed: tuple[str, ...] = field(default=(), compare=False)

    @property
    def label(self) -> str:
        """The shortest spec that selects it: the options that differ from their defaults."""
        defaults = blocks.info(self.name).defaults
        given = [f"{k}={v}" for k, v in self.options if (type(v), v) != (type(defaults[k]), defaults[k])]
        return f"{self.name}[{','.join(given)}]" if given else self.name


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `id` is a hash of every field but the label, which follows from them."""

    block: str
    options: tuple[tuple[str, Any], ...]
    batch: int
    channels: int
    height: int
    width: int
    dtype: str
    mode: str
    compiled: bool
    device: str
    estimated: bool
    seed: int = 0
    label: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """16 hexadecimal digits, equal for equal cells and different for cells that differ anywhere."""
        fields = {it.name: getattr(self, it.name) for it in dataclasses.fields(self) if it.name != "label"}
        canonical = json.dumps(fields | {"options": dict(self.options)}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def kind(self) -> Literal["profile", "step", "task"]:
        """What is done with the block."""
        return "profile"

    @property
    def code(self) -> str:
        """Which code the outcome hangs on, beside the block's: see `environment.program_hash`."""
        return "profile"

    @property
    def columns(self) -> dict[str, Any]:
        """What its record says of the cell beside its block and input."""
        return {}

    @property
    def details(self) -> str:
        """What it is beside its block, in words."""
        return f"{'x'.join(map(str, self.shape))}  {self.dtype}  {self.mode}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the input."""
        return self.batch, self.channels, self.height, self.width

    @property
    def group(self) -> tuple[Any, ...]:
        """Cells of one group differ in the block alone; they are timed in interleaved rounds."""
        return *self.shape, self.dtype, self.mode, self.compiled, self.device, self.estimated

    @property
    def training(self) -> bool:
        return self.mode == "train"

    def create(self) -> blocks.ContextBlock:
        """The block of this cell, in the cell's mode."""
        return blocks.create(self.block, self.channels, **dict(self.options)).train(self.training)


C = TypeVar("C", bound=Cell)


@dataclass(frozen=True)
class Grid:
    """The axes of a run; `cells` is their product."""

    blocks: str
    resolutions: str = "32"
    channels: str = "512"
    batch: str = "1"
    modes: str = "infer"
    dtypes: str = "float32"
    device: str = "cpu"
    compiled: bool = False
    estimated: bool = False

    def cells(self) -> list[Cell]:
        """All cells, those of one group together, groups by rising number of pixels.

        Raises:
            UsageError: for anything that cannot be read, is not known or does not fit.
        """
        specs = parse_blocks(self.blocks)
        widths = parse_integers(self.channels, "--channels")
        for spec, channels in itertools.product(specs, widths):
            check_fit(spec, channels, self.compiled)
        shapes = sorted(
            itertools.product(
                parse_resolutions(self.resolutions), parse_integers(self.batch, "--batch"), widths
            ),
            key=lambda shape: shape[0][0] * shape[0][1] * shape[1] * shape[2],
        )
        dtypes = parse_choices(self.dtypes, DTYPES, "--dtypes")
        modes = parse_choices(self.modes, MODES, "--modes")
        if "float16" in dtypes and self.device == "cpu" and not self.estimated:
            raise UsageError("--dtypes float16 is for CUDA; on a CPU use bfloat16")
        return [
            Cell(
                block=spec.name,
                options=spec.options,
                batch=batch,
                channels=channels,
                height=height,
                width=width,
                dtype=dtype,
                mode=mode,
                compiled=self.compiled,
                device=self.device,
                estimated=self.estimated,
                label=spec.label,
            )
            for ((height, width), batch, channels), dtype, mode, spec in itertools.product(
                shapes, dtypes, modes, specs
            )
        ]


def share(cells: Sequence[C], text: str) -> list[C]:
    """The cells of shard "i/n", counted from 0: every n-th group, so that what is compared stays together.

    The shards of one plan are disjoint, and their union is the plan.

    Raises:
        UsageError: for anything but 0 <= i < n.
    """
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise UsageError(f"--shard: {text!r} is no shard; write 0/2 and 1/2 for two")
    number, count = int(match[1]), int(match[2])
    return [cell for members in groups(cells)[number::count] for cell in members]


def groups(cells: Sequence[C]) -> list[list[C]]:
    """What is timed together: cells that differ in the block alone."""
    return [list(members) for _, members in itertools.groupby(cells, key=lambda cell: cell.group)]


def parse_blocks(text: str) -> list[BlockSpec]:
    """Read "ham-*,ham-nmf[rank=16/64],self-attn" into specs, doubles dropped, order kept.

    Raises:
        UsageError: with the nearest name, the known options or the accepted values.
    """
    return list(dict.fromkeys(typed_blocks(text)))


def typed_blocks(text: str) -> list[BlockSpec]:
    """The same with doubles, which may differ in what was typed and what is default."""
    specs: list[BlockSpec] = []
    for item in split_specs(text):
        match = SPEC.fullmatch(item)
        if not match:
            raise UsageError(f"cannot read block {item!r}; write name or name[option=value,...]")
        grid = parse_options(item, match["options"] or "")
        if math.prod(map(len, grid.values())) > MAX_SPECS:
            raise UsageError(
                f"{item[:40]!r}... stands for more than {MAX_SPECS} blocks; write fewer alternatives"
            )
        for name in matching_names(match["name"]):
            for values in itertools.product(*grid.values()):
                specs.append(resolve(name, dict(zip(grid, values, strict=True))))
    if not specs:
        raise UsageError("--blocks is empty; name at least one block, or all")
    return specs


def split_specs(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    items = re.split(r",(?![^\[]*\])", text)
    return [item.strip() for item in items if item.strip()]


def parse_options(item: str, text: str) -> dict[str, list[Any]]:
    """Read "rank=16/64,spatial=False" into the alternatives of each option."""
    options: dict[str, list[Any]] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, values = (part.strip() for part in pair.partition("="))
        if not equals or not name or not values or "" in values.split("/"):
            raise UsageError(f"cannot read {pair!r} in {item!r}; write option=value or option=a/b")
        if name in options:
            raise UsageError(f"option {name!r} stands twice in {item!r}; write {name}=a/b")
        options[name] = [literal(readable(value)) for value in values.split("/")]
    return options


def readable(value: str) -> str:
    """A value that can be written down again.

    Raises:
        UsageError: if it is too long, or not text.
    """
    if len(value) > MAX_VALUE or value.encode(errors="replace").decode() != value:
        raise UsageError(f"cannot read {value[:40]!r}...; write at most {MAX_VALUE} characters of text")
    return value


def literal(text: str) -> Any:
    """A number, True, False or None, in Python's or in lower-case spelling; otherwise the text."""
    text = text.strip()
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text


def matching_names(pattern: str) -> list[str]:
    names = blocks.names()
    if pattern == "all":
        return names
    if any(mark in pattern for mark in "*?"):
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UsageError(f"no block matches {pattern!r}; known blocks: {', '.join(names)}")
        return found
    return [pattern]


def resolve(name: str, options: Mapping[str, Any]) -> BlockSpec:
    try:
        return BlockSpec(name, tuple(sorted(blocks.info(name).resolve(options).items())), tuple(options))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def check_fit(spec: BlockSpec, channels: int, compiling: bool) -> None:
    """Build the block without memory, so that what does not fit is known before the run."""
    try:
        with meta_tensors(compiling), contextlib.redirect_stdout(sys.stderr):
            blocks.create(spec.name, channels, **dict(spec.options))
    except ValueError as error:
        raise UsageError(f"{spec.label} with {channels} channels: {error}") from None
    except RAISED:  # not the user's mistake: the cell's record will tell it
        return


def parse_resolutions(text: str) -> list[tuple[int, int]]:
    """Read "32,64x128" into (height, width) pairs."""
    sizes = []
    for item in split_list(text, "--resolutions"):
        match = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", item)
        if not match or not all(int(side) for side in match.groups(match[1])):
            raise UsageError(
                f"--resolutions: {item!r} is not a size; write 64 or 64x128, sides from 1 to 999999"
            )
        sizes.append((int(match[1]), int(match[2] or match[1])))
    return list(dict.fromkeys(sizes))


def parse_integers(text: str, option: str) -> list[int]:
    values = split_list(text, option)
    for item in values:
        if not INTEGER.fullmatch(item) or not 0 < int(item) <= LARGEST:
            raise UsageError(f"{option}: {item[:40]!r} is not a whole number above 0 and below 2^31")
    return list(dict.fromkeys(map(int, values)))


def parse_choices(text: str, known: Iterable[str], option: str) -> list[str]:
    values = split_list(text, option)
    for item in values:
        if item not in known:
            raise UsageError(f"{option}: {item!r} is not known; choose from {', '.join(known)}")
    return list(dict.fromkeys(values))


def split_list(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UsageError(f"{option} is empty")
    return items
