"""The catalogue: how a block is registered, found, described and created."""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar

from blocks.base import ContextBlock

KINDS = {
    int: "a whole number below 2^31",
    float: "a number below 2^31",
    bool: "True or False",
    NoneType: "None",
}
LONGEST_TEXT = 1000
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class UnknownBlockError(ValueError):
    """A name that no block has; the message offers the nearest one."""


@dataclass(frozen=True)
class Paper:
    """The publication a block comes from."""

    title: str
    authors: str
    year: int
    venue: str
    url: str
    bibtex: str


@dataclass(frozen=True)
class Option:
    """One keyword option of a block: its default, its annotation and, for a closed set, the choices."""

    name: str
    default: Any
    annotation: Any

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that are accepted by name."""
        literal = [kind for kind in self._parts() if typing.get_origin(kind) is Literal]
        return tuple(itertools.chain.from_iterable(map(typing.get_args, literal)))

    @property
    def kind(self) -> str:
        """The accepted values, in words."""
        words = [*map(str, self.choices), *(KINDS.get(kind, str(kind)) for kind in self.types)]
        return ", ".join(words[:-1]) + " or " * (len(words) > 1) + words[-1]

    def _parts(self) -> tuple[Any, ...]:
        if typing.get_origin(self.annotation) in (UnionType, typing.Union):
            return typing.get_args(self.annotation)
        return (self.annotation,)

    @property
    def types(self) -> list[type]:
        """The types that are accepted, beside the choices."""
        return [kind for kind in self._parts() if typing.get_origin(kind) is not Literal]

    def check(self, value: Any) -> Any:
        """Return `value` in the option's own type, or raise ValueError that says what is accepted."""
        if any(type(value) is type(choice) and value == choice for choice in self.choices):
            return value
        for kind in self.types:
            converted = float(value) if kind is float and type(value) is int else value
            if type(converted) is kind and in_range(converted):
                return converted
        raise ValueError(f"{self.name}={value!r} is not accepted; use {self.kind}")


def in_range(value: object) -> bool:
    """Whether a number can be meant seriously: below 2^31, and neither infinite nor NaN."""
    return not isinstance(value, (int, float)) or abs(value) < 2**31


@dataclass(frozen=True)
class ExportLimit:
    """What an exported block cannot do.

    Attributes:
        program: what it is exported to.
        why: in a few words.
        sizes: it exports, and holds for the height and width of the example alone.
        only: the option with which this is so, and its value; None: always.
    """

    program: Literal["torch.export", "ONNX"]
    why: str
    sizes: bool = False
    only: tuple[str, Any] | None = None

    def applies(self, options: Mapping[str, Any]) -> bool:
        """Whether it concerns a block with these options (all of them, defaults included)."""
        return self.only is None or options[self.only[0]] == self.only[1]


