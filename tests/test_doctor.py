"""The doctor tells what is missing and what to type, and breaks on nothing it finds."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctxbench import console, cost, doctor, environment
from ctxbench.cli import options
from ctxbench.doctor import Check, Finding, Verdict, examine, healthy, tables

ROOT = Path(__file__).parents[1]
TOLD = Callable[..., None]


def findings(check: Check) -> list[Finding]:
    return list(doctor.findings_of("topic", check))


def only(check: Check) -> Finding:
    (finding,) = findings(check)
    return finding


def levels(check: Check) -> list[str]:
    return [finding.level for finding in findings(check)]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The distributions there are; a test adds those it wants."""
    there: dict[str, str] = {}
    monkeypatch.setattr(doctor, "installed", there.get)
    return there


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> TOLD:
    """Let functions of `environment` return given values."""

    def tell(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(environment, name, lambda *_, value=value: value)

    return tell


# The whole examination


def test_it_looks_at_every_topic_here_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = examine()
    assert list(dict.fromkeys(finding.topic for finding in found if finding.topic != "CUDA")) == [
        *("versions", "counting", "extras", "CPU", "memory", "data", "workers", "compiler", "Slurm", "disk")
    ]
    assert [it for it in found if it.text.startswith("this check failed")] == []
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_off_is_a_problem_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Iterator[Verdict]:
        yield "ok", "so far so good", None
        raise RuntimeError("the disk is on fire\nand more")

    def leaves() -> Iterator[Verdict]:
        raise SystemExit("left")

    def works() -> Iterator[Verdict]:
        yield "note", "dull", "polish"

    monkeypatch.setattr(doctor, "CHECKS", (("disk", breaks), ("CPU", leaves), ("CUDA", works)))
    assert examine() == [
        Finding("disk", "ok", "so far so good"),
        Finding("disk", "problem", "this check failed: the disk is on fire"),
        Finding("CPU", "problem", "this check failed: left"),
        Finding("CUDA", "note", "dull", "polish"),
    ]


def test_nothing_is_raised_where_torch_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = examine()
    assert {it.topic for it in found if "this check failed" in it.text} >= {"CPU", "CUDA"}
    assert not healthy(found)


def test_warnings_met_on_the_way_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def warns() -> Iterator[Verdict]:
        warnings.warn("look here", stacklevel=1)
        yield "ok", "fine", None

    monkeypatch.setattr(doctor, "CHECKS", (("CPU", warns),))
    assert examine() == [Finding("CPU", "ok", "fine")]  # the tests turn warnings into errors


def test_a_user_can_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> Iterator[Verdict]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "CHECKS", (("CPU", stopped),))
    with pytest.raises(KeyboardInterrupt):
        examine()


def test_problems_are_unhealthy_and_notes_are_not() -> None:
    fine, noted = Finding("CPU", "ok", "fine"), Finding("CPU", "note", "slow", "wait")
    assert healthy([])
    assert healthy([fine, noted])
    assert not healthy([fine, noted, Finding("CUDA", "problem", "broken")])


def test_the_table_says_what_was_found_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Finding("CPU", "ok", "fine"),
        Finding("extras", "note", "slurm lacks submitit", 'pip install "ctxbench[slurm]"'),
    ]
    (table,) = tables(found)
    assert table.header == ["topic", "mark", "finding", "what to type"]
    assert table.text == [
        ["CPU", "ok", "fine", ""],
        ["extras", "note", "slurm lacks submitit", 'pip install "ctxbench[slurm]"'],
    ]
    assert "problems 0, notes 1" in table.title
    console.print_tables([table])
    assert 'pip install "ctxbench[slurm]"' in capsys.readouterr().out  # no markup is read into it


def test_findings_can_be_written_as_json() -> None:
    found = [Finding("CPU", "note", "slow", "wait")]
    assert json.loads(json.dumps([dataclasses.asdict(it) for it in found])) == [
        {"topic": "CPU", "level": "note", "text": "slow", "advice": "wait"}
    ]


def test_loading_it_and_looking_for_extras_imports_none_of_the_packages() -> None:
    code = "import sys; from ctxbench import doctor; list(doctor.extras()); print(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    assert not {"torch", "torchvision", "submitit", "mmseg", "mmcv"} & set(finished.stdout.split())


# Versions


def test_it_names_the_versions_it_found(packages: dict[str, str]) -> None:
    packages |= {"torch": "2.15.0+cu130", "fvcore": "0.1.5.post20221221", "ctxbench": "1"}
    finding = only(doctor.versions)
    assert finding.level == "ok"
    assert "torch 2.15.0+cu130" in finding.text
    assert "Python 3." in finding.text
    assert "source" not in finding.text


