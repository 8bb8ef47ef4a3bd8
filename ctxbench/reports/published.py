"""Numbers printed in papers and model zoos, and how the measured ones compare with them."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Literal

from ctxbench.families import families
from ctxbench.record import GIGA, MEBI, MIB, Row
from ctxbench.reports.contests import LATENCY
from ctxbench.reports.scores import SCORES, is_sound
from ctxbench.tables import Source

TABLE_3_INPUT = {
    "batch": 1,
    "channels": 512,
    "height": 128,
    "width": 128,
    "dtype": "float32",
    "compiled": False,
}
TOLERANCE = 0.01  # relative: counters differ in what they take for nothing, and printed digits are few
ENOUGH = 3  # seeds, before their range counts
TIME_TOLERANCE = 0.25  # relative, of the ratio to self-attention: another GPU, another library
FILES = ("paper", "generation", "mmseg_zoo")
UNIT = "self-attn"  # what times of different machines are compared by

# Published metric of a profile -> column of a record, factor into the printed unit, mode.
PROFILE_METRICS = {
    "params": ("params", MEBI, None),
    "macs": ("macs", GIGA, "infer"),
    "gpu_memory_infer": ("memory_predicted_bytes", MIB, "infer"),
    "gpu_memory_train": ("memory_predicted_bytes", MIB, "train"),
}
TIMES = {"gpu_time_infer": "infer", "gpu_time_train": "train"}
SCORED = {"mIoU": ("miou", 100.0), "FID": ("fid", 1.0), "IS": ("is_mean", 1.0)}
TITLES = {
    "params": "parameters (2^20)",
    "macs": "MACs (10^9)",
    "gpu_memory_infer": "memory, inference (MiB)",
    "gpu_memory_train": "memory, training (MiB)",
    "gpu_time_infer": "GPU time, inference (ms)",
    "gpu_time_train": "GPU time, training (ms)",
    "gpu_memory_train_network": "GPU memory of a training (GB)",
    "mIoU": "mIoU (%)",
}
KINDS = {"reproduced": "reproduced", "not reproduced": "differs", "cannot be checked here": "unchecked"}
State = Literal["reproduced", "not reproduced", "cannot be checked here"]


@dataclass(frozen=True)
class Claim:
    """One published number.

    Attributes:
        table: of the source, if it has one; method: the source's name of block or network.
        spec: the block here with the options it has there, "" if there is none; block: its name.
        task: "profile", or the task that trains such a network.
        model, preset, iterations: the network and the recipe here that are the claim's own; "" if there is none.
        dataset: what it was measured on; metric, unit, value: as printed.
        statistic: which of several numbers of one metric, such as "multi scale"; note: what else is known.
    """

    source: str
    table: str
    method: str
    block: str
    spec: str
    task: str
    model: str
    preset: str
    iterations: str
    dataset: str
    metric: str
    value: str
    unit: str
    statistic: str
    note: str

    @property
    def number(self) -> float:
        return float(self.value)

    @property
    def digits(self) -> int:
        """After the decimal point."""
        return len(self.value.partition(".")[2])

    @property
    def origin(self) -> Source:
        name, url = sources()[self.source]
        return Source(f"{name}{', ' + self.table if self.table else ''}", url)

    @property
    def quantity(self) -> str:
        title = self.metric if self.task != "profile" and self.metric in ("params", "macs") else None
        what = f"{title} ({self.unit})" if title else TITLES.get(self.metric, self.metric)
        return f"{what}, {self.statistic}" if self.statistic else what


@dataclass(frozen=True)
class Comparison:
    """A published number beside the one found here, in the published unit, if there is one."""

    claim: Claim
    found: float | None
    tolerance: float = TOLERANCE
    reason: str = ""
    explanation: str = ""
    spread: tuple[float, float] | None = None  # of the seeds

    @property
    def method(self) -> str:
        return self.claim.method

    @property
    def spec(self) -> str:
        return self.claim.spec

    @property
    def label(self) -> str:
        return self.claim.quantity

    @property
    def published(self) -> float:
        return self.claim.number

    @property
    def difference(self) -> float | None:
        """Relative to the published number."""
        return None if self.found is None else self.found / self.published - 1 if self.published else 0.0

    @property
    def agrees(self) -> bool:
        """Whether it is within the tolerance of the number, or of the range of the seeds."""
        if self.found is None:
            return False
        low, high = self.spread or (self.found, self.found)
        room = self.tolerance * abs(self.published)
        return low - room <= self.published <= high + room

    @property
    def state(self) -> State:
        if self.found is None:
            return "cannot be checked here"
        return "reproduced" if self.agrees else "not reproduced"


def folder() -> Path:
    """Where the CSV files are: in the installed package, or in the checkout's results."""
    packaged = Path(str(resources.files("ctxbench"))) / "published"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "results" / "published"


