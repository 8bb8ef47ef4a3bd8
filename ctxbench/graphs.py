"""A call recorded as a CUDA graph: its replay costs what the device needs, without the launches."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UP = 3
SHARE = 1 / 20  # of the device's memory that one graph may hold while other blocks are measured


def capture(call: Callable[[], object], tidy: Callable[[], None]) -> Callable[[], None]:
    """Record `call`; `tidy` drops what it leaves behind. Returns what replays it.

    Raises:
        Exception: whatever stops a call from being recorded, such as a wait for the device.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
            tidy()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    tidy()
    replay: Callable[[], None] = graph.replay
    return replay


def too_large(predicted_bytes: int) -> bool:
    """Whether a graph would hold so much that the other blocks of its group lack it."""
    return predicted_bytes > SHARE * torch.cuda.get_device_properties().total_memory
