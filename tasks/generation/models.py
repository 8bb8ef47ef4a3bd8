"""Class-conditional residual GANs (SAGAN, HamGAN) whose generator and discriminator have a slot for a block.

Both follow the description of HamGAN, whose trunk is that of SAGAN: spectral normalisation, conditional
batch normalisation, a projection discriminator with sum pooling. The slot adds what the block adds to its
input, times a gate that starts at zero: at the start, and with `none` at all times, the trunk is alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import blocks

START = 4  # height and width of the generator's first map


@dataclass(frozen=True)
class Layout:
    """What both networks of a GAN are made of.

    Attributes:
        size: height and width of the images; channels: 1 (grey) or 3.
        classes: how many there are.
        latent: length of the noise.
        generator: widths of the first map and behind each block, each of which doubles the size.
        discriminator: widths behind each block; all but the last halve the size.
        slots: behind how many blocks the slot is, in the generator and in the discriminator.
        generator_norm: whether the generator is spectrally normalised too.
        eps, momentum: of batch normalisation.
    """

    size: int
    channels: int
    classes: int
    latent: int
    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    slots: tuple[int, int]
    generator_norm: bool = True
    eps: float = 1e-3
    momentum: float = 1e-3


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, found by one power iteration a training step.

    Args:
        weight: (out, ...), seen as a matrix of `out` rows.
        exact: divide always; otherwise only where the value is above one.
    """

    u: Tensor

    def __init__(self, weight: Tensor, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.register_buffer("u", F.normalize(torch.randn(len(weight)), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        sigma = u @ (matrix @ v)
        return weight / (sigma if self.exact else sigma.clamp_min(1.0))


def normalised(module: nn.Module, exact: bool = False) -> nn.Module:
    """Normalise the weights of all convolutions, linear layers and embeddings of a module spectrally."""
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv2d | nn.Conv1d | nn.Linear | nn.Embedding):
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, exact))
    return module


class ConditionalNorm(nn.Module):
    """Batch normalisation with a scale and a shift for each class."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=layout.eps, momentum=layout.momentum, affine=False)
        self.scale = nn.Embedding(layout.classes, width)
        self.shift = nn.Embedding(layout.classes, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) -> (B, C, H, W)."""
        return self.norm(x) * self.scale(labels)[..., None, None] + self.shift(labels)[..., None, None]


class Slot(nn.Module):
    """x + gate (block(x) - x), with a gate that starts at zero: (B, C, H, W) -> (B, C, H, W).

    Args:
        spectral: whether the block's weights are normalised by their largest singular value.
        batch_norm: whether the block keeps its batch normalisation. In a discriminator that would tell it
            which images came together, and training collapses; HamGAN leaves it out there too.
    """

    def __init__(
        self, block: str, width: int, options: dict[str, Any], spectral: bool, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.block = blocks.create(block, width, **options)
        if not batch_norm:
            without_batch_norm(self.block)
        if spectral:
            normalised(self.block, exact=True)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.block(x), self.gate)


class GeneratorBlock(nn.Module):
    """Doubles the size: (B, in, H, W) -> (B, out, 2 H, 2 W)."""

    def __init__(self, inputs: int, outputs: int, layout: Layout) -> None:
        super().__init__()
        self.first_norm = ConditionalNorm(inputs, layout)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second_norm = ConditionalNorm(outputs, layout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = self.first(doubled(F.relu(self.first_norm(x, labels))))
        y = self.second(F.relu(self.second_norm(y, labels)))
        return y + self.shortcut(doubled(x))


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Generator(nn.Module):
    """Noise and classes -> images.

    Args:
        block, options: what its slot holds.
    """

    def __init__(self, layout: Layout, block: str, options: dict[str, Any]) -> None:
        super().__init__()
        widths = layout.generator
        self.stem = nn.Linear(layout.latent, widths[0] * START**2)
        self.layers = nn.ModuleList(
            GeneratorBlock(before, after, layout) for before, after in pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(widths[-1], eps=layout.eps, momentum=layout.momentum)
        self.head = nn.Conv2d(widths[-1], layout.channels, 3, padding=1)
        if layout.generator_norm:
            for part in (self.stem, self.head, *convolutions(self.layers)):
                normalised(part)
        self.depth = layout.slots[0]
        self.slot = Slot(block, widths[self.depth], options, layout.generator_norm)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """(B, latent) and (B,) -> (B, channels, size, size) in -1..1."""
        x = self.stem(noise).unflatten(1, (-1, START, START))
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, labels)
            if number == self.depth:
                x = self.slot(x)
        return torch.tanh(self.head(F.relu(self.norm(x))))


class DiscriminatorBlock(nn.Module):
    """Halves the size, or keeps it: (B, in, H, W) -> (B, out, H / 2, W / 2) or (B, out, H, W).

    Args:
        first: whether its input is an image, which has no activation before it.
        down: whether it halves.
    """

    def __init__(self, inputs: int, outputs: int, first: bool, down: bool) -> None:
        super().__init__()
        self.is_first, self.down = first, down
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if down or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x if self.is_first else F.relu(x))))
        if not self.down:
            return y + self.shortcut(x)
        # A 1x1 convolution and an average commute; on the smaller map it costs a quarter.
        return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))


class Discriminator(nn.Module):
    """Images and classes -> scores."""

    def __init__(self, layout: Layout, block: str, options: dict[str, Any]) -> None:
        super().__init__()
        widths = (layout.channels, *layout.discriminator)
        self.layers = nn.ModuleList(
            DiscriminatorBlock(before, after, number == 0, number < len(widths) - 2)
            for number, (before, after) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], 1)
        self.embedding = nn.Embedding(layout.classes, widths[-1])
        for part in (self.head, self.embedding, *convolutions(self.layers)):
            normalised(part)
        self.depth = layout.slots[1]
        self.slot = Slot(block, widths[self.depth], options, spectral=True, batch_norm=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B, channels, size, size) and (B,) -> (B,)."""
        x = images
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number == self.depth:
                x = self.slot(x)
        features = F.relu(x).sum((2, 3))
        return self.head(features)[:, 0] + (self.embedding(labels) * features).sum(1)


def without_batch_norm(module: nn.Module) -> None:
    """Put nothing in the place of every batch normalisation of a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)]
