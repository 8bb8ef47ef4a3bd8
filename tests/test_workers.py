"""Whatever a cell does, its misfortune is one record, and the run and the other cells go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

HERE = Path(__file__).parents[1]

PLUGIN = """
import ctypes, os, re, signal, subprocess, sys, threading, time
from pathlib import Path
import torch
from torch import Tensor
from blocks import ContextBlock, register

def add(name, act, large=False):
    @register(name, title="Mine", family="mine", summary="misbehaves", complexity="O(n)",
              formula="Y = X", paper=None)
    class Mine(ContextBlock):
        def forward(self, x: Tensor) -> Tensor:
            if x.device.type == "cpu" and (x.shape[-1] == 8 or not large):  # not while it is estimated
                act()
            return x
        def macs(self, height: int, width: int) -> int:
            return 0
        def param_count(self) -> int:
            return 0

def spin():
    while True:
        pass

def spin_on():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # left behind"])
    spin()

def eat():
    kept = []
    while True:
        kept.append(torch.ones(2**26))

add("spins", spin)
add("spins-on", spin_on)
add("eats", eat)
add("aborts", os.abort)
add("faults", lambda: ctypes.string_at(0))
add("killed", lambda: os.kill(os.getpid(), signal.SIGKILL))
add("leaves", lambda: os._exit(0))
add("prints", lambda: print("noise"))

def interrupt():
    raise KeyboardInterrupt("mine")

add("interrupts", interrupt)

def pipe():
    frame = sys._getframe()
    while "speaker" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["speaker"].file

add("garbles", lambda: (pipe().write(b"no message\\n"), pipe().flush()))
add("falters", lambda: (pipe().write(b"half a mess"), pipe().flush(), spin()))
add("starts", lambda: subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True))
add("keeps-the-lock", lambda: re.match("(a+)+$", "a" * 60 + "b"))
add("meddles", lambda: torch.set_num_threads(torch.get_num_threads() + 1), large=True)

def linger():
    if threading.active_count() < 5:
        threading.Thread(target=time.sleep, args=(300,)).start()

add("lingers", linger)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "plugin.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "ctxbench", "profile", "--plugin", "plugin.py", "--channels", "16"]
    command += ["--resolutions", "8", "--budget", "0", "--out", "run", "--json", *arguments]
    environ = {name: value for name, value in os.environ.items() if name != "CTXBENCH_EXECUTOR"}
    environ |= {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=pipe, stderr=pipe, text=True)


def profile(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the records by block."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=200)
    assert "Traceback" not in err
    return process.returncode, {record["spec"]: record for record in json.loads(out)}


def processes_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_nobody_is_left(folder: Path) -> None:
    for _ in range(100):
        if not processes_in(folder):
            return
        time.sleep(0.1)
    raise AssertionError([process.cmdline() for process in processes_in(folder)])


def test_every_misfortune_is_one_record_and_the_others_are_measured(tmp_path: Path) -> None:
    code, records = profile(
        tmp_path,
        "--blocks",
        "none,aborts,faults,killed,leaves,eats,interrupts,prints,garbles,starts,meddles,ham-nmf[rank=4]",
        "--timeout",
        "60",
    )
    assert code == 1
    assert {name: record["status"] for name, record in records.items()} == {
        "none": "ok",
        "aborts": "crashed",
        "faults": "crashed",
        "killed": "crashed",
        "leaves": "crashed",
        "eats": "oom",
        "interrupts": "crashed",
        "prints": "ok",
        "garbles": "crashed",
        "starts": "ok",
        "meddles": "invalid",
        "ham-nmf[rank=4]": "ok",
    }
    assert "SIGABRT" in records["aborts"]["reason"]
    assert "SIGSEGV" in records["faults"]["reason"]
    assert "SIGKILL" in records["killed"]["reason"]
    assert "exit code 0" in records["leaves"]["reason"]
    assert "allocate" in records["eats"]["reason"]
    assert "wrote into the pipe" in records["garbles"]["reason"]
    assert "torch's own settings" in records["meddles"]["reason"]
    assert "KeyboardInterrupt: mine" in records["interrupts"]["reason"]
    assert len(list((tmp_path / "run" / "records").iterdir())) == 12
    assert_nobody_is_left(tmp_path)


@pytest.mark.parametrize("block", ["spins", "spins-on", "falters"])
def test_a_cell_that_hangs_is_given_up_and_leaves_nobody_behind(tmp_path: Path, block: str) -> None:
    started = time.monotonic()
    code, records = profile(tmp_path, "--blocks", f"{block},none", "--timeout", "5")
    assert time.monotonic() - started < 60
    assert code == 1
    assert (records[block]["status"], records["none"]["status"]) == ("timeout", "ok")
    assert records[block]["reason"] == "took more than 5 s"
    assert 5 <= records[block]["wall_s"] < 10
    assert_nobody_is_left(tmp_path)


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda blow: blow.name)
def test_a_run_that_is_ended_leaves_nobody_behind_and_goes_on_later(
    tmp_path: Path, blow: signal.Signals
) -> None:
    process = start(tmp_path, "--blocks", "spins,none", "--resolutions", "8")
    assert process.stderr is not None
    assert "measuring 2 blocks" in process.stderr.readline()
    process.send_signal(blow)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if blow == signal.SIGKILL else 130)
    if blow != signal.SIGKILL:
        assert "interrupted; resume with: ctxbench profile --plugin plugin.py" in err
    assert_nobody_is_left(tmp_path)
    code, records = profile(tmp_path, "--blocks", "none")
    assert (code, records["none"]["status"]) == (0, "ok")


