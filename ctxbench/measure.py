"""Measures one group of cells, in this process: correctness gate, then latency in interleaved rounds."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import torch

from ctxbench import gate, graphs, pinning
from ctxbench.clocks import frequency_mhz, rated_mhz
from ctxbench.errors import RAISED, DeviceLostError
from ctxbench.monitor import Monitor
from ctxbench.outcome import Outcome, failure
from ctxbench.spec import Cell
from ctxbench.subject import Load, Reference, Subject, require_device

MIN_ROUNDS, MAX_ROUNDS = 10, 1000
BUDGET_S = 2.0  # of timed calls per cell, once MIN_ROUNDS are done
THROTTLED = 0.75  # of the rated frequency: a round below it does not count
MAX_THROTTLED, COOLING_S = 100, 0.05


@dataclass(frozen=True)
class Settings:
    """How cells are measured.

    Attributes:
        threads: CPU threads.
        budget_s: seconds of timed calls that a cell gets to settle in; None: BUDGET_S.
        timeout_s: seconds after which a cell is given up.
        plugins: files with blocks of the user's own.
        folder: where tasks keep data, checkpoints and what comes of them.
        data_root: the folder of data sets.
        checkpoint, backbone: files with the weights that tasks start from.
        weights: the file with Inception's weights; reference: the one with what is compared with.
        together: whether several processes train each network, and `rank`, this one's: 0 records.
    """

    threads: int = 1
    budget_s: float | None = None
    timeout_s: float = math.inf
    plugins: tuple[Path, ...] = ()
    folder: Path | None = None
    data_root: Path = Path("data")
    checkpoint: Path | None = None
    backbone: Path | None = None
    weights: Path | None = None
    reference: Path | None = None
    together: bool = False
    rank: int = 0


def group(
    cells: list[Cell], settings: Settings, monitor: Monitor, make: type[Subject] = Subject
) -> Iterator[tuple[Cell, Outcome]]:
    """Measure cells that differ in the block alone; yields each cell once, as soon as it is known.

    All blocks get the same input. They are timed in rounds: each round calls every block and the
    reference once, in random order, so that a drift of the machine meets all alike. A block leaves
    when it has settled or its calls have taken its budget, but not before MIN_ROUNDS. CUDA graphs come
    last, one at a time: each holds memory of its own, and one that fails may leave the device unusable.

    Args:
        make: what is timed of a cell.

    Raises:
        DeviceLostError: when a block has left the device unusable for all others of this process.
    """
    try:
        pinning.pin(settings.threads)
        if cells[0].compiled:
            prepare_compiler()
        load = Load.of(cells[0])
        reference = Reference(load.x)
    except Exception as error:
        yield from ((cell, failure(error, 0.0)) for cell in cells)
        return
    subjects: list[Subject] = []
    for cell in cells:
        monitor.taking(cell)
        monitor.working(f"checking {cell.label}")
        start = perf_counter()
        try:
            gate.check(cell.create, cell.device, getattr(torch, cell.dtype))
            subjects.append(make(cell, load, start, settings.timeout_s))
        except RAISED as error:
            require_device(load.x)
            load.restore()
            yield cell, failure(error, perf_counter() - start)
    together = {"rounds_id": secrets.token_hex(6)}
    waiting = dict.fromkeys(subjects)
    to_capture: list[tuple[Subject, Outcome]] = []
    try:
        for subject in timed(subjects, reference, settings, monitor):
            del waiting[subject]
            try:
                outcome = subject.failed or Outcome("ok", subject.columns(reference) | together)
            except Exception as error:  # the clock, or the machine's own figures, could not be read
                outcome = failure(error, subject.spent_s)
            if load.x.is_cuda and outcome.status == "ok" and subject.capturable:
                to_capture.append((subject, outcome))
                monitor.measured(subject.cell, outcome)
            else:
                yield subject.cell, outcome
    except DeviceLostError:
        raise
    except RAISED as error:  # the reference itself gave up
        yield from ((subject.cell, failure(error, subject.spent_s)) for subject in waiting)
    for subject, outcome in to_capture:
        monitor.taking(subject.cell)
        monitor.working(f"capturing {subject.cell.label}")
        graph = graphs.replayed(subject.call, subject.tidy, load.x.get_device())
        outcome.columns |= graph.columns | {"wall_s": subject.spent_s + graph.seconds}
        yield subject.cell, outcome


def timed(
    subjects: list[Subject], reference: Reference, settings: Settings, monitor: Monitor
) -> Iterator[Subject]:
    """Rounds over the subjects until each has converged or spent its budget; yields each at its end."""
    budget_s = BUDGET_S if settings.budget_s is None else settings.budget_s
    shuffle = random.Random(0).shuffle
    active = list(subjects)
    throttled = 0
    monitor.taking(None)
    if active:
        reference.warm_up()
    for subject in subjects:
        monitor.taking(subject.cell)
        monitor.working(f"warming up {subject.cell.label}")
        subject.warm_up()
    with no_garbage_collection():
        for number in range(MAX_ROUNDS + MAX_THROTTLED + 1):
            rounds = number - throttled
            for subject in list(active):
                spent = subject.timed_s >= budget_s or rounds >= MAX_ROUNDS
                over = rounds >= MIN_ROUNDS and (spent or subject.converged)
                if over or subject.failed is not None:
                    active.remove(subject)
                    yield subject
            if not active:
                return
            monitor.working(f"round {number + 1}, {len(active)} of {len(subjects)} not yet settled")
            order: list[Subject | Reference] = [*active, reference]
            shuffle(order)
            for each in order:
                monitor.taking(each.cell if isinstance(each, Subject) else None)
                each.sample()
            if throttled < MAX_THROTTLED and is_throttled(active[0].cell.device):
                throttled += 1
                for each in order:
                    each.forget_last()
                sleep(COOLING_S)


def is_throttled(device: str) -> bool:
    """Whether a CUDA device runs far below the frequency it is meant to run at."""
    if device != "cuda" or (rated := rated_mhz()) is None:
        return False
    now = frequency_mhz(device)
    return now is not None and now < THROTTLED * rated


def prepare_compiler() -> None:
    """Forget what was compiled, and let a graph that cannot be compiled fail instead of running eager."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 1000
    torch._dynamo.config.fail_on_recompile_limit_hit = True


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
