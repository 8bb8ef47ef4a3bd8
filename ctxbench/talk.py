"""What a worker tells its parent: lines of JSON in a pipe.

A block runs in the worker and could write into that pipe. Whatever it writes is only ever read as data,
never executed, waits for nobody, and is noticed if it is no message.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Literal

from ctxbench.cost import Cost
from ctxbench.outcome import Outcome

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LONGEST = 2**26  # bytes of one message
AT_ONCE = 2**20


@dataclass(frozen=True)
class Told:
    """What a worker says for a person to read: a monitor's method and its text."""

    how: Literal["working", "measuring"]
    text: str
    kind: Literal["told"] = "told"


@dataclass(frozen=True)
class Fatal:
    """What ended the worker from within."""

    text: str
    kind: Literal["fatal"] = "fatal"


@dataclass(frozen=True)
class Estimated:
    """The cost of the cell with this number, should it not survive its measurement."""

    number: int
    cost: Cost
    kind: Literal["estimated"] = "estimated"


@dataclass(frozen=True)
class Answer:
    """What became of the cell with this number in the worker's batch."""

    number: int
    cost: Cost | None
    outcome: Outcome
    kind: Literal["answer"] = "answer"


@dataclass(frozen=True)
class Measured:
    """What the cell with this number has come to, should its graph be the end of the process."""

    number: int
    outcome: Outcome
    kind: Literal["measured"] = "measured"


Message = Told | Fatal | Estimated | Answer | Measured


@cache
def messages() -> TypeAdapter[Message]:
    from pydantic import TypeAdapter

    return TypeAdapter(Message)


class Speaker:
    """The worker's end."""

    def __init__(self, connection: Connection) -> None:
        self.file = os.fdopen(os.dup(connection.fileno()), "wb")

    def send(self, message: Message) -> None:
        """Raises OSError when nobody is listening, ValueError for what JSON cannot hold."""
        self.file.write(json.dumps(dataclasses.asdict(message)).encode() + b"\n")
        self.file.flush()


class Listener:
    """The parent's end; it never waits.

    Attributes:
        closed: whether nothing will come any more.
        garbled: whether something came that is no message; what follows it is not read.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        os.set_blocking(connection.fileno(), False)
        self.buffer = bytearray()
        self.garbled = False

    @property
    def closed(self) -> bool:
        return self.connection.closed

    def heard(self) -> Iterator[Message]:
        """The messages that have arrived whole since this was last asked."""
        while not self.closed and (part := self.read()):
            self.buffer += part
            *lines, rest = self.buffer.split(b"\n")
            self.buffer = rest
            for line in lines:
                try:
                    yield messages().validate_json(bytes(line))
                except ValueError:
                    self.give_up()
                    return
            if len(rest) > LONGEST:
                self.give_up()

    def give_up(self) -> None:
        self.garbled = True
        self.connection.close()

    def read(self) -> bytes:
        """What has arrived; nothing yet, or nothing more, is no bytes."""
        try:
            part = os.read(self.connection.fileno(), AT_ONCE)
        except BlockingIOError:
            return b""
        except OSError:
            part = b""
        if not part:
            self.connection.close()
        return part
