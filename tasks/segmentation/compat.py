"""What mmsegmentation 1.2 needs to run beside today's packages, in one place.

mmsegmentation has had no release since 2023. Each function here mends one thing that has moved since.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from functools import cache
from importlib import metadata
from typing import Any

WINDOWS = {"mmsegmentation": ("1.2", "1.3"), "mmengine": ("0.10", "0.11")}


class MissingPackageError(ImportError):
    """mmsegmentation cannot be used here; the message says what to install."""


@cache
def prepare() -> None:
    """Make `import mmseg` work; call it before anything of mmseg is imported.

    Raises:
        MissingPackageError: if a package is missing or of another version.
    """
    check_versions()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_ops()
        importlib.import_module("mmseg.models")
    warnings.filterwarnings("ignore", module=r"mm(seg|engine|cv)\b.*")


def check_versions() -> None:
    """Whether the versions are those the adapters were written for."""
    from packaging.version import Version

    for name, (low, high) in WINDOWS.items():
        found = version(name)
        if found is None or not Version(low) <= Version(found) < Version(high):
            raise MissingPackageError(told(f"{name} >={low},<{high}", found))
    found = version("mmcv") or version("mmcv-lite")
    if found is None or not Version("2.0.0rc4") <= Version(found) < Version("2.2"):
        raise MissingPackageError(told("mmcv or mmcv-lite >=2.0,<2.2", found))


def told(wanted: str, found: str | None) -> str:
    there = f"{found} is installed" if found else "it is missing"
    return f'this task needs {wanted}, and {there}: pip install "ctxbench[seg]"'


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def import_ops() -> None:
    """Import mmcv.ops, whose compiled part mmcv-lite lacks, with a stand-in for that.

    The stand-in must go again: mmengine takes its presence for a full mmcv.
    """
    if importlib.util.find_spec("mmcv._ext") is not None:
        importlib.import_module("mmcv.ops")
        return

    class StandIn(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)

            def absent(*args: Any, **kwargs: Any) -> Any:
                raise MissingPackageError(f"mmcv-lite has no {name}: pip install mmcv")

            return absent

    sys.modules["mmcv._ext"] = StandIn("mmcv._ext")
    try:
        importlib.import_module("mmcv.ops")
    finally:
        del sys.modules["mmcv._ext"]