@dataclass(frozen=True)
class BlockInfo:
    """What the catalogue knows of a block without building it."""

    name: str
    cls: type[ContextBlock]
    title: str
    family: str
    summary: str
    complexity: str
    formula: str
    paper: Paper | None
    limits: tuple[ExportLimit, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"block name {self.name!r} must match {NAME.pattern}")
        if not (inspect.isclass(self.cls) and issubclass(self.cls, ContextBlock)):
            raise ValueError(f"block {self.name!r} is not a subclass of ContextBlock")
        if missing := sorted(self.cls.__abstractmethods__):
            raise ValueError(f"block {self.name!r} does not define {', '.join(missing)}")
        texts = ("title", "family", "summary", "complexity", "formula")
        empty = [name for name in texts if not (isinstance(getattr(self, name), str) and getattr(self, name))]
        if empty:
            raise ValueError(f"block {self.name!r} lacks {', '.join(empty)}")
        for name in texts:
            try:
                getattr(self, name).encode()
            except UnicodeError:
                raise ValueError(f"block {self.name!r}: {name} holds what is no character") from None
        if long := [name for name in texts if len(getattr(self, name)) > LONGEST_TEXT]:
            raise ValueError(f"block {self.name!r}: {', '.join(long)} longer than {LONGEST_TEXT} characters")
        if not (self.paper is None or isinstance(self.paper, Paper)):
            raise ValueError(f"block {self.name!r}: paper must be a Paper or None")
        if not (isinstance(self.limits, tuple) and all(isinstance(it, ExportLimit) for it in self.limits)):
            raise ValueError(f"block {self.name!r}: limits must be a tuple of ExportLimit")
        if odd := [it.only[0] for it in self.limits if it.only and it.only[0] not in self.options]:
            raise ValueError(f"block {self.name!r} has no option {odd[0]!r}, which a limit names")

    @property
    def options(self) -> Mapping[str, Option]:
        return _options(self.cls)

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: option.default for name, option in self.options.items()}

    @property
    def place(self) -> str:
        """File and line of the class."""
        return f"{inspect.getsourcefile(self.cls)}:{inspect.getsourcelines(self.cls)[1]}"

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, the given ones checked and the others at their defaults.

        Raises:
            TypeError: for an option the block does not have; the message lists those it has.
            ValueError: for a value outside what the option accepts.
        """
        for name in given:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise TypeError(f"block {self.name!r} has no option {name!r}; its options: {known}")
        return {
            name: option.check(given[name]) if name in given else option.default
            for name, option in self.options.items()
        }


_catalogue: dict[str, BlockInfo] = {}
Class = TypeVar("Class", bound=type[ContextBlock])


def register(
    name: str,
    *,
    title: str,
    family: str,
    summary: str,
    complexity: str,
    formula: str,
    paper: Paper | None,
    limits: tuple[ExportLimit, ...] = (),
) -> Callable[[Class], Class]:
    """Class decorator that adds a `ContextBlock` to the catalogue.

    The block's options are the keyword-only parameters of its constructor, with their
    annotations and defaults. `limits` are what it cannot do when exported; none: it exports to both
    programs, for any height and width.

    Raises:
        ValueError: when the name is taken (both places are named), a field is empty, or an option
            lacks its annotation or default.
    """

    def add(cls: Class) -> Class:
        block = BlockInfo(name, cls, title, family, summary, complexity, formula, paper, limits)
        if name in _catalogue:
            raise ValueError(f"two blocks are called {name!r}: {_catalogue[name].place} and {block.place}")
        _options(cls)
        _catalogue[name] = block
        return cls

    return add


def names() -> list[str]:
    """The names of all blocks, sorted."""
    _discover()
    return sorted(_catalogue)


def info(name: str) -> BlockInfo:
    """What is known of the block called `name`.

    Raises:
        UnknownBlockError: with the nearest name.
    """
    _discover()
    if name in _catalogue:
        return _catalogue[name]
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known blocks: {', '.join(names())}"
    raise UnknownBlockError(f"unknown block {name!r}; {hint}")


def create(name: str, channels: int, /, **options: Any) -> ContextBlock:
    """Build the block called `name` for inputs of shape (B, channels, H, W).

    Raises:
        UnknownBlockError: no block has this name.
        TypeError: an option the block does not have.
        ValueError: a value that an option does not accept, or channels that do not fit it.

    >>> import torch
    >>> create("ham-nmf", 64, rank=8)(torch.rand(1, 64, 7, 5)).shape
    torch.Size([1, 64, 7, 5])
    """
    block = info(name)
    return block.cls(channels, **block.resolve(options))


@cache
def _discover() -> None:
    """Import every module beside this one, once: each registers the blocks it defines."""
    package = importlib.import_module("blocks")
    for module in pkgutil.iter_modules(package.__path__, "blocks."):
        importlib.import_module(module.name)


@cache
def _options(cls: type[ContextBlock]) -> Mapping[str, Option]:
    """Keyword-only constructor parameters, following `**options` up to the base classes."""
    found: dict[str, Option] = {}
    for owner in cls.__mro__:
        init = owner.__dict__.get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        try:
            annotations = typing.get_type_hints(init)
        except NameError as error:
            raise ValueError(f"an option of {cls.__name__} has an unknown annotation: {error}") from None
        for parameter in parameters:
            if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in found:
                continue
            if parameter.name not in annotations or parameter.default is parameter.empty:
                raise ValueError(
                    f"option {parameter.name!r} of {cls.__name__} needs an annotation and a default"
                )
            option = Option(parameter.name, parameter.default, annotations[parameter.name])
            if odd := [kind for kind in option.types if kind not in (*KINDS, str)]:
                raise ValueError(
                    f"option {option.name!r} of {cls.__name__} is of {odd[0]}; "
                    "use int, float, bool, str, None or Literal"
                )
            option.check(option.default)
            found[option.name] = option
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found
