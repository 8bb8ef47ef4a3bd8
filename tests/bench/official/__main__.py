"""python -m tests.bench.official: our blocks against official implementations, one case a line."""

from __future__ import annotations

import argparse
import datetime
import gc
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ctxbench import environment

environment.wait_passively()

import torch  # noqa: E402

import blocks  # noqa: E402
from ctxbench import pinning  # noqa: E402
from ctxbench.cli.program import INTERRUPTED, end  # noqa: E402
from ctxbench.errors import RAISED, RunError, UsageError, first_line  # noqa: E402
from ctxbench.gate import wake  # noqa: E402
from ctxbench.reports.official import LEAST_SHARE  # noqa: E402
from ctxbench.spec import parse_choices, parse_integers  # noqa: E402
from ctxbench.statistics import median  # noqa: E402
from tests.bench.official import contest, implementations  # noqa: E402
from tests.bench.official.comparison import SEED, Comparison  # noqa: E402
from tests.bench.official.records import Line, RecordFile, code_of  # noqa: E402
from tests.bench.official.sources import SourceError  # noqa: E402

MODES = ("infer", "train")
RECORDS = Path("results/studies/official.jsonl")
MOST_THREADS = 1024
MIRROR_NOTE = "What is missing can be fetched from a mirror: git's url.<base>.insteadOf names it."
SLOWER = "SLOWER THAN"
DISAGREES = "DISAGREES"


@dataclass(frozen=True)
class Case:
    """A comparison, or a block alone, at one size in one mode."""

    block: str
    comparison: Comparison | None
    side: int
    mode: str

    @property
    def label(self) -> str:
        return self.comparison.label(self.side) if self.comparison else self.block

    @property
    def dtype(self) -> str:
        return self.comparison.dtype if self.comparison else "float32"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 where a comparison could not be made or did not agree, 2 for wrong usage."""
    try:
        options = parsed(arguments)
        if options.list:
            print_list()
            return 0
        return 1 if run(options) else 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked.

    Raises:
        UsageError: with what is wrong, in one line.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = Parser(
        prog="python -m tests.bench.official",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--blocks", default=",".join(blocks.names()), help="names, with commas between them")
    parser.add_argument("--sizes", default="64,128", help="sides of the input")
    parser.add_argument("--modes", default=",".join(MODES), help="infer, train or both")
    parser.add_argument("--channels", default="512", help="of the input")
    parser.add_argument(
        "--sources", type=Path, default=cache / "ctxbench" / "official", help="where code is fetched to"
    )
    parser.add_argument("--out", type=Path, default=RECORDS, help="file of records, one JSON object a line")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timed calls a case")
    parser.add_argument(
        "--threads", default="1", help="of torch; times are CPU times with one, and wall times with more"
    )
    parser.add_argument("--force", action="store_true", help="measure again what is recorded")
    parser.add_argument("--check", action="store_true", help="only compare results: no times, no records")
    parser.add_argument("--list", action="store_true", help="what is compared with what, and what is not")
    options = parser.parse_args(arguments)
    options.blocks = parse_choices(options.blocks, blocks.names(), "--blocks")
    options.modes = parse_choices(options.modes, MODES, "--modes")
    options.sizes = parse_integers(options.sizes, "--sizes")
    (options.channels,) = only(parse_integers(options.channels, "--channels"), "--channels")
    (options.threads,) = only(parse_integers(options.threads, "--threads"), "--threads")
    if options.threads > MOST_THREADS:
        raise UsageError(f"--threads: at most {MOST_THREADS}")
    if options.sources.exists() and not options.sources.is_dir():
        raise UsageError(f"--sources: {options.sources} is not a folder")
    if not (options.budget >= 0 and math.isfinite(options.budget)):
        raise UsageError("--budget: seconds, 0 or more")
    return options


def only(values: list[int], option: str) -> list[int]:
    if len(values) != 1 or values[0] < 1:
        raise UsageError(f"{option}: one whole number above 0")
    return values


def print_list() -> None:
    """Every block with what it is compared with, or why with nothing."""
    unwritten = "no adapter is written yet"
    for name in blocks.names():
        found = [each for each in implementations.COMPARISONS if each.block == name]
        for each in found:
            licence = each.official.source.licence
            print(f"{each.label('SIDE')} ({each.dtype}): {each.official.label} ({licence})")
            for note in (*each.notes, *(f"no {mode}: {why}" for mode, why in each.without.items())):
                print(f"    {note}")
        if not found:
            print(f"{name}: not compared: {implementations.UNCOMPARED.get(name, unwritten)}")


def run(options: argparse.Namespace) -> int:
    """How many cases could not be measured."""
    pinning.pin(options.threads)
    about = environment.capture("cpu", options.threads)
    records = RecordFile(options.out)
    if not options.check:
        records.open()
    print(
        f"torch {about['torch']}, {about['cpu']}, {options.threads} threads; input 1x{options.channels}xSIDExSIDE"
    )
    told = [settle(case, options, about, records) for case in cases(options)]
    count = {status: told.count(status) for status in dict.fromkeys(told)}
    print(
        f"{len(told)} case{'s' * (len(told) != 1)}: {', '.join(f'{number} {status}' for status, number in count.items()) or 'none'}"
    )
    if "missing" in count:
        print(MIRROR_NOTE)
    return len(told) - count.get("ok", 0)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Sizes, then blocks, then modes; a block whose defaults are in no comparison is timed alone."""
    for side in options.sizes:
        for name in options.blocks:
            found = [each for each in implementations.COMPARISONS if each.block == name]
            for each in found:
                for mode in options.modes:
                    if mode not in each.without:
                        yield Case(name, each, side, mode)
            whole = [each for each in found if not each.part and each.spec == name]
            if not whole and "infer" in options.modes and not options.check:
                yield Case(name, None, side, "infer")


