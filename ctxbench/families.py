"""The families of the catalogue's blocks, read from their sources: importing them would load PyTorch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def families() -> dict[str, str]:
    """The family of every block that is registered in the package `blocks`."""
    package = find_spec("blocks")
    folders = package.submodule_search_locations if package else None
    paths = sorted(path for folder in folders or () for path in Path(folder).glob("*.py"))
    return dict(found for path in paths for found in registered(path.read_text(encoding="utf-8")))


def registered(source: str) -> Iterator[tuple[str, str]]:
    """Name and family in each `@register("name", ..., family="family", ...)` of a module."""
    if "@register(" not in source:
        return
    for node in ast.parse(source).body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
                given = [*call.args, *(it.value for it in call.keywords if it.arg == "family")]
                match [it.value for it in given if isinstance(it, ast.Constant)]:
                    case [str(name), str(family)]:
                        yield name, family
