"""What is installed, what the machine is like for measuring, and what to type to get the rest."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from ctxbench import __version__, environment
from ctxbench.errors import RAISED, first_line
from ctxbench.tables import Column, Table

Level = Literal["ok", "note", "problem"]
Verdict = tuple[Level, str, str | None]  # level, what was found, what to type or do
Check = Callable[[], Iterator[Verdict]]

GIB = 2**30
RUNS, DATA = Path("results/runs"), Path("data")
CPUS = Path("/sys/devices/system/cpu")
OOM_SCORE = Path("/proc/self/oom_score_adj")
CORE = ("torch>=2.15", "fvcore>=0.1.5.post20221221")
# What pyproject.toml says, for a checkout that is not installed.
SEG = (
    "torchvision",
    "mmsegmentation>=1.2.2,<1.3",
    "mmengine>=0.10.7",
    "mmcv-lite>=2.1,<2.2",
    "ftfy",
    "regex",
)
GEN = ("torchvision", "torch-fidelity>=0.4", "scikit-learn>=1.5", "lightning-fabric>=2.4")
EXTRAS = {
    "seg": SEG,
    "gen": GEN,
    "slurm": ("submitit>=1.5.2",),
    "parquet": ("pyarrow>=16",),
    "onnx": ("onnx>=1.18", "onnxscript>=0.5.4", "onnxruntime>=1.22"),
}


@dataclass(frozen=True)
class Finding:
    """One thing found: "ok", "note" (it works, but less well) or "problem"; advice is what to type or do."""

    topic: str
    level: Level
    text: str
    advice: str | None = None


def judged(good: bool, text: str, otherwise: str = "", advice: str = "", bad: Level = "note") -> Verdict:
    """What to say if all is well, and what if not."""
    return ("ok", text, None) if good else (bad, otherwise or text, advice or None)


def versions() -> Iterator[Verdict]:
    """Python, and the packages that every measurement goes through."""
    own = f"ctxbench {__version__}{'' if installed('ctxbench') else ' (run from its source)'}"
    found = [f"{name} {installed(name)}" for name in ("torch", "fvcore") if installed(name)]
    yield "ok", ", ".join([own, f"Python {platform.python_version()}", *found]), None
    if lacking := unmet(CORE):
        yield "problem", f"missing: {', '.join(lacking)}", "pip install --upgrade torch fvcore"


def torchvision_build() -> Iterator[Verdict]:
    """Whether torchvision, if it is there, was built for this torch; otherwise its import fails."""
    if version := installed("torchvision"):
        try:
            importlib.import_module("torchvision")
            yield "ok", f"torchvision {version} fits this torch", None
        except RAISED as error:
            text = f"torchvision {version} does not fit this torch: {first_line(error)}"
            yield "problem", text, "pip install --force-reinstall torch torchvision"


def counting() -> Iterator[Verdict]:
    """Whether this torch's counter knows fused attention, forward and backward."""
    from ctxbench import cost
    from ctxbench.spec import Grid

    grid = Grid("self-attn[impl=sdpa]", resolutions="8", channels="64", modes="infer,train", estimated=True)
    infer, train = map(cost.estimate, grid.cells())
    counted, formula, backward = infer.macs_counted, infer.macs_formula, train.macs_backward or 0
    text = f"fused attention: {counted:,} of {formula:,} MACs counted, and {backward:,} in its backward"
    complete = counted == formula and backward > 0
    yield judged(complete, text, advice="pip install --upgrade torch", bad="problem")


def extras() -> Iterator[Verdict]:
    """Which of the optional parts can be used."""
    place = "ctxbench" if installed("ctxbench") else Path(__file__).resolve().parents[1]
    for extra in EXTRAS:
        lacking = ", ".join(unmet(required(extra)))
        advice = f'pip install "{place}[{extra}]"'
        yield judged(not lacking, f"{extra} is complete", f"{extra} lacks {lacking}", advice)


def required(extra: str) -> Iterable[str]:
    """What ctxbench asks for under this extra, as it was installed."""
    from packaging.requirements import Requirement

    texts = (metadata.requires("ctxbench") or []) if installed("ctxbench") else []
    markers = [(text, Requirement(text).marker) for text in texts]
    found = [text for text, marker in markers if marker and marker.evaluate({"extra": extra})]
    return found or EXTRAS[extra]