def settle(case: Case, options: argparse.Namespace, about: dict[str, Any], records: RecordFile) -> str:
    """Measure and tell one case; its status."""
    line = described(case, options, about)
    if not options.force and not options.check and (found := records.find(line)):
        print(told(found, "recorded"), flush=True)
        return "ok"
    try:
        with contest.on_cpu():
            measure(case, options, line)
    except SourceError as error:
        line |= {"status": "missing", "reason": first_line(error)}
    except RAISED as error:
        line |= {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
    gc.collect()
    if not options.check:
        records.add(line)
    print(told(line), flush=True)
    return str(line["status"])


def described(case: Case, options: argparse.Namespace, about: dict[str, Any]) -> Line:
    """What a record says before anything is measured."""
    comparison = case.comparison
    return {
        "block": case.block,
        "label": case.label,
        "part": comparison.part if comparison else "",
        "official": comparison.official.label if comparison else None,
        "licence": comparison.official.source.licence if comparison else None,
        "notes": list(comparison.notes) if comparison else [],
        "limit": comparison.limit if comparison else None,
        "mode": case.mode,
        "dtype": case.dtype,
        "channels": options.channels,
        "height": case.side,
        "width": case.side,
        "code": code_of(case.block),
        **about,
    }


def measure(case: Case, options: argparse.Namespace, line: Line) -> None:
    """Compare results; if they agree, time both; all goes into `line`."""
    size = {"channels": options.channels, "side": case.side, "training": case.mode == "train"}
    if case.comparison is None:
        torch.manual_seed(SEED)
        alone = wake(blocks.create(case.block, options.channels))
        pair = contest.Contest(alone, None, None, **size)
    else:
        pair = contest.prepare(case.comparison, options.sources, **size)
        errors = pair.errors()
        line |= {"error": errors.output, "error_gradient": errors.gradient, "error_float64": errors.exact}
        line["agreement"] = str(errors)
        if not errors.agree:
            line |= {"status": "disagrees", "reason": str(errors)}
            return
    line["status"] = "ok"
    if options.check:
        return
    times = pair.times(options.budget, options.threads)
    line |= figures(pair, times)
    line["load_average"] = environment.load_average()
    line["created_utc"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def figures(pair: contest.Contest, times: contest.Times) -> Line:
    """The measured columns."""
    found: Line = {"rounds": len(times.ours), "calls_per_round": times.repeats, "settled": times.settled}
    found["clock"] = "cpu" if times.on_cpu_time else "wall"
    for name, samples in (("ours", times.ours), ("official", times.theirs)):
        for clock in ("wall_ms", "cpu_ms") if samples else ():
            values = [getattr(sample, clock) for sample in samples]
            middle = median(values)
            found |= {f"{name}_{clock}": middle.value, f"{name}_{clock}_low": middle.low}
            found |= {f"{name}_{clock}_high": middle.high}
            found[f"{name}_{clock}_samples"] = [round(value, 4) for value in values]
    if times.theirs:
        ratio, wall = times.ratio(), times.ratio(wall=True)
        found |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        found |= {"ratio_wall": wall.value, "ratio_wall_low": wall.low, "ratio_wall_high": wall.high}
    macs = getattr(pair.module, "macs", None)
    if macs is not None and pair.gradient is None:
        side = pair.x.shape[-1]
        found["macs"] = macs(side, side)
        found["gflops"] = 2 * found["macs"] / found["ours_cpu_ms"] / 1e6
        ceilings = {name: each.gflops or 0.0 for name, each in times.ceilings.items()}
        found |= {f"{name}_gflops": gflops for name, gflops in ceilings.items()}
        if found["macs"] and any(ceilings.values()):
            found["ceiling_share"] = found["gflops"] / max(ceilings.values())
    return found


def told(line: Line, remark: str = "") -> str:
    """A case in one line."""
    text = f"{line['label']:<26} {line['mode']:<5} {line['height']:>3} {line['dtype']:<8}"
    where = f"  {line['official']}" if line["official"] else ""
    if line["status"] != "ok":
        word = DISAGREES if line["status"] == "disagrees" else line["status"].upper()
        return f"{text} {word}: {line['reason']}{where}"
    if ratio := line.get("ratio"):
        text += f" {ratio:6.3f} [{line['ratio_low']:.3f}, {line['ratio_high']:.3f}]"
    if line.get("agreement"):
        text += f"  {line['agreement']}"
    if milliseconds := line.get(f"ours_{line.get('clock')}_ms"):
        text += f"  ours {milliseconds:.4g} ms"
    if line.get("gflops") and (line.get("ceiling_share") or 0.0) >= LEAST_SHARE:
        text += f"  {line['gflops']:.0f} GFLOP/s, {100 * line['ceiling_share']:.0f} % of the ceiling"
    text += where
    if ratio and line["ratio_low"] > (line.get("limit") or math.inf):
        text += f"  {SLOWER} {line['limit']}"
    if ratio and not line.get("settled", True):
        text += "  not settled"
    return f"{text}  ({remark})" if remark else text


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
