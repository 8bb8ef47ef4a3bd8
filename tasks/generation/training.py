"""Trains one GAN: the block in its two slots is the only difference between two jobs.

Device, precision and several processes come from Lightning Fabric. Whatever is random is a function of
(seed, iteration, rank), so that a run that was killed goes on bit for bit, and at once.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from tasks.generation.data import Images
from tasks.generation.models import Discriminator, Generator
from tasks.generation.recipes import Recipe

CHECKPOINTS = 10  # in a training
POINTS = 100  # of the curve
NAME = "last.pt"


@dataclass(frozen=True)
class Job:
    """What is trained, how, and with which random numbers.

    Attributes:
        recipe: the protocol.
        block, options: what both slots hold.
        seed: of weights, data order and noise; equal for all blocks that are compared.
        iterations: instead of the recipe's.
    """

    recipe: Recipe
    block: str
    options: dict[str, Any]
    seed: int = 0
    iterations: int | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def steps(self) -> int:
        return self.recipe.iterations if self.iterations is None else self.iterations


@dataclass
class State:
    """All that a resume needs."""

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    iteration: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "iteration": self.iteration,
            "curve": self.curve,
        }

    def load(self, content: dict[str, Any]) -> None:
        self.generator.load_state_dict(content["generator"])
        self.discriminator.load_state_dict(content["discriminator"])
        self.average.load_state_dict(content["average"])
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.iteration, self.curve = content["iteration"], content["curve"]


def train(job: Job, data: Images, folder: Path, tell: Callable[[str], None] = lambda text: None) -> State:
    """Carry out a job, or go on with it from the last checkpoint in `folder`.

    Raises:
        FloatingPointError: when a loss is no longer finite.
    """
    fabric = Fabric(
        accelerator=job.device, devices=1, precision="bf16-mixed" if job.dtype == "bfloat16" else "32-true"
    )
    state = start(job)
    path = folder / NAME
    if path.exists():
        state.load(torch.load(path, map_location="cpu", weights_only=True))
    generator, first = fabric.setup(state.generator, state.optimizers[0])
    discriminator, second = fabric.setup(state.discriminator, state.optimizers[1])
    players = Players(fabric, generator, discriminator, (first, second))
    state.average.to(fabric.device)
    every = max(job.steps // POINTS, 1)
    while state.iteration < job.steps:
        batch = draw(job, data, state.iteration, fabric.global_rank, fabric.world_size).to(fabric.device)
        losses = players.step(batch)
        state.iteration += 1
        average(state, job.recipe.ema)
        if state.iteration % every == 0:
            point = {"iteration": state.iteration} | {name: float(value) for name, value in losses.items()}
            if not all(map(torch.isfinite, map(torch.tensor, point.values()))):
                raise FloatingPointError(f"a loss is not finite after {state.iteration} iterations")
            state.curve.append(point)
            tell(f"iteration {state.iteration} of {job.steps}, generator {point['generator']:.2f}")
        if state.iteration % max(job.steps // CHECKPOINTS, 1) == 0 or state.iteration == job.steps:
            save(state, path)
    return state


def start(job: Job) -> State:
    """Both networks with their first weights: those outside the slots are the same for all blocks of a seed."""
    layout, rates = job.recipe.layout, job.recipe.rates
    networks = []
    for number, kind in enumerate((Generator, Discriminator)):
        with seeded(job.seed, number):
            shared = kind(layout, "none", {})
            network = kind(layout, job.block, job.options)
        network.load_state_dict(shared.state_dict(), strict=False)
        networks.append(network)
    generator, discriminator = networks
    first, second = (
        torch.optim.Adam(network.parameters(), lr=rate, betas=job.recipe.betas)
        for network, rate in zip(networks, rates, strict=True)
    )
    mean = copy.deepcopy(generator).eval().requires_grad_(False)
    return State(generator, discriminator, mean, (first, second))


@dataclass(frozen=True)
class Batch:
    """Real images with their classes, and noise with classes for the generator, once for each network's step."""

    real: Tensor
    labels: Tensor
    noise: Tensor  # (2, B, latent)
    wanted: Tensor  # (2, B)

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in ("real", "labels", "noise", "wanted")))


def draw(job: Job, data: Images, iteration: int, rank: int, world: int) -> Batch:
    """What an iteration needs; also seeds torch's own numbers, of which blocks may draw."""
    torch.manual_seed(mixed(job.seed, iteration, rank))
    recipe = job.recipe
    size = recipe.batch // world
    chosen = torch.randint(len(data.images), (size,))
    return Batch(
        data.images[chosen].float() / 127.5 - 1,
        data.labels[chosen],
        torch.randn(2, size, recipe.layout.latent),
        torch.randint(recipe.layout.classes, (2, size)),
    )


@dataclass(frozen=True)
class Players:
    """Both networks with their optimisers, as Fabric has set them up."""

    fabric: Fabric
    generator: Any
    discriminator: Any
    optimizers: tuple[Any, Any]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update of the discriminator, then one of the generator, with the hinge loss; returns the losses."""
        with torch.no_grad():
            fake = self.generator(batch.noise[0], batch.wanted[0])
        self.discriminator.requires_grad_(True)
        # One forward of both, so that the norm's power iteration moves once.
        scores = self.discriminator(torch.cat((batch.real, fake)), torch.cat((batch.labels, batch.wanted[0])))
        real, false = scores.chunk(2)
        loss = F.relu(1 - real).mean() + F.relu(1 + false).mean()
        self.update(loss, self.optimizers[1])
        self.discriminator.requires_grad_(False)
        made = -self.discriminator(self.generator(batch.noise[1], batch.wanted[1]), batch.wanted[1]).mean()
        self.update(made, self.optimizers[0])
        right = ((real > 0).float().mean() + (false < 0).float().mean()) / 2
        return {"generator": made.detach(), "discriminator": loss.detach(), "right": right}

    def update(self, loss: Tensor, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.fabric.backward(loss)
        optimizer.step()


@torch.no_grad()
def average(state: State, decay: float) -> None:
    """Move the averaged generator's weights towards the present ones; its buffers are the present ones."""
    for mean, value in zip(state.average.parameters(), state.generator.parameters(), strict=True):
        mean.lerp_(value.detach().to(mean.dtype), 1 - decay)
    for kept, present in zip(state.average.buffers(), state.generator.buffers(), strict=True):
        kept.copy_(present)


def save(state: State, path: Path) -> None:
    """Replace the checkpoint: it is old or whole, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    torch.save(state.to_dict(), partial)
    os.replace(partial, path)


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """With torch's random numbers on the CPU started from these, and as they were afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed(*numbers))
        yield


def mixed(*numbers: int) -> int:
    """A seed for these numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1