@pytest.mark.parametrize("torch_version", [None, "2.4.0"])
def test_a_missing_or_old_torch_is_a_problem(packages: dict[str, str], torch_version: str | None) -> None:
    packages["fvcore"] = "0.1.5.post20221221"
    if torch_version:
        packages["torch"] = torch_version
    _, finding = findings(doctor.versions)
    assert finding.level == "problem"
    assert finding.text.startswith("missing: torch>=2.15")
    assert finding.advice == "pip install --upgrade torch fvcore"


def test_versions_come_from_what_is_installed() -> None:
    assert doctor.installed("torch") is not None
    assert doctor.installed("no-such-distribution-of-ctxbench") is None


@pytest.fixture
def torchvision(
    packages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Put a torchvision made of these lines in place of the real one."""

    def write(source: str) -> None:
        packages["torchvision"] = "0.29"
        (tmp_path / "torchvision.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, "torchvision", None)  # so that whatever is loaded is taken back
        monkeypatch.delitem(sys.modules, "torchvision")

    return write


def test_a_torchvision_that_loads_fits(torchvision: Callable[[str], None]) -> None:
    torchvision("")
    assert only(doctor.torchvision_build).level == "ok"


def test_a_torchvision_of_another_build_is_a_problem(torchvision: Callable[[str], None]) -> None:
    torchvision("raise RuntimeError('operator torchvision::nms does not exist')")
    finding = only(doctor.torchvision_build)
    assert finding.level == "problem"
    assert "operator torchvision::nms does not exist" in finding.text
    assert finding.advice == "pip install --force-reinstall torch torchvision"


def test_nothing_is_said_of_a_torchvision_that_is_not_there(packages: dict[str, str]) -> None:
    assert findings(doctor.torchvision_build) == []


# Counting


def test_this_torch_counts_fused_attention() -> None:
    finding = only(doctor.counting)
    assert finding.level == "ok"
    assert "1,572,864 of 1,572,864" in finding.text  # 4 N C^2 + 2 N^2 C with N = C = 64


@pytest.mark.parametrize("blind", [{"macs_counted": 1_048_576}, {"macs_backward": 0}])
def test_a_torch_that_misses_fused_attention_is_a_problem(
    blind: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = cost.estimate
    monkeypatch.setattr(cost, "estimate", lambda cell: dataclasses.replace(estimate(cell), **blind))
    finding = only(doctor.counting)
    assert (finding.level, finding.advice) == ("problem", "pip install --upgrade torch")


# Extras


def extra(name: str) -> Finding:
    (found,) = (it for it in findings(doctor.extras) if it.text.startswith(f"{name} "))
    return found


def test_an_extra_whose_packages_are_there_is_complete(packages: dict[str, str]) -> None:
    packages["submitit"] = "1.5.4"
    assert extra("slurm") == Finding("topic", "ok", "slurm is complete")


def test_a_missing_extra_is_noted_with_the_line_to_type(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages |= {"ctxbench": "1", "scikit-learn": "1.9", "lightning-fabric": "2.6"}
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: None)
    assert extra("gen").level == "note"
    assert extra("gen").text == "gen lacks torchvision, torch-fidelity>=0.4"
    assert extra("gen").advice == 'pip install "ctxbench[gen]"'


def test_a_package_of_another_version_than_asked_for_is_named(packages: dict[str, str]) -> None:
    packages["pyarrow"] = "15.0"
    assert extra("parquet").text == "parquet lacks pyarrow>=16 (15.0 is installed)"


def test_a_checkout_that_is_not_installed_is_installed_from_its_folder(packages: dict[str, str]) -> None:
    """The registry's package of that name, if there is one, may be another program."""
    assert extra("slurm").advice == f'pip install "{ROOT}[slurm]"'
    assert "source" in findings(doctor.versions)[0].text


def test_an_installed_ctxbench_says_itself_what_it_needs(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages["ctxbench"] = "1"
    asked = [
        "torch>=2.15",
        "colorama; sys_platform == 'nowhere'",
        'newer-submitit>=7; extra == "slurm"',
        'never; extra == "slurm" and python_version < "3"',
        'pyarrow>=16; extra == "parquet"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
    assert extra("slurm").text == "slurm lacks newer-submitit>=7"


def test_the_requirements_of_a_checkout_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    assert {name: list(wanted) for name, wanted in doctor.EXTRAS.items()} == {
        name: declared[name] for name in doctor.EXTRAS
    }
    assert set(declared) - set(doctor.EXTRAS) == {"dev", "all"}
    assert set(doctor.CORE) <= set(project["dependencies"])


# CPU


def test_the_processor_is_named_with_its_instruction_set(tell: TOLD) -> None:
    tell(cpu_name="Abacus 3000", cpu_quota=None)
    name, instructions = findings(doctor.processor)
    assert (name.level, instructions.level) == ("ok", "ok")
    assert "Abacus 3000" in name.text
    assert torch.backends.cpu.get_cpu_capability() in instructions.text


@pytest.mark.parametrize(("quota", "threads"), [(2.5, 2), (0.5, 1)])
def test_a_containers_quota_below_the_cores_is_noted(
    quota: float, threads: int, tell: TOLD, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "affinity", lambda: 64)
    tell(cpu_quota=quota)
    finding = findings(doctor.processor)[1]
    assert (finding.level, finding.advice) == ("note", f"use --threads {threads} at most")
    assert f"{quota:g} CPUs" in finding.text


def test_a_quota_of_all_cores_is_fine(tell: TOLD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "affinity", lambda: 4)
    tell(cpu_quota=4.0)
    assert levels(doctor.processor) == ["ok", "ok", "ok"]


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder in which the system tells of its CPUs."""
    monkeypatch.setattr(doctor, "CPUS", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(("governor", "level"), [("performance", "ok"), ("powersave", "note")])
def test_a_governor_that_slows_down_is_noted(governor: str, level: str, tell: TOLD) -> None:
    tell(governor=governor)
    finding = only(doctor.frequency)
    assert finding.level == level
    assert governor in finding.text
    assert (finding.advice is not None) == (level == "note")


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("intel_pstate/no_turbo", "1", "ok"),
        ("intel_pstate/no_turbo", "0", "note"),
        ("cpufreq/boost", "0", "ok"),
        ("cpufreq/boost", "1", "note"),
    ],
)
def test_turbo_is_noted(name: str, value: str, level: str, tell: TOLD, cpus: Path) -> None:
    (cpus / name).parent.mkdir()
    (cpus / name).write_text(f"{value}\n")
    tell(governor=None)
    finding = only(doctor.frequency)
    assert finding.level == level
    assert f"turbo is {'off' if level == 'ok' else 'on'}" in finding.text


@pytest.mark.usefixtures("cpus")
def test_nothing_is_said_of_a_frequency_the_system_does_not_tell(tell: TOLD) -> None:
    tell(governor=None)
    assert findings(doctor.frequency) == []


@pytest.mark.parametrize(
    ("average", "quota", "level"), [(4.0, None, "ok"), (4.1, None, "note"), (1.1, 2.0, "note")]
)
def test_a_load_above_half_the_cores_is_noted(
    average: float, quota: float | None, level: str, tell: TOLD, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "affinity", lambda: 8)
    tell(load_average=average, cpu_quota=quota)
    finding = only(doctor.load)
    assert finding.level == level
    if level == "note":
        assert "timings will scatter" in finding.text
        assert finding.advice == "wait; more threads than the default of one would scatter most"


def test_nothing_is_said_of_a_load_the_system_does_not_tell(tell: TOLD) -> None:
    tell(load_average=None)
    assert findings(doctor.load) == []


# Memory


@pytest.fixture
def swap(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda used: monkeypatch.setattr(doctor.psutil, "swap_memory", lambda: SimpleNamespace(used=used))


def test_free_memory_is_told(tell: TOLD, swap: Callable[[int], None]) -> None:
    tell(free_bytes=5 * 2**30)
    swap(0)
    finding = only(doctor.memory)
    assert finding.level == "ok"
    assert "5.0 GiB free for a cell" in finding.text


def test_too_little_memory_and_swap_in_use_are_noted(tell: TOLD, swap: Callable[[int], None]) -> None:
    tell(free_bytes=0)
    swap(2**29)
    short, swapped = findings(doctor.memory)
    assert (short.level, swapped.level) == ("note", "note")
    assert short.advice is not None
    assert "0.5 GiB of swap" in swapped.text


# CUDA


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tell: TOLD, packages: dict[str, str]) -> Callable[..., None]:
    """Let torch find devices of 80 GiB with so many GiB free; None is a broken one."""

    def install(*free: int | None) -> None:
        def mem_get_info(index: int) -> tuple[int, int]:
            if (gib := free[index]) is None:
                raise RuntimeError("CUDA error: an illegal memory access\nmore")
            return gib * 2**30, 80 * 2**30

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
        tell(nvidia_driver="575.1" if free else None)

    return install


def test_devices_are_told_with_their_memory_driver_and_clocks(
    gpus: Callable[..., None], packages: dict[str, str]
) -> None:
    gpus(79, 78)
    packages["nvidia-ml-py"] = "13"
    first, second, driver, clocks = findings(doctor.cuda)
    assert {it.level for it in (first, second, driver, clocks)} == {"ok"}
    assert first.text == "cuda:0 GPU 0, 80.0 GiB, 79.0 GiB free"
    assert "GPU 1" in second.text
    assert "575.1" in driver.text


def test_a_device_that_others_use_and_missing_clocks_are_noted(gpus: Callable[..., None]) -> None:
    gpus(20)
    device, _, clocks = findings(doctor.cuda)
    assert (device.level, clocks.level) == ("note", "note")
    assert "timings will scatter" in device.text
    assert clocks.advice == "pip install nvidia-ml-py"


def test_a_broken_device_is_a_problem_and_hides_no_other(gpus: Callable[..., None]) -> None:
    gpus(None, 79)
    broken, fine = findings(doctor.cuda)[:2]
    assert (broken.level, fine.level) == ("problem", "ok")
    assert broken.text == "cuda:0 cannot be used: CUDA error: an illegal memory access"


def test_without_a_device_everything_runs_on_the_cpu(gpus: Callable[..., None]) -> None:
    gpus()
    assert only(doctor.cuda) == Finding(
        "topic", "note", "torch finds no CUDA device: everything runs on the CPU"
    )


def test_a_driver_without_a_device_says_where_to_look(gpus: Callable[..., None], tell: TOLD) -> None:
    gpus()
    tell(nvidia_driver="575.1")
    assert only(doctor.cuda).advice == "look at nvidia-smi and CUDA_VISIBLE_DEVICES"


def test_what_torch_warns_of_while_it_looks_is_a_problem(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_available() -> bool:
        warnings.warn("CUDA initialization: the driver is too old\nmore", UserWarning, stacklevel=1)
        return False

    gpus()
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    warned, none = findings(doctor.cuda)
    assert (warned.level, warned.text) == ("problem", "CUDA initialization: the driver is too old")
    assert none.level == "note"


def test_a_broken_cuda_is_a_problem_and_no_traceback(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_available() -> bool:
        raise OSError("libcuda.so.1: cannot open\nmore")

    gpus()
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert only(doctor.cuda).level == "problem"
    assert only(doctor.cuda).text.endswith("libcuda.so.1: cannot open")


# Worker processes, compiler, Slurm


def test_workers_on_linux_start_fast_and_are_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "score").touch()
    monkeypatch.setattr(doctor, "OOM_SCORE", tmp_path / "score")
    monkeypatch.setattr(doctor.multiprocessing, "get_all_start_methods", lambda: ["spawn", "forkserver"])
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert levels(doctor.workers) == ["ok", "ok", "ok"]


def test_what_keeps_workers_from_being_fast_and_limited_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "OOM_SCORE", tmp_path / "missing")
    monkeypatch.setattr(doctor.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setattr(doctor.sys, "platform", "win32")
    slow, first, endless = findings(doctor.workers)
    assert {slow.level, first.level, endless.level} == {"note"}
    assert "forkserver" in slow.text
    assert "missing cannot be written" in first.text
    assert "RLIMIT_DATA" in endless.text


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The programs that can be called."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor.sys, "platform", "linux")

    def install(*names: str) -> None:
        monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name in names else None)

    return install


def test_the_compiler_that_torch_calls_is_enough(programs: Callable[..., None]) -> None:
    programs("g++")
    assert only(doctor.compiler) == Finding("topic", "ok", "torch.compile calls g++")


def test_the_users_own_compiler_is_the_one_that_torch_calls(
    programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs("g++")
    monkeypatch.setenv("CXX", "icpx -O2")
    finding = only(doctor.compiler)
    assert (finding.level, finding.advice) == ("note", "export CXX=g++")
    programs("icpx")
    assert only(doctor.compiler).level == "ok"


def test_a_compiler_that_torch_does_not_look_for_is_noted(programs: Callable[..., None]) -> None:
    programs("clang++")
    assert only(doctor.compiler).advice == "export CXX=clang++"


def test_a_missing_compiler_is_noted(programs: Callable[..., None]) -> None:
    programs()
    finding = only(doctor.compiler)
    assert (finding.level, finding.advice) == ("note", "sudo apt install g++")


def test_slurm_is_found_or_not(programs: Callable[..., None]) -> None:
    programs("sbatch")
    assert only(doctor.slurm).text == "sbatch is here"
    programs()
    assert only(doctor.slurm).text.startswith("no sbatch here")
    assert only(doctor.slurm).level == "ok"


# Disk


def test_it_looks_where_runs_are_written() -> None:
    assert options.RUNS == doctor.RUNS


def test_results_can_be_written_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**31))
    assert levels(doctor.disk) == ["ok", "ok"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    full = findings(doctor.disk)[0]
    assert full.level == "note"
    assert "0.5 GiB free" in full.text


def test_a_folder_that_cannot_be_written_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest folder that exists decides: here results, as results/runs is not there yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "results")
    finding = findings(doctor.disk)[1]
    assert (finding.level, finding.advice) == ("note", "give --out a folder of yours")


def test_a_file_where_the_results_should_go_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").touch(mode=0o777)
    assert findings(doctor.disk)[1].level == "note"
