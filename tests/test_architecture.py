"""Arrows point down: ctxbench -> tasks -> blocks, and nobody imports the command line."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
OURS = ("blocks", "tasks", "ctxbench")
MODULES = {
    path.relative_to(HERE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for package in OURS
    for path in sorted((HERE / package).rglob("*.py"))
}


def imports(path: str) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it, and of what it takes from them."""
    found = set()
    package = Path(path).parent.as_posix().replace("/", ".")
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = (above + (node.module or "")).rstrip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def packages(path: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def files(package: str) -> list[str]:
    found = [path for path in MODULES if path.startswith(f"{package}/")]
    assert found
    return found


@pytest.mark.parametrize(("package", "allowed"), [("blocks", {"blocks"}), ("tasks", {"tasks", "blocks"})])
def test_arrows_point_down(package: str, allowed: set[str]) -> None:
    for path in files(package):
        assert packages(path) & {*OURS, "tests"} <= allowed, path


def test_the_program_does_not_import_its_tests() -> None:
    assert [path for path in MODULES if "tests" in packages(path)] == []


def test_only_the_entry_point_imports_the_command_line() -> None:
    importers = [path for path in MODULES if any(name.startswith("ctxbench.cli") for name in imports(path))]
    importers = [path for path in importers if not path.startswith("ctxbench/cli/")]
    assert importers == ["ctxbench/__main__.py"]


def test_blocks_are_pure_pytorch() -> None:
    for path in files("blocks"):
        kernels = {"triton"} if path.startswith("blocks/kernels/") else set()
        assert packages(path) <= {"torch", "blocks", *kernels, *sys.stdlib_module_names}, path


def test_blocks_never_print() -> None:
    for path in files("blocks"):
        called = [node.func for node in ast.walk(MODULES[path]) if isinstance(node, ast.Call)]
        assert not [name for name in called if isinstance(name, ast.Name) and name.id == "print"], path
        assert "sys.stdout" not in imports(path), path


def test_what_reads_records_neither_measures_nor_builds_a_block() -> None:
    """Nothing downstream of the store measures."""
    alone = ("store", "record", "tables", "compare", "export", "benchmarks", "panels")
    for path in [
        *(f"ctxbench/{name}.py" for name in alone),
        *files("ctxbench/reports"),
        *files("ctxbench/figures"),
    ]:
        found = imports(path)
        forbidden = {
            "torch",
            "blocks",
            "ctxbench.measure",
            "ctxbench.cost",
            "ctxbench.runner",
            "ctxbench.spec",
        }
        assert not found & forbidden, path


def test_what_measures_does_not_format() -> None:
    """Nothing upstream of the store formats."""
    for path in (
        "spec",
        "cost",
        "gate",
        "measure",
        "subject",
        "settle",
        "workers",
        "runner",
        "statistics",
        "environment",
        "store",
        "taskcell",
        "segmentation",
        "generation",
        "training",
    ):
        found = imports(f"ctxbench/{path}.py")
        readers = ("ctxbench.tables", "ctxbench.figures", "ctxbench.reports", "ctxbench.console")
        assert not [name for name in found if name.startswith(readers)], path