def test_a_block_that_keeps_pythons_lock_does_not_outlive_the_run(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("it is Linux that ends it")
    process = start(tmp_path, "--blocks", "keeps-the-lock,none")
    assert process.stderr is not None
    assert "measuring 2 blocks" in process.stderr.readline()
    time.sleep(2)
    process.kill()
    process.communicate(timeout=60)
    assert_nobody_is_left(tmp_path)


@pytest.mark.parametrize("block", ["spins-on", "spins"])
def test_many_signals_end_a_run_as_one_does(tmp_path: Path, block: str) -> None:
    process = start(tmp_path, "--blocks", f"{block},none")
    assert process.stderr is not None
    assert "measuring 2 blocks" in process.stderr.readline()
    time.sleep(1)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; resume with" in err
    assert_nobody_is_left(tmp_path)


def test_what_a_cell_would_cost_is_known_even_if_it_never_returns(tmp_path: Path) -> None:
    _, records = profile(tmp_path, "--blocks", "aborts,spins,none", "--timeout", "3")
    for name, status in (("aborts", "crashed"), ("spins", "timeout")):
        assert records[name]["status"] == status
        assert records[name]["macs_counted"] == 0
        assert records[name]["memory_predicted_bytes"] == records["none"]["memory_predicted_bytes"]
        assert records[name]["latency_ms_median"] is None


TWO_DEVICES = """
import sys
from pathlib import Path
from ctxbench import plugins, workers
from ctxbench.devices import Device
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor
from ctxbench.settle import batches
from ctxbench.spec import Grid

if __name__ == "__main__":
    plugins.load(Path("plugin.py"))
    cells = Grid("none,logs", resolutions="4,5,6,7,8,9", channels="8").cells()
    settings = Settings(budget_s=0, plugins=(Path("plugin.py").resolve(),))
    slots = [Device("cpu", "a"), Device("cpu", "b")]
    for it in workers.settle_in_workers(batches(cells), settings, slots, Monitor()):
        print(it.cell.id, it.outcome.status)
    print(len(cells))
"""


def test_two_devices_work_side_by_side_and_each_on_one_group_at_a_time(tmp_path: Path) -> None:
    log = "lambda: open(f'{os.getpid()}.log', 'a').write(f'{time.monotonic()}\\n') and time.sleep(0.05)"
    (tmp_path / "plugin.py").write_text(f"import time\n{PLUGIN}\nadd('logs', {log})\n")
    (tmp_path / "program.py").write_text(TWO_DEVICES)
    environ = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    *cells, total = done.stdout.split("\n")[:-1]
    assert len(cells) == len(set(cells)) == int(total) == 12
    assert {line.split()[1] for line in cells} == {"ok"}
    spans = []
    for path in tmp_path.glob("*.log"):
        times = [float(line) for line in path.read_text().split()]
        spans.append((min(times), max(times)))
    assert len(spans) == 6, "a worker for each group"
    most = max(sum(start <= moment <= end for start, end in spans) for moment, _ in spans)
    assert most == 2


def test_a_thread_that_a_block_leaves_running_keeps_nobody_waiting(tmp_path: Path) -> None:
    started = time.monotonic()
    _, records = profile(tmp_path, "--blocks", "lingers,none", "--timeout", "600")
    assert {record["status"] for record in records.values()} <= {"ok"}
    assert time.monotonic() - started < 60
    assert_nobody_is_left(tmp_path)


def test_a_run_outlives_the_server_of_its_workers(tmp_path: Path) -> None:
    process = start(tmp_path, "--blocks", "none,ham-nmf[rank=4]", "--resolutions", "8,9,10,11,12,13")
    assert process.stderr is not None
    assert "measuring 2 blocks" in process.stderr.readline()
    servers = [
        child for child in psutil.Process(process.pid).children() if "forkserver" in str(child.cmdline())
    ]
    assert len(servers) == 1
    servers[0].kill()
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert [record["status"] for record in json.loads(out)] == ["ok"] * 12
    assert_nobody_is_left(tmp_path)