def load(name: str) -> list[dict[str, str]]:
    """The rows of a file: one of `FILES`, "sources" or "explanations"."""
    with (folder() / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def claims() -> tuple[Claim, ...]:
    """All published numbers, those of the paper first."""
    return tuple(Claim(**row) for name in FILES for row in load(name))


@cache
def sources() -> dict[str, tuple[str, str]]:
    """Name and address of each."""
    return {row["source"]: (row["name"], row["url"]) for row in load("sources")}


@cache
def explanations() -> dict[tuple[str, str], str]:
    """Why a number found here differs from the printed one, where that is known."""
    return {(row["spec"], row["metric"]): row["explanation"] for row in load("explanations")}


@dataclass(frozen=True)
class Evidence:
    """The records that published numbers can be compared with."""

    rows: Sequence[Row]

    @cached_property
    def profiles(self) -> list[Row]:
        """Of the input of the paper's Table 3, in float32; the latest first."""
        found = [
            row
            for row in self.rows
            if row["kind"] == "profile"
            and row["status"] in ("ok", "skipped")
            and all(row[name] == value for name, value in TABLE_3_INPUT.items())
        ]
        return sorted(found, key=lambda row: (row["created_utc"], row["env_hash"]), reverse=True)

    @cached_property
    def trainings(self) -> list[Row]:
        """Networks trained on data that were not made for a diagnostic, and that can be ranked."""
        return [
            row
            for row in self.rows
            if row["kind"] == "task"
            and row["status"] == "ok"
            and not row["dataset"].startswith("legend")
            and is_sound(row)
        ]

    def compare(self, claim: Claim) -> Comparison:
        """The claim beside what was found, or the reason why nothing was."""
        if claim.block not in families():
            return Comparison(claim, None, reason="this block is not in the suite")
        if claim.task != "profile":
            return self.compare_score(claim)
        if claim.metric in TIMES:
            return self.compare_time(claim)
        found = value_here(self.profiles, claim.spec, claim.metric)
        if found is None:
            made = "ctxbench profile --preset paper makes them"
            return Comparison(claim, None, reason=f"no record of this block at this input; {made}")
        explanation = explanations().get((claim.spec, claim.metric), "")
        return Comparison(claim, found, explanation=explanation)

    def compare_time(self, claim: Claim) -> Comparison:
        """By the ratio to self-attention on the same machine, as the GPU is another one."""
        if claim.spec == UNIT:
            return Comparison(claim, None, reason="what the other times are compared by")
        mode, unit = TIMES[claim.metric], printed_unit(claim)
        timed = [
            row
            for row in self.profiles
            if row["device_type"] == "cuda" and row["mode"] == mode and row[LATENCY] is not None
        ]
        pairs = [
            (ours[LATENCY], theirs[LATENCY])
            for ours in timed
            for theirs in timed
            if (ours["spec"], theirs["spec"]) == (claim.spec, UNIT) and ours["env_hash"] == theirs["env_hash"]
        ]
        if unit is None or not pairs:
            return Comparison(claim, None, reason=f"no times of it and of {UNIT} on one GPU at this input")
        found = pairs[0][0] / pairs[0][1] * unit
        reason = f"as a multiple of the time of {UNIT}, which is set equal"
        return Comparison(claim, found, TIME_TOLERANCE, reason)

    def compare_score(self, claim: Claim) -> Comparison:
        """With trainings of this block in this network, by the claim's own recipe, whole."""
        if claim.metric not in SCORED:
            return Comparison(claim, None, reason="records hold no costs of whole networks")
        if claim.statistic == "test":
            return Comparison(claim, None, reason="the labels are on the benchmark's server")
        if not claim.preset:
            return Comparison(claim, None, reason="the suite has no recipe that is known to be its own")
        column, scale = SCORED[claim.metric]
        found = [
            scale * row[column] for row in self.trainings if row[column] is not None and same(row, claim)
        ]
        if not found:
            return Comparison(claim, None, reason=f"no training of it: {training(claim)}")
        if claim.statistic == "best":
            best = min(found) if SCORES[column].lower_is_better else max(found)
            return Comparison(claim, best, reason=f"the best of {seeds(len(found))}")
        spread = (min(found), max(found)) if len(found) >= ENOUGH else None
        return Comparison(claim, mean(found), reason=seeds(len(found)), spread=spread)


def printed_unit(claim: Claim) -> float | None:
    """The printed time of self-attention in the claim's table."""
    like = (claim.source, claim.table, claim.metric, UNIT)
    found = (it.number for it in claims() if (it.source, it.table, it.metric, it.spec) == like)
    return next(found, None)


def same(row: Row, claim: Claim) -> bool:
    """Whether a training is of the claim's block, network, recipe, length and scoring, from weights like its own.

    Data and first weights are taken for what they are called.
    """
    network = not claim.model or row["model"] == claim.model
    pretrained = claim.task == "imagenet" or row["first_weights"] != "random"
    several = row["scoring"] not in (None, "single")
    return bool(
        (row["task"], row["spec"], row["preset"]) == (claim.task, claim.spec, claim.preset)
        and str(row["train_iterations"]) == claim.iterations
        and network
        and pretrained
        and several == (claim.statistic == "multi scale")
    )


def training(claim: Claim) -> str:
    """The command that makes the record a claim is compared with."""
    words = ["ctxbench", "task", claim.task, "--preset", claim.preset]
    words += ["--model", claim.model, "--backbone", "FILE"] if claim.model else []
    words += ["--scoring", "ms-flip-softmax"] if claim.statistic == "multi scale" else []
    return shlex.join([*words, "--blocks", claim.spec])


def seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def value_here(rows: Iterable[Row], spec: str, metric: str) -> float | None:
    """The number found here, in the published unit; None where there is none to compare."""
    if metric not in PROFILE_METRICS:
        return None
    column, scale, mode = PROFILE_METRICS[metric]
    values = (row[column] for row in rows if row["spec"] == spec and mode in (None, row["mode"]))
    value = next((value for value in values if value is not None), None)
    return None if value is None else value / scale


def compare_all(rows: Sequence[Row]) -> list[Comparison]:
    """Every published number beside what was found of it."""
    evidence = Evidence(rows)
    return [evidence.compare(claim) for claim in claims()]


def checked(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those with a number found here."""
    return [it for it in comparisons if it.found is not None]
