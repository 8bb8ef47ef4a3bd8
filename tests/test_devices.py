"""Which devices a run may use, and that none is measured twice at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from ctxbench import devices
from ctxbench.devices import Device, find, lock
from ctxbench.errors import RunError
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor
from ctxbench.workers import settle_in_workers

HOLDER = """
import sys, time
from pathlib import Path
from ctxbench.devices import lock
with lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it is killed."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_device_is_held_by_one_run_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    told = []
    with hold(tmp_path / "lock") as other:

        def kill(text: str) -> None:
            told.append(text)
            other.kill()

        with lock(tmp_path / "lock", kill):
            pass
    assert told == ["waiting for another run on this device"]


def test_a_free_device_is_taken_without_a_word(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path / "lock", pytest.fail):
            pass


def test_a_lock_that_cannot_be_had_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "somebody's file")
    with lock(tmp_path / "lock", pytest.fail):
        assert not (tmp_path / "somebody's file").exists(), "a link is not followed"


def test_the_cpu_is_one_device_without_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "lock", pytest.fail)
    (cpu,) = find("cpu")
    assert (cpu.kind, cpu.variables) == ("cpu", {})
    with cpu.alone():
        pass


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "2"]), ("3,5,7", ["3", "7"])])
def test_gpus_of_the_first_ones_model_are_found_and_each_is_seen_alone(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    models = ["H200", "A100", "H200"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(models))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda number: types.SimpleNamespace(name=models[number], uuid=f"uuid-{number}"),
    )
    if visible is None:
        monkeypatch.delenv(devices.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(devices.VISIBLE, visible)
    found = find("cuda")
    assert [device.name for device in found] == ["uuid-0", "uuid-2"]
    assert [device.variables for device in found] == [{devices.VISIBLE: each} for each in expected]


def test_a_device_is_locked_by_its_own_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    with Device("cuda", "uuid-1", "1").alone():
        assert [path.name for path in tmp_path.iterdir()] == ["ctxbench-uuid-1.lock"]


def test_one_devices_lock_keeps_nobody_off_another(tmp_path: Path) -> None:
    with hold(tmp_path / "lock") as other:
        with lock(tmp_path / "another", pytest.fail):
            pass
        other.kill()


def test_without_gpus_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find("cuda") == []


@pytest.mark.parametrize(("visible", "expected"), [(None, {}), ("GPU-1", {"CUDA_VISIBLE_DEVICES": "GPU-1"})])
def test_a_device_changes_no_more_variables_than_it_must(
    visible: str | None, expected: dict[str, str]
) -> None:
    assert Device("cuda", "uuid-1", visible).variables == expected


def test_a_pipe_in_the_locks_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with lock(tmp_path / "lock", pytest.fail):
        pass


def test_where_there_are_no_locks_a_run_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path / "lock", pytest.fail):
        pass


def test_without_a_device_there_is_no_run() -> None:
    with pytest.raises(RunError, match="no device"):
        list(settle_in_workers([[]], Settings(), [], Monitor()))