def unmet(requirements: Iterable[str]) -> list[str]:
    """What is not installed, or in another version."""
    from packaging.requirements import Requirement

    wanted = [(it, installed(it.name)) for it in map(Requirement, requirements)]
    return [
        f"{it.name}{it.specifier}" + (f" ({version} is installed)" if version else "")
        for it, version in wanted
        if not version or not it.specifier.contains(version, prereleases=True)
    ]


def installed(name: str) -> str | None:
    """A distribution's version, without importing it; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> Iterator[Verdict]:
    """The CPU, and what part of it this process may use."""
    physical, logical = psutil.cpu_count(logical=False) or "?", psutil.cpu_count() or "?"
    usable = f"{affinity()} open to this process"
    yield "ok", f"{environment.cpu_name()}: {physical} cores, {logical} logical, {usable}", None
    if quota := environment.cpu_quota():
        text = f"the container may use {quota:g} CPUs"
        slower = f"{text}: more threads than that are stopped again and again"
        yield judged(quota >= affinity(), text, slower, f"use --threads {max(1, int(quota))} at most")
    import torch

    yield "ok", f"instruction set {torch.backends.cpu.get_cpu_capability()}", None


def affinity() -> int:
    """How many logical cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def frequency() -> Iterator[Verdict]:
    """How the CPU's frequency is chosen, where the system tells it."""
    if governor := environment.governor():
        advice = "sudo cpupower frequency-set --governor performance"
        yield judged(governor == "performance", f"the governor is {governor}", advice=advice)
    for name, off in (("intel_pstate/no_turbo", "1"), ("cpufreq/boost", "0")):
        if (path := CPUS / name).exists():
            on = "turbo is on: the frequency falls as cores get busy or hot"
            yield judged(path.read_text().strip() == off, "turbo is off", on)


def load() -> Iterator[Verdict]:
    """Whether the CPU is busy already."""
    if (average := environment.load_average()) is not None:
        cores = min(affinity(), environment.cpu_quota() or math.inf)
        text = f"load average {average:.1f}, {cores:g} CPUs for this process"
        scatter = f"{text}: timings will scatter"
        yield judged(
            average <= 0.5 * cores,
            text,
            scatter,
            "wait; more threads than the default of one would scatter most",
        )


def memory() -> Iterator[Verdict]:
    """The host's memory, and whether it is short."""
    total, free = psutil.virtual_memory().total, environment.free_bytes("cpu")
    advice = "end other programs, or measure smaller inputs"
    yield judged(free >= GIB, f"{gib(total)}, {gib(free)} free for a cell", advice=advice)
    if used := psutil.swap_memory().used:
        yield "note", f"{gib(used)} of swap in use: what lies there is slow when it is needed", None


def cuda() -> Iterator[Verdict]:
    """The CUDA devices; what PyTorch warns of while it looks for them is a problem too."""
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [cuda_device(index) for index in range(count)]
    yield from found
    for it in warned:
        if isinstance(it.message, UserWarning):
            yield "problem", first_line(it.message), "nvidia-smi"
    driver = environment.nvidia_driver()
    if count:
        yield "ok", f"driver {driver or 'unknown'}, torch built for CUDA {torch.version.cuda}", None
        missing = "without nvidia-ml-py the GPU's clocks are not told"
        clocks = installed("nvidia-ml-py") is not None
        yield judged(clocks, "nvidia-ml-py tells the GPU's clocks", missing, "pip install nvidia-ml-py")
    else:
        advice = "look at nvidia-smi and CUDA_VISIBLE_DEVICES" if driver else None
        yield "note", "torch finds no CUDA device: everything runs on the CPU", advice


def cuda_device(index: int) -> Verdict:
    """One device; a broken one hides no other."""
    import torch

    try:
        name, (free, total) = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)
    except RAISED as error:
        return "problem", f"cuda:{index} cannot be used: {first_line(error)}", "nvidia-smi"
    text = f"cuda:{index} {name}, {gib(total)}, {gib(free)} free"
    return judged(free >= total / 2, text, f"{text}: others use it, timings will scatter", "nvidia-smi")


