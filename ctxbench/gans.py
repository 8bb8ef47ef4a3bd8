"""What both networks of a GAN cost with a block in their slots, without running them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ctxbench.cost import OperatorCount, PeakMemory
from ctxbench.generation import GenerationCell
from ctxbench.networks import GIB, count, require_equal, share
from ctxbench.record import GIGA
from ctxbench.tables import Column, Table, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks.generation.models import Slot

MILLION = 1e6
NAMES = ("generator", "discriminator")


@dataclass(frozen=True)
class NetworkCount:
    """One network: parameters and, for one image, multiply-accumulates; of all and of the block.

    Attributes:
        block_macs_formula: what the block's closed form says.
    """

    params: int
    block_params: int
    macs: int
    block_macs: int
    block_macs_formula: int
    slot: tuple[int, int, int]


@dataclass(frozen=True)
class GanCost:
    """The cost of both networks.

    Attributes:
        size: height and width of the images.
        memory_bytes: predicted peak of one update of each network with parameters, gradients and the batch,
            without the optimisers' states.
    """

    task: str
    preset: str
    block: str
    size: tuple[int, int]
    batch: int
    generator: NetworkCount
    discriminator: NetworkCount
    memory_bytes: int

    @property
    def params(self) -> int:
        return self.generator.params + self.discriminator.params

    @property
    def macs(self) -> int:
        """Of one image made, and one judged."""
        return self.generator.macs + self.discriminator.macs

    @property
    def macs_formula(self) -> int:
        """The same with the block's closed forms in the place of what was counted in it."""
        return sum(
            it.macs - it.block_macs + it.block_macs_formula for it in (self.generator, self.discriminator)
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class MetaFabric:
    """Stands in for Fabric where nothing is calculated."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Idle:
    """Stands in for an optimiser."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def zero_grad(self) -> None:
        self.network.zero_grad()

    def step(self) -> None: ...


def estimate(cells: Sequence[GenerationCell]) -> list[GanCost]:
    """What each cell's networks cost; the same networks once.

    Raises:
        UsageError: for a block that counts wrongly.
    """
    found = {(it.preset, it.block, it.options): it for it in cells}
    return [cost_of(cell) for cell in found.values()]


def cost_of(cell: GenerationCell) -> GanCost:
    from tasks.generation.models import Discriminator, Generator

    job = cell.job()
    networks: list[Any] = [
        kind(job.layout, job.block, options).to("meta")
        for kind, options in zip((Generator, Discriminator), job.options, strict=True)
    ]
    counts = [counted(cell, network) for network in networks]
    for each in counts:
        require_equal(cell.label, "macs", each.block_macs_formula, each.block_macs)
    # A discriminator's block lacks the normalisation that is part of its closed form.
    block = networks[0].slot.block
    require_equal(cell.label, "param_count", block.param_count(), counts[0].block_params)
    return GanCost(
        task=cell.task,
        preset=cell.preset,
        block=cell.label,
        size=cell.layout.size,
        batch=cell.batch,
        generator=counts[0],
        discriminator=counts[1],
        memory_bytes=update_peak(cell, *networks),
    )


@torch.no_grad()
def counted(cell: GenerationCell, network: nn.Module) -> NetworkCount:
    """The counts of one image that is made, or judged."""
    from tasks.generation.models import Generator

    layout, counter = cell.layout, OperatorCount()
    slot: Any = network.slot
    seen: list[tuple[int, int, int]] = []
    within: list[int] = []
    handle = slot.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[1:])))
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    shape = (layout.latent,) if isinstance(network, Generator) else (layout.channels, *layout.size)
    network.eval()
    with counter, watched(slot, counter, within):
        network(torch.empty(1, *shape, device="meta"), labels)
    handle.remove()
    formula = slot.block.macs(*seen[0][1:])
    network.train()
    return NetworkCount(count(network), count(slot.block), counter.macs, within[0], formula, seen[0])


@contextmanager
def watched(slot: Slot, counter: OperatorCount, within: list[int]) -> Iterator[None]:
    """Appends what the counter counts in the slot: what the block does."""
    before = slot.register_forward_pre_hook(lambda module, args: within.append(-counter.macs))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        within[-1] += counter.macs

    after = slot.register_forward_hook(end)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def update_peak(cell: GenerationCell, generator: nn.Module, discriminator: nn.Module) -> int:
    """Peak bytes of one update of the discriminator and one of the generator."""
    from tasks.generation.training import Batch, Players

    layout, memory = cell.layout, PeakMemory()
    players = Players(MetaFabric(), generator, discriminator, (Idle(generator), Idle(discriminator)))  # type: ignore[arg-type]
    for network in (generator, discriminator):
        memory.track([*network.parameters(), *network.buffers()])
    with memory, torch.device("meta"):
        size = cell.batch
        labels = torch.zeros(size, dtype=torch.long)
        batch = Batch(
            torch.empty(size, layout.channels, *layout.size),
            labels,
            torch.empty(2, size, layout.latent),
            torch.zeros(2, size, dtype=torch.long),
        )
        players.step(batch)
    return memory.peak


def tables(costs: list[GanCost]) -> list[Table[GanCost]]:
    """One table for each preset."""
    found = []
    for preset in dict.fromkeys(it.preset for it in costs):
        own = [it for it in costs if it.preset == preset]
        height, width = own[0].size
        slots = " and ".join(
            f"{channels}x{rows}x{columns} ({name})"
            for name in NAMES
            for channels, rows, columns in [getattr(own[0], name).slot]
        )
        notes = [
            f"Nothing was run. Slots: {slots}. MACs: convolutions and matrix products, for one image made by the "
            "generator (G) and one judged by the discriminator (D); all counted ones of blocks equal their closed form.",
            f"Update: predicted peak of one update of both, {own[0].batch} images, without the optimisers' states.",
        ]
        found.append(
            Table(f"{own[0].task} ({preset}): GAN of {height}x{width} images", columns(), own, notes)
        )
    return found


def columns() -> list[Column[GanCost]]:
    found = [Column[GanCost]("block", lambda it: it.block, numeric=False)]
    for name in NAMES:
        letter = name[0].upper()

        def of(cost: GanCost, name: str = name) -> NetworkCount:
            return getattr(cost, name)

        found += [
            Column(f"params of {letter} (10^6)", lambda it, of=of: number(of(it).params / MILLION)),  # type: ignore[misc]
            Column("of block", lambda it, of=of: share(of(it).block_params, of(it).params)),  # type: ignore[misc]
            Column(f"MACs of {letter} (G)", lambda it, of=of: number(of(it).macs / GIGA)),  # type: ignore[misc]
            Column("of block", lambda it, of=of: share(of(it).block_macs, of(it).macs)),  # type: ignore[misc]
        ]
    found.append(Column("update (GiB)", lambda it: number(it.memory_bytes / GIB, 3)))
    return found
