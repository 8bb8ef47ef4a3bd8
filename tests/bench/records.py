"""Records of made-up measurements, as many as a benchmark wishes."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import blocks
from ctxbench.record import Record
from ctxbench.store import RunStore
from tests.factories import make_record

CHANNELS = (64, 128, 256, 512, 1024)
SIDES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MODES = ("infer", "train")


def made_up(number: int) -> Iterator[Record]:
    """Records of many blocks, sizes and modes, each with 10 to 30 samples of its latency."""
    generator = random.Random(0)
    cells = itertools.cycle(itertools.product(MODES, CHANNELS, SIDES, blocks.names()))
    for index, (mode, channels, side, name) in enumerate(itertools.islice(cells, number)):
        macs = channels * channels * side * side
        samples = sorted(macs / 1e9 * generator.uniform(1, 1.1) for _ in range(generator.randint(10, 30)))
        yield make_record(
            cell_id=f"{index:016x}",
            spec=name,
            block=name,
            family=blocks.info(name).family,
            mode=mode,
            channels=channels,
            height=side,
            width=side,
            macs_counted=macs,
            macs_formula=macs,
            macs_backward=2 * macs if mode == "train" else None,
            uncounted_ops_json='{"add": 4, "div": 12, "softmax": 1}',
            latency_ms_median=samples[len(samples) // 2],
            latency_ms_ci_low=samples[1],
            latency_ms_ci_high=samples[-2],
            iterations=len(samples),
            latency_samples_json=json.dumps(samples),
            latency_cpu_samples_json=json.dumps(samples),
        )


def write_quickly(folder: Path, number: int) -> RunStore:
    """A run of so many records, written without waiting for the disk."""
    store = RunStore.create(folder)
    for record in made_up(number):
        (store.records / f"{record.cell_id}.json").write_text(record.to_json(), encoding="utf-8")
    return store
