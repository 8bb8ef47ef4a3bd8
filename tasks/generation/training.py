"""Trains one GAN: the block in its two slots is the only difference between two jobs.

Device, precision and several processes come from Lightning Fabric. Whatever is random is a function of
(seed, iteration, rank), so that a run that was killed goes on bit for bit, and at once.
"""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from tasks.files import UnreadableError, read_weights, replacing
from tasks.generation.data import Images
from tasks.generation.models import Discriminator, Generator, Layout
from tasks.generation.randomness import mixed, seeded
from tasks.generation.recipes import Recipe
from tasks.launch import gathered, local_processes, processes, share_buffers
from tasks.usage import clocks, forget_peak, peak_bytes

CHECKPOINTS = 10  # in a training, with a sheet of samples each
POINTS = 100  # of the curve
NAME = "last.pt"
SAMPLED = 64  # images generated at once
ROWS = 10  # of a sheet of samples: classes
NETWORKS = ("generator", "discriminator", "average")
CURVE = ("iteration", "generator", "discriminator", "right", "generator_norm", "discriminator_norm")


@dataclass(frozen=True)
class Job:
    """What is trained, how, and with which random numbers.

    Attributes:
        recipe: the protocol.
        layout: of both networks, with the data's number of classes.
        block: what both slots hold; options: in the generator's and in the discriminator's.
        seed: of weights, data order and noise; equal for all blocks that are compared.
        iterations: instead of the recipe's.
        weights: of the networks, by name, to start from.
    """

    recipe: Recipe
    layout: Layout
    block: str
    options: tuple[dict[str, Any], dict[str, Any]]
    seed: int = 0
    iterations: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    weights: dict[str, dict[str, Tensor]] | None = None

    @property
    def steps(self) -> int:
        return self.recipe.iterations if self.iterations is None else self.iterations

    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare a score with another."""
        recipe = self.recipe
        return {
            "data": recipe.data,
            "size": list(self.layout.size),
            "layout": asdict(self.layout),
            "iterations": self.steps,
            "batch": recipe.batch,
            "optimizer": "Adam",
            "learning_rates": list(recipe.rates),
            "betas": list(recipe.betas),
            "ema": recipe.ema,
            "images_scored": recipe.count,
            "checkpoint_scored": "last",
            "note": recipe.note,
        }


@dataclass
class State:
    """All that a resume needs.

    Attributes:
        average: the generator that is scored.
        seconds, cpu_seconds: spent so far.
        curve: rows of `CURVE`.
    """

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    iteration: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Those of the networks, on the CPU: what a file of trained weights holds."""
        return {
            name: {key: value.cpu() for key, value in getattr(self, name).state_dict().items()}
            for name in NETWORKS
        }

    def to_dict(self) -> dict[str, Any]:
        plain = ("iteration", "seconds", "cpu_seconds", "curve")
        return {
            **{name: getattr(self, name).state_dict() for name in NETWORKS},
            "optimizers": [each.state_dict() for each in self.optimizers],
            **{name: getattr(self, name) for name in plain},
        }

    def load(self, content: dict[str, Any]) -> None:
        for name in NETWORKS:
            getattr(self, name).load_state_dict(content[name])
        for optimizer, state in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for name in ("iteration", "seconds", "cpu_seconds", "curve"):
            setattr(self, name, content[name])


@dataclass(frozen=True)
class Trained:
    """What came of a job.

    Attributes:
        state: both networks and the generator's average.
        seconds, cpu_seconds: of all iterations, those before a resume included; CPU seconds are those of the
            first process, times the number of processes.
        peak_bytes: the most memory of a process since it took up the job, where the system can tell; else ever.
    """

    state: State
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    def curve_csv(self) -> str:
        """Losses, the share of images the discriminator is right about, and norms of gradients, as CSV."""
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, CURVE, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.state.curve)
        return file.getvalue()


