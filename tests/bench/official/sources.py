"""Code of others: fetched at a fixed commit into a folder outside the project, and imported from there."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

Stubs = Mapping[str, Mapping[str, Any]]
SHORT = 7  # digits of a commit that are shown


class SourceError(Exception):
    """Code that cannot be had, in one line."""


@dataclass(frozen=True)
class Repository:
    """A public git repository at one commit. `licence` is what it says of itself."""

    url: str
    commit: str
    licence: str

    @property
    def name(self) -> str:
        """Owner and name."""
        return "/".join(self.url.removesuffix(".git").split("/")[-2:])

    @property
    def label(self) -> str:
        return f"{self.name}@{self.commit[:SHORT]}"

    def fetch(self, folder: Path) -> Path:
        """Its Python files at the commit, in `folder`; nothing is fetched that is there already.

        Raises:
            SourceError: when git cannot get it.
        """
        target = folder / f"{self.name.replace('/', '+')}@{self.commit[:12]}"
        with contextlib.suppress(SourceError):  # what is not whole is fetched again
            if target.is_dir() and self.is_at(target):
                return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            clone = Path(place) / "clone"
            git("clone", "--quiet", "--filter=blob:none", "--no-checkout", self.url, str(clone))
            git("-C", str(clone), "sparse-checkout", "set", "--no-cone", "*.py", "LICENSE*")
            git("-C", str(clone), "checkout", "--quiet", "--detach", self.commit)
            shutil.rmtree(target, ignore_errors=True)
            clone.rename(target)
        return target

    def is_at(self, clone: Path) -> bool:
        """Whether a clone holds the files of the commit, and as they were.

        Raises:
            SourceError: when it is no clone.
        """
        changed = git("-C", str(clone), "status", "--porcelain", "--untracked-files=no")
        return not changed and git("-C", str(clone), "rev-parse", "HEAD") == self.commit


@dataclass(frozen=True)
class Package:
    """An installed package, under the first of its names that is there."""

    names: tuple[str, ...]
    licence: str

    @property
    def label(self) -> str:
        for name in self.names:
            with contextlib.suppress(metadata.PackageNotFoundError):
                return f"{name} {metadata.version(name)}"
        return self.names[0]


@dataclass(frozen=True)
class Official:
    """One file of others.

    Attributes:
        source: where it is from.
        file: its path inside.
        root: the folder inside that its imports start from.
        stubs: modules it imports and does not need here, with the names that it takes from them.
        bare: packages whose `__init__` is not run, because it imports more than this file needs.
        also: further modules, whose names are added to those of the file.
    """

    source: Repository | Package
    file: str
    root: str = ""
    stubs: Stubs = field(default_factory=dict)
    bare: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.source.label}:{self.file}"

    @property
    def module(self) -> str:
        return self.file.removeprefix(self.root).strip("/").removesuffix(".py").replace("/", ".")

    def load(self, folder: Path) -> ModuleType:
        """The file as a module.

        Raises:
            SourceError: when it cannot be fetched or imported.
        """
        try:
            if isinstance(self.source, Package):
                if self.module.startswith(("mmseg", "mmcv")):
                    from tasks.segmentation import compat

                    compat.prepare()
                return importlib.import_module(self.module)
            root = self.source.fetch(folder) / self.root
            with importing(root, self.stubs, self.bare):
                module = importlib.import_module(self.module)
                for name in self.also:
                    module.__dict__.update(vars(importlib.import_module(name)) | vars(module))
                return module
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"{self.label} cannot be imported: {type(error).__name__}: {error}") from error


def git(*arguments: str) -> str:
    """What git prints.

    Raises:
        SourceError: with git's own last line.
    """
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=600
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SourceError(f"git cannot be run: {error}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SourceError(said[-1] if said else f"git {arguments[0]} failed")
    return done.stdout.strip()


@contextlib.contextmanager
def importing(root: Path, stubs: Stubs, bare: tuple[str, ...]) -> Iterator[None]:
    """Let `root` be where imports are looked for first, quietly; afterwards its modules are forgotten.

    Names such as `settings` or `network` mean another file in every repository.
    """
    before, path = dict(sys.modules), list(sys.path)
    tops = {entry.stem for entry in root.iterdir()}
    put: set[str] = set()

    def forget() -> None:
        for name in list(sys.modules):
            if name in put or name.partition(".")[0] in tops:
                del sys.modules[name]

    forget()
    sys.path.insert(0, str(root))
    try:
        for name, names in stubs.items():
            put |= put_module(name, names)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for name in bare:
                if above := name.rpartition(".")[0]:
                    importlib.import_module(above)
                put |= put_module(name, {"__path__": [str(root.joinpath(*name.split(".")))]})
            yield
    finally:
        sys.path[:] = path
        forget()
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def put_module(name: str, names: Mapping[str, Any]) -> set[str]:
    """Make a module that holds `names` and nothing else, and the packages above it that are not there."""
    sys.modules[name] = module = ModuleType(name)
    module.__dict__.update({"__path__": []} | dict(names))
    above = name.rpartition(".")[0]
    return {name} | (put_module(above, {}) if above and above not in sys.modules else set())
