"""Settles batches of cells in processes of their own, so that no cell can harm the run or another cell.

A worker settles one batch and is gone. When it dies, or a cell uses up its time, what is settled is
kept: the cell it had in hand is tried once more alone, and the others go on together.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import torch

from ctxbench import environment, plugins
from ctxbench.cost import Cost
from ctxbench.devices import Device
from ctxbench.errors import RunError, first_line
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor
from ctxbench.outcome import Outcome, overdue
from ctxbench.processes import context
from ctxbench.settle import Settled, settle
from ctxbench.spec import Cell
from ctxbench.talk import Answer, Estimated, Fatal, Listener, Measured, Speaker, Told

POLL_S = 0.2
GRACE_S = 3.0  # between asking a worker to end and ending it
SLACK_BYTES = 2**30  # beyond a prediction, before an allocation is refused
SLACK_FACTOR = 1.3
NOBODY = -1
ATTEMPTS = 2  # to start a worker
MARK = "CTXBENCH_WORKER"  # a variable that all have whom a worker starts
F_SETSIG = 10  # Linux's fcntl.h


def settle_in_workers(
    batches: list[list[Cell]], settings: Settings, devices: list[Device], monitor: Monitor
) -> Iterator[Settled]:
    """Settle all batches, one at a time on each device; yields each cell once.

    Raises:
        RunError: when there is no device, or no process can be started.
    """
    if not devices:
        raise RunError("there is no device to measure on")
    queue = deque(batches)
    busy: dict[Device, Worker] = {}
    try:
        while queue or busy:
            for device in devices:
                if queue and device not in busy:
                    busy[device] = Worker(queue.popleft(), settings, device)
            wait([handle for worker in busy.values() for handle in worker.handles], POLL_S)
            for device, worker in list(busy.items()):
                yield from worker.settled(monitor)
                if worker.is_over():
                    del busy[device]
                    yield from worker.settled(monitor)
                    verdict, again = worker.remains()
                    yield from verdict
                    queue.extendleft(reversed(again))
    finally:
        with deaf():
            for worker in busy.values():
                worker.stop()


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """A second signal to end must not keep the workers from being ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Worker:
    """The parent's view of a process that settles one batch.

    Raises:
        RunError: when it cannot be started.
    """

    def __init__(self, cells: list[Cell], settings: Settings, device: Device) -> None:
        processes = context()
        self.cells, self.timeout_s = cells, settings.timeout_s
        self.pending = dict(enumerate(cells))
        self.costs: dict[int, Cost] = {}
        self.measured: dict[int, Outcome] = {}
        self.hand = processes.RawArray("d", [NOBODY, math.inf])  # number of a cell, and since when
        self.overdue: tuple[int, float] | None = None  # the cell that used up its time, and how much it was
        self.fatal: str | None = None
        receiving, sending = processes.Pipe(duplex=False)
        self.listener, self.mark = Listener(receiving), f"{device.name} {secrets.token_hex(8)}"
        arguments = (sending, self.hand, cells, settings, device)
        for attempt in range(ATTEMPTS):  # somebody may have ended the server; it then starts anew
            self.process = processes.Process(target=work, args=arguments, name=self.mark)
            try:
                self.process.start()
                break
            except (OSError, EOFError) as error:
                if attempt + 1 == ATTEMPTS:
                    raise RunError(f"cannot start a worker process: {error}") from error
        sending.close()

    @property
    def handles(self) -> list[Any]:
        return [self.process.sentinel, *([] if self.listener.closed else [self.listener.connection])]

    def settled(self, monitor: Monitor) -> Iterator[Settled]:
        """What the worker has told since it was last asked."""
        for message in self.listener.heard():
            match message:
                case Told():
                    getattr(monitor, message.how)(message.text)
                case Estimated():
                    self.costs[message.number] = message.cost
                case Measured():
                    self.measured[message.number] = message.outcome
                case Fatal():
                    self.fatal = message.text
                case Answer() if message.number in self.pending:
                    yield Settled(self.pending.pop(message.number), message.cost, message.outcome)
        if self.listener.garbled and self.process.exitcode is None:
            self.fatal = "its own doing: it wrote into the pipe of this program"
            self.stop()

    def is_over(self) -> bool:
        """Whether the process has ended; one whose cell has used up its time is made to."""
        number, since, still = int(self.hand[0]), self.hand[1], int(self.hand[0])
        in_hand_s = monotonic() - since
        if self.process.exitcode is None and number == still and in_hand_s > self.timeout_s:
            self.overdue = (number, in_hand_s)
            self.stop()
        if self.process.exitcode is None:
            return False
        self.signal(signal.SIGKILL)  # what the block may have started and left
        end_marked(self.mark)
        return True

    def remains(self) -> tuple[list[Settled], list[list[Cell]]]:
        """The verdict on a cell that ended the process, if there is one, and the batches to try again.

        A cell that uses up its time is to blame. One that was in hand when the process died may have
        been the victim of another; it gets a process of its own, and is to blame if that dies as well.
        What was measured before is kept: only graphs were lacking.
        """
        kept = list(self.without_graphs())
        if not self.pending:
            return kept, []
        number, taken_s = self.overdue or (int(self.hand[0]), 0.0)
        sure = number in self.pending  # and not caught between two cells
        number = number if sure else next(iter(self.pending))
        suspect, cost = self.pending.pop(number), self.costs.get(number)
        others = [list(self.pending.values())] if self.pending else []
        if self.overdue is not None and (sure or len(self.cells) == 1):
            return [*kept, Settled(suspect, cost, overdue(self.timeout_s, taken_s))], others
        if len(self.cells) == 1:
            crashed = Outcome("crashed", {"reason": self.last_words()})
            return [*kept, Settled(suspect, cost, crashed)], others
        return kept, [[suspect], *others]

    def without_graphs(self) -> Iterator[Settled]:
        """The cells that are measured, but for the graph during whose capture the process ended."""
        reason = {"graph_reason": "the process ended while a graph was captured"}
        for number, outcome in self.measured.items():
            if number in self.pending:
                full = Outcome(outcome.status, outcome.columns | reason)
                yield Settled(self.pending.pop(number), self.costs.get(number), full)

    def last_words(self) -> str:
        if self.fatal is not None:
            return f"the process was ended by {self.fatal}"
        code = self.process.exitcode or 0
        if code >= 0:
            return f"the process left with exit code {code}"
        name = signal.Signals(-code).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"

    def stop(self) -> None:
        """End the process and all that it started: asked first, then made to."""
        for blow, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            self.signal(blow)
            self.process.join(patience)
        end_marked(self.mark)

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, number)
        if self.process.exitcode is None:  # it may not lead its group yet
            with contextlib.suppress(OSError):
                os.kill(self.process.pid, number)


