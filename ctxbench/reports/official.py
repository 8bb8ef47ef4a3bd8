"""Ratios of our times to those of official implementations, as `make bench` records them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ctxbench.errors import UsageError
from ctxbench.reports.inputs import commits
from ctxbench.store import read_text, tell
from ctxbench.tables import MISSING, Column, Table, number

FILE = "official.jsonl"
MAX_BYTES = 2**26
LEAST_SHARE = 0.01  # of the ceiling; a block that multiplies next to nothing has no speed to tell
ABOVE = {None: "", 0: "", 1: "> ", 2: ">> "}
Size = Annotated[int, Field(gt=0)]
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OfficialRatio(BaseModel):
    """One comparison: a line of the file. Without a ratio, `status` and `reason` say what came of it."""

    model_config = ConfigDict(strict=True)

    label: str
    official: str | None
    mode: Literal["infer", "train"]
    dtype: str
    channels: Size
    height: Size
    width: Size
    cpu: str | None
    threads: Size
    torch: str
    status: Literal["ok", "disagrees", "missing", "failed"] = "ok"
    reason: str = ""
    ratio: Ratio | None = None
    ratio_low: Ratio | None = None
    ratio_high: Ratio | None = None
    settled: bool = True
    agreement: str = ""
    notes: list[str] = []
    limit: Ratio | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    clock: Literal["cpu", "wall"] | None = None
    ours_cpu_ms: Ratio | None = None
    ours_wall_ms: Ratio | None = None
    gflops: float | None = None
    ceiling_share: float | None = None

    @model_validator(mode="after")
    def a_ratio_is_of_what_agrees(self) -> Self:
        bounds = self.ratio_low, self.ratio, self.ratio_high
        if bounds == (None, None, None):
            return self
        low, ratio, high = bounds
        if low is None or ratio is None or high is None or not low <= ratio <= high:
            raise ValueError("a ratio has an interval around it")
        if self.status != "ok":
            raise ValueError(f"a comparison that is {self.status!r} has no ratio")
        return self

    @property
    def machine(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.cpu or 'unknown CPU'}, {threads}, torch {self.torch.partition('+')[0]}"

    @property
    def input(self) -> str:
        return f"1x{self.channels}x{self.height}x{self.width}"

    @property
    def shown(self) -> str:
        if self.ratio is None:
            return self.status
        text = f"{self.ratio:.3f} ({self.ratio_low:.3f} - {self.ratio_high:.3f})"
        return text if self.settled else f"{text}, not settled"

    @property
    def excess(self) -> Literal[0, 1, 2] | None:
        """0: within its limit; 1: above it, but not with its whole interval; 2: wholly; None without a limit."""
        if self.limit is None or self.ratio is None or self.ratio_low is None:
            return None
        if self.ratio <= self.limit:
            return 0
        return 2 if self.ratio_low > self.limit else 1

    @property
    def precision(self) -> str:
        """Ours, and theirs where that is another: official code runs in float32."""
        return self.dtype if self.dtype in ("float32", "float64") else f"{self.dtype} / float32"


def official_tables(found: Sequence[OfficialRatio]) -> list[Table[OfficialRatio]]:
    """Ours over theirs, one table for each machine."""
    compared = [it for it in found if it.official is not None]
    machines = dict.fromkeys(it.machine for it in compared)
    return [official_table(each, [it for it in compared if it.machine == each]) for each in machines]


def official_notes(found: Sequence[OfficialRatio]) -> Iterator[str]:
    """What was set or replaced in their code, once for each block, or for each precision that has its own."""
    notes: dict[str, dict[str, set[str]]] = {}
    for it in found:
        if it.official and it.notes:
            notes.setdefault(it.label, {}).setdefault("; ".join(it.notes), set()).add(it.precision)
    for label, texts in sorted(notes.items()):
        for said, precisions in texts.items():
            own = f" ({', '.join(sorted(precisions))})" if len(texts) > 1 else ""
            yield f"`{label}`{own}: {said}."


def official_table(machine: str, found: Sequence[OfficialRatio]) -> Table[OfficialRatio]:
    return Table(
        f"Time of our blocks over that of official or most used implementations: {machine}",
        [
            Column("block", lambda it: it.label, numeric=False),
            Column("precision, ours / theirs", lambda it: it.precision, numeric=False),
            Column("input", lambda it: it.input, numeric=False),
            Column("mode", lambda it: "inference" if it.mode == "infer" else "training", numeric=False),
            Column("ours / theirs", lambda it: it.shown),
            Column("meant", lambda it: MISSING if it.limit is None else f"{ABOVE[it.excess]}{it.limit:.2f}"),
            Column("agreement", lambda it: it.agreement or it.reason or MISSING, numeric=False),
            Column("implementation", lambda it: it.official or MISSING, numeric=False),
        ],
        sorted(found, key=lambda it: (it.label, it.dtype, it.height, it.mode)),
        [
            counted(found),
            *within_limits(found),
            "“meant”: the largest ratio that is meant, after > where it is above that but not with its whole interval, and "
            "after >> where wholly. A core is a decomposition without the 1x1 convolutions around it, which are the same for both.",
            "Both have the same weights. Before they are timed, outputs and, in training, the input's gradients agree "
            "within 1e-4, or within 1e-3 and 1e-2 and then to 1e-7 in float64; where ours is in bfloat16 the outputs "
            "agree within 10 %, gradients within 50 %. Timed with subnormal numbers taken as zero, which spares theirs more than ours. The "
            "ratio is the median over interleaved rounds with its nominal 95 % interval: rounds end when that is "
            "narrow, which makes it optimistic.",
        ],
    )


def speed_tables(found: Sequence[OfficialRatio]) -> list[Table[str]]:
    """How fast each of our blocks computes in inference, one table for each machine."""
    timed = [it for it in found if it.gflops and (it.ceiling_share or 0.0) >= LEAST_SHARE]
    machines = dict.fromkeys(it.machine for it in timed)
    return [speed_table(each, [it for it in timed if it.machine == each]) for each in machines]


def speed_table(machine: str, found: Sequence[OfficialRatio]) -> Table[str]:
    cells = {(f"{it.label}, {it.dtype}", it.input): it for it in found}

    def at(input_: str) -> Column[str]:
        def cell(block: str) -> str:
            it = cells.get((block, input_))
            return (
                f"{number(it.gflops or 0.0, 3)} ({100 * (it.ceiling_share or 0.0):.0f} %)" if it else MISSING
            )

        return Column(input_, cell)

    inputs = dict.fromkeys(
        it.input for it in sorted(found, key=lambda it: (it.channels, it.height, it.width))
    )
    return Table(
        f"GFLOP/s of our blocks in inference, and what part of the machine's that is: {machine}",
        [Column[str]("block", lambda block: block, numeric=False), *map(at, inputs)],
        sorted(dict.fromkeys(block for block, _ in cells)),
        [
            "Two operations for each counted MAC; element-wise work counts nothing, and keeps a block with few MACs from "
            "the ceiling: the faster one of a square matrix product and a 1x1 convolution, of the same precision and in "
            "the same rounds. Blocks below 1 % of it are left out."
        ],
    )


def official_gaps(found: Sequence[OfficialRatio]) -> Iterator[str]:
    """Which blocks were compared in one mode or at one input and not in another, on each machine, whatever their options."""
    compared = [it for it in found if it.official is not None]
    for machine in dict.fromkeys(it.machine for it in compared):
        cases = {
            ((it.label.partition("[")[0], it.dtype), (it.input, it.mode))
            for it in compared
            if it.machine == machine
        }
        blocks, places = sorted({block for block, _ in cases}), sorted({place for _, place in cases})
        absent = [
            f"`{name}` ({dtype}, {mode}, {input_})"
            for name, dtype in blocks
            for input_, mode in places
            if ((name, dtype), (input_, mode)) not in cases
        ]
        if absent:
            yield f"Not compared with official code on {machine}: {', '.join(absent)}."


def counted(found: Sequence[OfficialRatio]) -> str:
    """How many comparisons there are, and what came of them."""
    words = {"ok": "agree", "disagrees": "disagree", "missing": "could not be had", "failed": "failed"}
    numbers = {word: sum(it.status == status for it in found) for status, word in words.items()}
    said = ", ".join(f"{number} {word}" for word, number in numbers.items() if number)
    unsettled = sum(it.ratio is not None and not it.settled for it in found)
    code = commits((it.git_commit, it.git_dirty) for it in found)
    return (
        f"{len(found)} comparisons: {said}. {unsettled} ratios did not settle within 1 % in the time given."
        f"{f' Code: {code}.' if code else ''}"
    )


def within_limits(found: Sequence[OfficialRatio]) -> list[str]:
    """How many ratios are within what they are meant to be; [] if that is not said of any."""
    limited = [it for it in found if it.excess is not None]
    if not limited:
        return []
    within, near, clear = ([it for it in limited if it.excess == excess] for excess in (0, 1, 2))
    names = ", ".join(f"`{it.label}` ({it.mode}, {it.height}x{it.width}, {it.dtype})" for it in clear)
    return [
        f"{len(within)} of {len(limited)} ratios are as meant, {len(near)} are above that by less than their interval, "
        f"{len(clear)} by more{f': {names}' if clear else ''}."
    ]


def read_official(path: Path) -> list[tuple[str, OfficialRatio]]:
    """The lines of a file of comparisons, as text and as what they say; [] where there is none.

    Raises:
        UsageError: where it is not such a file, naming the line.
    """
    if not path.exists():
        return []
    try:
        lines = read_text(path, MAX_BYTES).split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {tell(error)}") from None
    found = []
    for place, line in enumerate(lines, start=1):
        try:
            found += [(line, OfficialRatio.model_validate_json(line))] if line.strip() else []
        except ValidationError as error:
            raise UsageError(f"{path}, line {place}, is no comparison: {tell(error)}") from None
    return found