def train(
    job: Job,
    data: Images,
    folder: Path,
    tell: Callable[[str], None] = lambda text: None,
    show: Callable[[int, Tensor], None] = lambda iteration, images: None,
) -> Trained:
    """Carry out a job, or go on with it from the last checkpoint in `folder`.

    Args:
        tell: is told the progress.
        show: is given the `samples`, ten times.

    Raises:
        FloatingPointError: when a loss is no longer finite.
    """
    forget_peak(job.device)
    fabric = fabric_for(job)
    state = start(job)
    generator, first = fabric.setup(synchronised(state.generator, fabric), state.optimizers[0])
    discriminator, second = fabric.setup(state.discriminator, state.optimizers[1])
    players = Players(fabric, generator, discriminator, (first, second))
    state.average.to(fabric.device)
    path = folder / NAME
    resume(state, path, job.steps)  # onto the device: Fabric moves networks and not what optimisers hold
    every = max(job.steps // POINTS, 1)
    begun, spent = clocks(), (state.seconds, state.cpu_seconds)
    while state.iteration < job.steps:
        batch = draw(job, data, state.iteration, fabric.global_rank, fabric.world_size).to(fabric.device)
        state.iteration += 1
        watched = state.iteration % every == 0
        losses = players.step(batch, watched)
        average(state, job.recipe.ema)
        if watched:
            point = {"iteration": state.iteration} | {name: float(value) for name, value in losses.items()}
            if not all(map(torch.isfinite, map(torch.tensor, point.values()))):
                raise FloatingPointError(f"a loss is not finite after {state.iteration} iterations")
            state.curve.append(point)
            tell(
                f"iteration {state.iteration} of {job.steps}, losses {point['generator']:.2f} (G) "
                f"{point['discriminator']:.2f} (D)"
            )
        if state.iteration % max(job.steps // CHECKPOINTS, 1) == 0 or state.iteration == job.steps:
            share_buffers(state.generator)
            share_buffers(state.average)
            now = clocks()
            state.seconds, state.cpu_seconds = (
                before + end - start for before, end, start in zip(spent, now, begun, strict=True)
            )
            if fabric.global_rank == 0:
                with replacing(path) as partial:
                    torch.save(state.to_dict(), partial)
                show(state.iteration, samples(job, state.average))
    cpu_seconds = fabric.world_size * state.cpu_seconds
    return Trained(state, state.seconds, cpu_seconds, max(gathered(peak_bytes(job.device))))


def fabric_for(job: Job) -> Fabric:
    """Fabric on the processes that were started, which have joined already."""
    count = processes()
    together: dict[str, Any] = {"devices": 1, "plugins": [LightningEnvironment()]}
    if count > 1:
        here = local_processes()
        together = {
            "devices": here,
            "num_nodes": count // here,
            "plugins": [TorchElasticEnvironment()],
            # What is counted in forward, the norm's vectors, is equal everywhere as the weights are.
            "strategy": DDPStrategy(broadcast_buffers=False),
        }
    precision: Any = "bf16-mixed" if job.dtype == "bfloat16" else "32-true"
    fabric = Fabric(accelerator=job.device, precision=precision, **together)
    fabric.launch()
    return fabric


def synchronised(network: nn.Module, fabric: Fabric) -> nn.Module:
    """With batch normalisation over the batch of all processes, where torch can: on GPUs."""
    if fabric.world_size == 1 or fabric.device.type != "cuda":
        return network
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def start(job: Job) -> State:
    """Both networks with their first weights: those outside the slots are the same for all blocks of a seed."""
    networks = []
    for number, kind in enumerate((Generator, Discriminator)):
        with seeded("weights", job.seed, number):
            shared = kind(job.layout, "none", {})
            network = kind(job.layout, job.block, job.options[number])
        network.load_state_dict(shared.state_dict(), strict=False)
        networks.append(network)
    generator, discriminator = networks
    mean = copy.deepcopy(generator).eval().requires_grad_(False)
    for name, network in zip(NETWORKS, (generator, discriminator, mean), strict=True):
        if job.weights is not None:
            network.load_state_dict(job.weights[name])
    first, second = (
        torch.optim.Adam(network.parameters(), lr=rate, betas=job.recipe.betas)
        for network, rate in zip(networks, job.recipe.rates, strict=True)
    )
    return State(generator, discriminator, mean, (first, second))


def resume(state: State, path: Path, steps: int) -> None:
    """Go on from a checkpoint of a training of so many steps, if there is one; a damaged one counts as none."""
    before = copy.deepcopy(state.to_dict())
    try:
        content = read_weights(path)
        state.load(content)
        whole = type(state.iteration) is int and 0 <= state.iteration <= steps
        whole &= all(tuple(point) == CURVE for point in state.curve)
        whole &= all(type(it) is float for it in (state.seconds, state.cpu_seconds))
    except (UnreadableError, RuntimeError, LookupError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        state.load(before)


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
    torch.manual_seed(mixed("batch", job.seed, iteration, rank))
    size = job.recipe.batch // world
    chosen = torch.randint(len(data.images), (size,))
    return Batch(
        data.images[chosen].float() / 127.5 - 1,
        data.labels[chosen],
        torch.randn(2, size, job.layout.latent),
        torch.randint(job.layout.classes, (2, size)),
    )


@dataclass(frozen=True)
class Players:
    """Both networks with their optimisers, as Fabric has set them up."""

    fabric: Fabric
    generator: Any
    discriminator: Any
    optimizers: tuple[Any, Any]

    def step(self, batch: Batch, watched: bool = False) -> dict[str, Tensor]:
        """One update of the discriminator, then one of the generator, with the hinge loss.

        Args:
            watched: whether to return the losses, the share of images that the discriminator was right
                about, and the gradients' norms, all of this process.
        """
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
        if not watched:
            return {}
        right = ((real > 0).float().mean() + (false < 0).float().mean()) / 2
        norms = {
            f"{name}_norm": gradient_norm(getattr(self, name)) for name in ("generator", "discriminator")
        }
        return {"generator": made.detach(), "discriminator": loss.detach(), "right": right} | norms

    def update(self, loss: Tensor, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.fabric.backward(loss)
        optimizer.step()


def gradient_norm(network: nn.Module) -> Tensor:
    """Euclidean norm of the gradients of the last update."""
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


@torch.no_grad()
def average(state: State, decay: float) -> None:
    """Move the averaged generator's weights towards the present ones; its buffers are the present ones."""
    for mean, value in zip(state.average.parameters(), state.generator.parameters(), strict=True):
        mean.lerp_(value.detach().to(mean.dtype), 1 - decay)
    for kept, present in zip(state.average.buffers(), state.generator.buffers(), strict=True):
        kept.copy_(present)


@torch.no_grad()
def generate(
    job: Job, generator: nn.Module, labels: Tensor, use: str = "scored"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of these classes in batches: uint8 (B, C, H, W), on the CPU, with their classes.

    Args:
        use: what the images are for; others get other noise.

    Raises:
        FloatingPointError: for images that are not finite.
    """
    device = next(generator.parameters()).device
    for number, wanted in enumerate(labels.split(SAMPLED)):
        with seeded(use, job.seed, number):
            noise = torch.randn(len(wanted), job.layout.latent)
            images = generator(noise.to(device), wanted.to(device)).float().cpu()
        if not images.isfinite().all():
            raise FloatingPointError("the generator makes images that are not finite")
        yield ((images + 1) * 127.5).round().to(torch.uint8), wanted


def samples(job: Job, generator: nn.Module) -> Tensor:
    """Some images of each class, one class after the other: uint8 (classes * across, C, H, W)."""
    labels = torch.arange(min(job.layout.classes, ROWS)).repeat_interleave(across(job.layout))
    return torch.cat([images for images, _ in generate(job, generator, labels, "samples")])


def across(layout: Layout) -> int:
    """How many images of a class make a sheet about square."""
    height, width = layout.size
    return max(round(ROWS * height / width), 1)