def work(
    sending: Connection, hand: Any, cells: list[Cell], settings: Settings, device: Device
) -> None:  # pragma: no cover, it runs in another process
    """The worker: settles its batch and sends each outcome as soon as it is known."""
    os.setsid()  # a group of its own: a Ctrl-C is the parent's, and all of it can be ended together
    die_with_parent()
    be_the_first_to_go()
    gc.freeze()  # what is loaded stays, and need not be looked through
    os.dup2(2, 1)  # standard output is the parent's alone
    os.environ.update(device.variables | {MARK: multiprocessing.current_process().name})
    torch.set_num_interop_threads(1)
    for path in settings.plugins:
        plugins.load(path)
    speaker = Speaker(sending)
    teller = Teller(speaker, hand, cells)
    if device.kind == "cpu":
        teller.needing(environment.free_bytes("cpu"))
    try:
        for it in settle(cells, settings, device, teller):
            teller.taking(None)
            speaker.send(Answer(teller.numbers[it.cell], it.cost, it.outcome))
    except BaseException as error:  # an interrupt of the block's own, a pipe that it closed
        with contextlib.suppress(OSError, ValueError):
            speaker.send(Fatal(f"{type(error).__name__}: {first_line(error)}"))
        os._exit(1)
    os._exit(0)  # without waiting for threads that a block may have left running


class Teller(Monitor):
    """The worker's side of the talk: texts go through the pipe, the cell in hand into shared memory.

    The parent can read that memory whatever the worker is caught in, and is not woken by it.
    """

    def __init__(self, speaker: Speaker, hand: Any, cells: list[Cell]) -> None:
        self.speaker, self.hand = speaker, hand
        self.numbers = {cell: number for number, cell in enumerate(cells)}
        self.spent = dict.fromkeys([*self.numbers.values(), NOBODY], 0.0)
        self.number, self.since = NOBODY, monotonic()
        self.told = 0.0

    def working(self, text: str) -> None:
        now = monotonic()
        if now - self.told > POLL_S:
            self.told = now
            self.speaker.send(Told("working", text))

    def measuring(self, text: str) -> None:
        self.speaker.send(Told("measuring", text))

    def taking(self, cell: Cell | None) -> None:
        now = monotonic()
        self.spent[self.number] += now - self.since
        self.number, self.since = NOBODY if cell is None else self.numbers[cell], now
        self.hand[1] = math.inf  # never another cell's number with this one's time
        self.hand[0] = self.number
        self.hand[1] = now - (0.0 if cell is None else self.spent[self.number])

    def estimated(self, cell: Cell, cost: Cost) -> None:
        self.speaker.send(Estimated(self.numbers[cell], cost))

    def measured(self, cell: Cell, outcome: Outcome) -> None:
        self.speaker.send(Measured(self.numbers[cell], outcome))

    def needing(self, count: int) -> None:
        limit_memory(int(SLACK_FACTOR * count) + SLACK_BYTES)


def die_with_parent() -> None:  # pragma: no cover
    """End this process and its group as soon as the parent is gone, however it went.

    The parent holds the other end of a pipe. Linux itself can end the group when that closes, even while
    a block keeps Python's lock; elsewhere a thread does.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(parent.sentinel, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)


def end_marked(mark: str) -> None:
    """End what a worker started and its group does not hold: a program in a session of its own."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                process.kill()


def be_the_first_to_go() -> None:  # pragma: no cover
    """Where memory runs out, Linux shall end this process and no other."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_memory(count: int) -> None:  # pragma: no cover
    """Let allocations of more than so many bytes beyond those of now fail, on Linux.

    Otherwise they would succeed, and the process be killed on their first use.
    """
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = psutil.Process().memory_info().data + count
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
