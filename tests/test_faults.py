"""Kills at random moments, full disks, and several processes that write one run."""

from __future__ import annotations

import json
import os
import random
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import blocks
from ctxbench.record import Record
from ctxbench.store import RunStore

HERE = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "ctxbench", "profile", "--budget", "0", "--channels", "8", "--out", "run"]
KILLS = 20
MAY_DIFFER = ("latency", "reference", "images", "calls", "wall", "load", "first_call", "iterations", "clock")
MAY_DIFFER += ("created_utc", "rounds_id", "converged", "git_", "run_id")


def environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "CTXBENCH_EXECUTOR"}
    return kept | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, **extra: Any) -> subprocess.Popen[str]:
    """The command, in a folder of its own; what it prints goes nowhere, or into pipes."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | extra
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=environ(), text=True, **quiet)


def finish(folder: Path, *arguments: str) -> list[Record]:
    """Run the command to its end; the records in its folder by their ids."""
    assert start(folder, *arguments).wait(timeout=280) == 0
    return records(folder)


def records(folder: Path) -> list[Record]:
    found, unreadable = RunStore.open(folder / "run").read()
    assert unreadable == []
    return found


def steady(record: Record) -> dict[str, Any]:
    """What two runs of one cell have in common."""
    return {k: v for k, v in record.model_dump().items() if not k.startswith(MAY_DIFFER)}


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """Every record's time of writing and text."""
    paths = [path for path in (folder / "run" / "records").glob("*.json") if path.is_file()]
    return {path.name: (path.stat().st_mtime_ns, path.read_text()) for path in paths}


@pytest.mark.timeout(900)
def test_a_run_killed_at_random_moments_is_in_the_end_what_it_would_have_been(tmp_path: Path) -> None:
    plan = ("--blocks", "none,ham-nmf[rank=4]", "--resolutions", ",".join(map(str, range(4, 44))))
    draw = random.Random(0).uniform
    kept: dict[str, tuple[int, str]] = {}
    progress = []
    for _ in range(KILLS):
        process = start(tmp_path, *plan, stderr=subprocess.PIPE)
        assert process.stderr is not None
        for line in process.stderr:  # until the first group is begun
            if line.startswith("measuring"):
                break
        time.sleep(
            draw(0, 1.2) * (1 if kept else 1 + len(progress))
        )  # a slow machine has recorded nothing yet
        process.kill()
        process.communicate(timeout=60)
        now = files(tmp_path)
        assert {name: now[name] for name in kept} == kept, "what is recorded is never measured again"
        kept = now
        progress.append(len(kept))
    assert progress[-1] > progress[0]
    resumed = finish(tmp_path, *plan)
    now = files(tmp_path)
    assert {name: now[name] for name in kept} == kept
    assert len(resumed) == 80
    assert not [path for path in (tmp_path / "run").rglob("*") if ".tmp-" in path.name and is_old(path)]
    (tmp_path / "whole").mkdir()
    whole = finish(tmp_path / "whole", *plan)
    assert [steady(record) for record in resumed] == [steady(record) for record in whole]


def is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > 3600


@pytest.mark.parametrize("shards", [(), ("0/2", "1/2")], ids=["same", "shards"])
def test_two_processes_fill_one_run(tmp_path: Path, shards: tuple[str, ...]) -> None:
    plan = ("--blocks", "none,a2", "--resolutions", "4,5,6,7,8,9")
    extra = [("--shard", shard) for shard in shards] or [(), ()]
    both = [start(tmp_path, *plan, *each) for each in extra]
    assert [process.wait(timeout=280) for process in both] == [0, 0]
    found = records(tmp_path)
    assert len(found) == 12
    assert {record.status for record in found} == {"ok"}
    assert RunStore.open(tmp_path / "run").planned() == {record.cell_id for record in found}
    assert {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()} == {".json"}
    before = files(tmp_path)
    finish(tmp_path, *plan)
    assert files(tmp_path) == before


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A file system of 64 KiB, in a name space of its own, so that no one else sees it."""
    (tmp_path / "run").mkdir()
    plan = ["--blocks", "all", "--resolutions", "8,16", "--estimate"]
    command = shlex.join([*COMMAND, *plan])
    script = f"""
        mount -t tmpfs -o size=64k none run || exit 99
        head -c 40000 /dev/zero > run/ballast
        {command} > /dev/null 2> err; echo $? > code
        cp -r run full
        rm run/ballast
        mount -o remount,size=4m run
        {command} > /dev/null 2> err2; echo $? > code2
        cp -r run roomy
    """
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    try:
        done = subprocess.run(  # noqa: PLW1510, the files tell
            unshare, cwd=tmp_path, env=environ(), capture_output=True, text=True, timeout=280
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if not (tmp_path / "code2").exists():
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()[:200]}")
    assert ((tmp_path / "code").read_text(), (tmp_path / "code2").read_text()) == ("1\n", "0\n")
    told = (tmp_path / "err").read_text().splitlines()
    assert "Traceback" not in "".join(told)
    assert told[-1].startswith("ctxbench: cannot write ")
    assert told[-1].endswith("No space left on device")
    full = {path.name: path.read_text() for path in (tmp_path / "full" / "records").iterdir()}
    assert 0 < len(full) < 2 * len(blocks.names())
    for name, text in full.items():
        assert Record.from_json(text).cell_id == name.removesuffix(".json"), "each is complete"
    roomy = {path.name: path.read_text() for path in (tmp_path / "roomy" / "records").iterdir()}
    assert len(roomy) == 2 * len(blocks.names())
    assert {name: roomy[name] for name in full} == full


def test_a_file_that_may_not_grow_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """The same by a limit on the size of files, which needs no rights at all."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    plan = ("--blocks", "none", "--resolutions", "8", "--estimate")
    process = start(tmp_path, *plan, stderr=subprocess.PIPE, preexec_fn=limit)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("ctxbench: cannot write ")
    assert "File too large" in err
    assert "Traceback" not in err
    assert [path for path in (tmp_path / "run").rglob("*") if path.suffix != ".json" and path.is_file()] == []
    assert len(finish(tmp_path, *plan)) == 1


def test_what_a_kill_leaves_half_written_is_ignored_and_swept(tmp_path: Path) -> None:
    plan = ("--blocks", "none", "--resolutions", "8", "--estimate")
    first = finish(tmp_path, *plan)
    left = tmp_path / "run" / "records" / f"{first[0].cell_id}.json.tmp-12345-0123abcd"
    left.write_text(json.dumps({"schema_version": 1})[:10])
    assert finish(tmp_path, *plan) == first
    assert left.exists(), "it may still be somebody's"
    os.utime(left, (0, 0))
    assert finish(tmp_path, *plan) == first
    assert not left.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_one_line_and_the_records_are_kept(tmp_path: Path) -> None:
    plan = ("--blocks", "none", "--resolutions", "8", "--estimate")
    with Path("/dev/full").open("w") as full:
        process = start(tmp_path, *plan, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=280)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "ctxbench: cannot write to standard output: No space left on device"
    assert "Traceback" not in err
    assert len(records(tmp_path)) == 1


def test_a_current_folder_that_is_gone_is_the_users_mistake(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = shlex.join([sys.executable, "-m", "ctxbench", "blocks"])
    script = f"cd {shlex.quote(str(gone))} && rmdir {shlex.quote(str(gone))} && {command}"
    done = subprocess.run(["sh", "-c", script], env=environ(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the current folder has been removed" in done.stderr
