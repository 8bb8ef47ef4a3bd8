"""The time and memory of one update of both networks of a GAN, with each block in their slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

import blocks
from ctxbench import gans, gate
from ctxbench.clocks import Sample, cpu_clock, cuda_clock
from ctxbench.cost import Cost
from ctxbench.generation import GenerationCell
from ctxbench.outcome import Outcome
from ctxbench.spec import Cell
from ctxbench.subject import AttentionKernels, Load, Subject

if TYPE_CHECKING:
    from tasks.generation.training import Batch, Job, Players


@dataclass(frozen=True)
class UpdateCell(GenerationCell):
    """One update of the discriminator and one of the generator, timed beside those with other blocks."""

    @property
    def kind(self) -> Literal["profile", "step", "task"]:
        return "step"

    @property
    def code(self) -> str:
        return "step"

    @property
    def group(self) -> tuple[Any, ...]:
        return (*Cell.group.fget(self), self.task, self.preset, self.classes)  # type: ignore[attr-defined]

    @property
    def columns(self) -> dict[str, Any]:
        return {"task": self.task, "preset": self.preset, "model": self.model, "dataset": self.dataset}

    @property
    def details(self) -> str:
        return f"{self.dataset}  one update of {self.batch} images  {self.dtype}"


def cost_of(cell: Cell) -> Cost:
    """Parameters of both networks, MACs of one forward of each for a batch, and the predicted peak of an update."""
    assert isinstance(cell, UpdateCell)
    found = gans.cost_of(cell)
    return Cost(
        params=found.params,
        params_formula=found.params,  # those of the blocks have been compared
        macs_formula=cell.batch * found.macs_formula,
        macs_counted=cell.batch * found.macs,
        macs_backward=None,
        uncounted_ops={},
        memory_bytes=found.memory_bytes,
    )


def cells_of(trainings: Sequence[GenerationCell]) -> list[UpdateCell]:
    """The updates of these trainings: data, seeds and first weights make no difference to them."""
    same: dict[str, Any] = {"seed": 0, "data": "", "reference": "", "checkpoint": "", "iterations": None}
    shared = [
        {field.name: getattr(cell, field.name) for field in dataclasses.fields(GenerationCell)}
        for cell in trainings
    ]
    return list(dict.fromkeys(UpdateCell(**fields | same) for fields in shared))


class UpdateSubject(Subject):
    """Both networks on random images, ready to be updated again and again.

    Raises:
        gate.BrokenRuleError: when the block of the discriminator's slot does not keep the rules, or an
            update is not finite.
    """

    def __init__(self, cell: Cell, load: Load, start: float, timeout_s: float) -> None:
        from tasks.generation.training import draw

        assert isinstance(cell, UpdateCell)
        job = cell.job()
        gate.check(lambda: other_block(job), cell.device, torch.float32)
        self.cell, self.x, self.gradient, self.timeout_s = cell, load.x, None, timeout_s
        self.samples: list[Sample] = []
        self.failed: Outcome | None = None
        self.calls_s = 0.0
        self.repeats = 1
        self.clock = cuda_clock(load.x.get_device()) if load.x.is_cuda else cpu_clock
        self.players = players_of(job)
        self.batch: Batch = draw(job, random_images(job), 0, 0, 1).to(load.x.device)
        self.attention_kernels: set[str] = set()
        self.kept: list[Any] = []
        with gate.untouched_settings():
            self.first_call_ms = self.first_call()
        self.memory_bytes = self.allocator_peak() if load.x.is_cuda else None
        self.fvcore = None
        self.preparation_s = perf_counter() - start

    @property
    def capturable(self) -> bool:
        return False

    def call(self) -> Tensor:
        self.players.step(self.batch)
        return self.x

    def tidy(self) -> None:
        """Gradients are part of an update."""

    def first_call(self) -> float:
        with AttentionKernels() as attention:
            taken = cpu_clock(self.call_and_keep)
        self.attention_kernels = attention.kernels
        self.kept.clear()
        for network in (self.players.generator, self.players.discriminator):
            finite = all(bool(each.isfinite().all()) for each in network.parameters())
            gate.require(finite, "the weights are finite after an update")
        return taken.wall_ms

    def allocator_peak(self) -> int:
        """Peak of CUDA's allocator in an update, with weights, gradients and the optimisers' states."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - self.own_bytes()
        self.call_and_wait()
        return torch.cuda.max_memory_allocated() - others

    def own_bytes(self) -> int:
        """Bytes of weights, gradients and the optimisers' states."""
        tensors: list[Tensor] = []
        for network, optimizer in zip(
            (self.players.generator, self.players.discriminator), self.players.optimizers, strict=True
        ):
            tensors += [*network.parameters(), *network.buffers()]
            tensors += [each.grad for each in network.parameters() if each.grad is not None]
            tensors += [
                value
                for state in optimizer.optimizer.state.values()
                for value in state.values()
                if isinstance(value, Tensor) and value.is_cuda
            ]
        return sum(each.nbytes for each in tensors)


def other_block(job: Job) -> blocks.ContextBlock:
    """The block of the discriminator's slot."""
    return blocks.create(job.block, job.layout.slot_widths[1], **job.options[1]).train()


def players_of(job: Job) -> Players:
    """Both networks with first weights and their optimisers."""
    from tasks.generation.training import Players, fabric_for, start

    fabric, state = fabric_for(job), start(job)
    generator, first = fabric.setup(state.generator, state.optimizers[0])
    discriminator, second = fabric.setup(state.discriminator, state.optimizers[1])
    return Players(fabric, generator, discriminator, (first, second))


def random_images(job: Job) -> Any:
    """As many as a batch has."""
    from tasks.generation.data import Images

    shape = (job.recipe.batch, job.layout.channels, *job.layout.size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(images, torch.arange(len(images)) % job.layout.classes, "")