def data_sets() -> Iterator[Verdict]:
    """Which data sets the default data root holds; the tasks' demo needs none."""
    from ctxbench.data import known, state

    for each in known():
        found = state(each, DATA)
        yield judged(found == "complete", f"{each.name}: {found}, {DATA / each.folder}", advice=each.advice)


def workers() -> Iterator[Verdict]:
    """What keeps a cell from harming the run, and lets its process start fast."""
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    slow = "no forkserver: cells run with --executor inline alone, where one that crashes ends the run"
    yield judged(forkserver, "worker processes start from a forkserver", slow)
    who = "a cell, not the run, is ended where memory runs out"
    anyone = f"{OOM_SCORE} cannot be written: where memory runs out, the run itself may be ended"
    yield judged(os.access(OOM_SCORE, os.W_OK), who, anyone)
    endless = "no RLIMIT_DATA: a cell that takes too much memory may slow down the whole machine"
    yield judged(sys.platform == "linux", "a cell's memory is limited (RLIMIT_DATA)", endless)


def compiler() -> Iterator[Verdict]:
    """The C++ compiler that torch.compile calls: $CXX, or the system's usual one alone."""
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted.split()[0]):
        yield "ok", f"torch.compile calls {wanted}", None
    elif others := [name for name in ("g++", "clang++", "c++") if shutil.which(name)]:
        yield "note", f"torch.compile looks for {wanted}, which is missing", f"export CXX={others[0]}"
    else:
        yield "note", "no C++ compiler: --compile cannot be used", "sudo apt install g++"


def slurm() -> Iterator[Verdict]:
    found = shutil.which("sbatch")
    yield "ok", "sbatch is here" if found else "no sbatch here: runs stay on this machine", None


def disk() -> Iterator[Verdict]:
    """Whether results can be written here."""
    free = shutil.disk_usage(Path.cwd()).free
    advice = "make room, or give --out a folder on another disk"
    yield judged(free >= GIB, f"{gib(free)} free in this folder", advice=advice)
    runs = RUNS.absolute()
    existing = next(path for path in (runs, *runs.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    refused = f"{RUNS} cannot be written in this folder"
    yield judged(writable, f"{RUNS} can be written", refused, "give --out a folder of yours")


def gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


# In the order shown. The data sets and weights that a task needs are one more function here.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("versions", versions),
    ("versions", torchvision_build),
    ("counting", counting),
    ("extras", extras),
    ("CPU", processor),
    ("CPU", frequency),
    ("CPU", load),
    ("memory", memory),
    ("CUDA", cuda),
    ("data", data_sets),
    ("workers", workers),
    ("compiler", compiler),
    ("Slurm", slurm),
    ("disk", disk),
)


def examine() -> list[Finding]:
    """All findings, in the order of the checks. Nothing is raised, and nothing written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [finding for topic, check in CHECKS for finding in findings_of(topic, check)]


def findings_of(topic: str, check: Check) -> Iterator[Finding]:
    """What a check finds; that it breaks off is a problem."""
    try:
        yield from (Finding(topic, *verdict) for verdict in check())
    except RAISED as error:
        yield Finding(topic, "problem", f"this check failed: {first_line(error)}")


def healthy(findings: list[Finding]) -> bool:
    """Whether there is no problem; notes do no harm."""
    return all(it.level != "problem" for it in findings)


def tables(findings: list[Finding]) -> list[Table[Finding]]:
    """The findings as one table, with what to type beside what is missing."""
    columns = [
        Column[Finding]("topic", lambda it: it.topic, numeric=False),
        Column[Finding]("mark", lambda it: it.level, numeric=False),
        Column[Finding]("finding", lambda it: it.text, numeric=False),
        Column[Finding]("what to type", lambda it: it.advice or "", numeric=False),
    ]
    problems, notes = (sum(it.level == level for it in findings) for level in ("problem", "note"))
    return [Table(f"ctxbench doctor: problems {problems}, notes {notes}", columns, findings)]
