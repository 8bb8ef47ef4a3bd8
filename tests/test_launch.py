"""Processes that train together find one another under torchrun and under Slurm's srun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import launch

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
PROCESS = """
import torch
from tasks import launch

rank = launch.join_processes("cpu")
total = torch.tensor(float(rank + 1))
torch.distributed.all_reduce(total)
print(rank, launch.processes(), total.item())
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *STEP):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def step(monkeypatch: pytest.MonkeyPatch, **other: str) -> None:
    for name, value in (STEP | other).items():
        monkeypatch.setenv(name, value)


def test_without_others_nothing_is_joined() -> None:
    assert launch.join_processes("cpu") == 0
    assert launch.processes() == 1


def test_tasks_of_srun_get_the_names_that_torch_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch)
    launch.adopt_slurm()
    assert [os.environ[name] for name in NAMES[:4]] == ["2", "1", "1", "127.0.0.1"]
    assert int(os.environ["MASTER_PORT"]) in launch.PORTS


def test_two_steps_of_a_job_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for number in range(10):
        step(monkeypatch, SLURM_STEP_ID=str(number))
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        launch.adopt_slurm()
        ports.add(os.environ["MASTER_PORT"])
    assert len(ports) == 10


def test_a_batch_script_itself_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    launch.adopt_slurm()
    assert "WORLD_SIZE" not in os.environ


def test_what_torchrun_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "1")
    launch.adopt_slurm()
    assert "RANK" not in os.environ


def test_over_several_nodes_scontrol_names_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\ntest "$3" = "node[3-4]" && printf "node3\\nnode4\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    step(monkeypatch, SLURM_STEP_NUM_NODES="2")
    launch.adopt_slurm()
    assert os.environ["MASTER_ADDR"] == "node3"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORLD_SIZE": "two"}, "invalid literal"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_JOB_ID' is not set"),
        (STEP | {"SLURM_STEP_NUM_NODES": "2", "PATH": ""}, "scontrol"),
    ],
)
def test_what_cannot_be_joined_is_told(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], words: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(launch.JoinError, match=words):
        launch.join_processes("cpu")


def test_two_tasks_of_srun_join() -> None:
    environ = os.environ | STEP | {"PYTHONPATH": str(Path(__file__).parents[1])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=environ | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    assert [process.communicate(timeout=120)[0].split() for process in started] == [
        ["0", "2", "3.0"],
        ["1", "2", "3.0"],
    ]
