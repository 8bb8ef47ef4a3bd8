"""The devices of this host: several GPUs are measured on at once, and none by two runs of ctxbench.

A CPU is not kept for one run: whether others leave it enough cores, the load and CPU times tell.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Device:
    """One device, and the variables under which a process sees it alone.

    Attributes:
        kind: "cpu" or "cuda".
        name: what tells it from others, whoever asks: for a GPU its UUID.
        visible: the value of CUDA_VISIBLE_DEVICES that selects it; None changes nothing.
    """

    kind: str
    name: str
    visible: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        return {} if self.visible is None else {VISIBLE: self.visible}

    @contextlib.contextmanager
    def alone(self, tell: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Keep other runs of ctxbench on this host off a GPU; first waits until they are done."""
        if self.kind == "cpu":
            yield
            return
        with lock(Path(tempfile.gettempdir()) / f"ctxbench-{self.name}.lock", tell):
            yield


def find(kind: str) -> list[Device]:
    """The devices of a kind ("cpu" or "cuda") that a run may use.

    Of several GPUs, those of the first one's model: timings of unlike devices make no table.
    """
    if kind == "cpu":
        return [Device("cpu", "cpu")]
    import torch

    count = torch.cuda.device_count()
    chosen = [text for text in os.environ.get(VISIBLE, "").split(",") if text] or list(map(str, range(count)))
    properties = [torch.cuda.get_device_properties(number) for number in range(count)]
    return [
        Device("cuda", str(each.uuid), visible)
        for each, visible in zip(properties, chosen, strict=False)
        if each.name == properties[0].name
    ]


@contextlib.contextmanager
def lock(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a file's lock, which the system gives back when a process ends, however it ends."""
    try:
        import fcntl

        file = opened(path)
    except (ImportError, OSError):  # not this system, or not this user's file: do without
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks: do without
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("waiting for another run on this device")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def opened(path: Path) -> int:
    """The file, which may be another user's; never through a link, nor waiting at a pipe."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o644)
