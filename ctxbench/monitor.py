"""Who is told how a run goes on: both do nothing here, and are overridden where something is to be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctxbench.cost import Cost
    from ctxbench.outcome import Outcome
    from ctxbench.record import Record
    from ctxbench.spec import Cell


class Monitor:
    """Told what is being done while cells are settled."""

    def working(self, text: str) -> None:
        """What is being done now."""

    def measuring(self, text: str) -> None:
        """A group of cells is begun; its outcomes come as they settle."""

    def taking(self, cell: Cell | None) -> None:
        """From now on the time, and any misfortune, is this cell's; None: nobody's."""

    def estimated(self, cell: Cell, cost: Cost) -> None:
        """The cost of a cell that is going to be measured."""

    def measured(self, cell: Cell, outcome: Outcome) -> None:
        """What a cell's record will hold even if nothing more can be found out about it."""

    def needing(self, count: int) -> None:
        """The cells to come need at most so many bytes of the host's memory."""


class Reporter(Monitor):
    """Told how a whole run goes on."""

    def started(self, total: int, known: list[Record]) -> None:
        """Of `total` cells these have a record already."""

    def finished(self, record: Record) -> None:
        """A record was written."""

    def notice(self, text: str) -> None:
        """Something the user should know."""
