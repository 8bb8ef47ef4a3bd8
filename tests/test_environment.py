"""What numbers depend on is set where it can be set, and told where it cannot."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ctxbench import environment

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
PROGRAM = """
import json, resource, statistics, sys
import torch
from ctxbench import environment, pinning

if sys.argv[1:] == ["pinned"]:
    pinning.pin(1)
faults = []
for _ in range(25):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24) + torch.ones(2**24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps({"faults": statistics.median(faults[5:]), "flags": environment.flags()}))
"""


def run(*arguments: str, **variables: str) -> dict[str, Any]:
    unset = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environ = unset | {"PYTHONPATH": str(Path(__file__).parents[1])} | variables
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return json.loads(subprocess.run(command, env=environ, capture_output=True, check=True, text=True).stdout)


@GLIBC
def test_memory_is_not_fetched_anew_for_each_call() -> None:
    pages = 2**24 * 4 / os.sysconf("SC_PAGE_SIZE")
    found = run("pinned")
    assert found["faults"] < pages / 100
    assert found["flags"]["freed_memory"] == "kept"


@GLIBC
def test_who_tuned_malloc_is_left_alone() -> None:
    found = run("pinned", MALLOC_TRIM_THRESHOLD_="131072")
    assert "freed_memory" not in found["flags"]
    assert found["flags"]["MALLOC_TRIM_THRESHOLD_"] == "131072"
    assert found["faults"] == pytest.approx(run(MALLOC_TRIM_THRESHOLD_="131072")["faults"], rel=0.2)


def test_a_preloaded_allocator_is_told_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/private/libjemalloc.so.2")
    assert environment.flags()["LD_PRELOAD"] == "libjemalloc.so.2"
    assert "freed_memory" not in environment.flags()


def test_places_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "/somewhere/private")
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    assert "TORCH_HOME" not in environment.flags()
    assert environment.flags()["OMP_PROC_BIND"] == "close"


def test_copies_of_files_do_not_fill_a_container(tmp_path: Path) -> None:
    assert environment.free_in_cgroup(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 100\nfile 800\ninactive_file 700\nactive_file 100\n")
    assert environment.free_in_cgroup(tmp_path) == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.free_in_cgroup(tmp_path) == float("inf")
