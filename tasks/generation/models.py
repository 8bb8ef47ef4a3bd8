"""Class-conditional residual GANs (SAGAN, HamGAN) whose generator and discriminator have a slot for a block.

Both follow the description of HamGAN, whose trunk is that of SAGAN: spectral normalisation, conditional
batch normalisation, a projection discriminator with sum pooling. The slot adds the block's branch to its
input, times a gate that starts at zero: at the start, and with `none` at all times, the trunk is alone.

What differs from HamGAN, as the slot takes any block: a block's own normalisation in the generator's slot is
plain batch normalisation, not conditional, and its first convolution may have a bias.
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

CLASS_SIGNAL = 3.0  # what stands for a class beside noise of variance one


@dataclass(frozen=True)
class Layout:
    """What both networks of a GAN are made of.

    Attributes:
        channels: of the images, 1 (grey) or 3.
        classes: how many there are.
        latent: length of the noise.
        generator: widths of the first map and behind each block, each of which doubles the size.
        discriminator: widths behind each block.
        slots: behind how many blocks the slot is, in the generator and in the discriminator.
        start: height and width of the generator's first map.
        halvings: how many blocks of the discriminator halve the size, from the first.
        generator_norm: whether the generator is spectrally normalised too, and both are drawn as HamGAN's.
        eps, momentum: of batch normalisation.
        divided: whether each half of the first map has noise of its own, and the left one alone is told
            the class. Then normalisation does not depend on the class either.
    """

    channels: int
    classes: int
    latent: int
    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    slots: tuple[int, int]
    start: tuple[int, int] = (4, 4)
    halvings: int = 5
    generator_norm: bool = True
    eps: float = 1e-3
    momentum: float = 1e-3
    divided: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.start
        larger = 2 ** (len(self.generator) - 1)
        return height * larger, width * larger

    @property
    def slot_size(self) -> tuple[int, int]:
        """Height and width of the map in the generator's slot."""
        height, width = self.start
        return height * 2 ** self.slots[0], width * 2 ** self.slots[0]

    @property
    def slot_widths(self) -> tuple[int, int]:
        """Channels of the slots in the generator and in the discriminator."""
        first, second = self.slots
        return self.generator[first], self.discriminator[second - 1]


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


def initialised(module: nn.Module) -> nn.Module:
    """Draw weights as HamGAN does: Glorot's uniform distribution, biases zero.

    The norm then acts from the start: most largest singular values are above one.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.xavier_uniform_(layer.weight)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


class ConditionalNorm(nn.Module):
    """Batch normalisation with a scale and a shift for each class."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=layout.eps, momentum=layout.momentum, affine=False)
        classes = 1 if layout.divided else layout.classes
        self.scale = nn.Embedding(classes, width)
        self.shift = nn.Embedding(classes, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) -> (B, C, H, W)."""
        return self.norm(x) * self.scale(labels)[..., None, None] + self.shift(labels)[..., None, None]


class Slot(nn.Module):
    """x + gate * branch(x), with a gate that starts at zero: (B, C, H, W) -> (B, C, H, W).

    An activation that a block has behind its sum is left out, as HamGAN does: blocks without one would
    otherwise be compared with more than context.

    Gates of the block's own that start at zero are opened: of two closed gates in a row neither would ever
    get a gradient.

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
        open_gates(self.block)
        if not batch_norm:
            without_batch_norm(self.block)
        if spectral:
            normalised(self.block, exact=True)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.block.branch(x).to(x.dtype)


class Stem(nn.Module):
    """Noise -> the generator's first map."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        height, width = layout.start
        inputs, outputs = layout.latent, layout.generator[0] * height * width
        if layout.divided:
            inputs, outputs = inputs // 2 + layout.classes, outputs // 2
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """(B, latent) and (B,) -> (B, C, *start)."""
        height, width = self.layout.start
        if not self.layout.divided:
            return self.linear(noise).unflatten(1, (-1, height, width))
        told = CLASS_SIGNAL * F.one_hot(labels, self.layout.classes).to(noise)
        left, right = noise.chunk(2, dim=1)
        parts = (torch.cat((left, told), 1), torch.cat((right, torch.zeros_like(told)), 1))
        return torch.cat([self.linear(part).unflatten(1, (-1, height, width // 2)) for part in parts], 3)


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
        self.layout = layout
        self.stem = Stem(layout)
        self.layers = nn.ModuleList(
            GeneratorBlock(before, after, layout) for before, after in pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(widths[-1], eps=layout.eps, momentum=layout.momentum)
        self.head = nn.Conv2d(widths[-1], layout.channels, 3, padding=1)
        if layout.generator_norm:
            for part in (self.stem, self.head, *convolutions(self.layers)):
                normalised(initialised(part))
        self.depth = layout.slots[0]
        self.slot = Slot(block, layout.slot_widths[0], options, layout.generator_norm)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """(B, latent) and (B,) -> (B, channels, H, W) in -1..1."""
        x = self.stem(noise, labels)
        if self.layout.divided:
            labels = torch.zeros_like(labels)
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
            DiscriminatorBlock(before, after, number == 0, number < layout.halvings)
            for number, (before, after) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], 1)
        self.embedding = nn.Embedding(layout.classes, widths[-1])
        for part in (self.head, self.embedding, *convolutions(self.layers)):
            normalised(initialised(part) if layout.generator_norm else part)
        self.depth = layout.slots[1]
        self.slot = Slot(block, layout.slot_widths[1], options, spectral=True, batch_norm=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B, channels, H, W) and (B,) -> (B,)."""
        x = images
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number == self.depth:
                x = self.slot(x)
        features = F.relu(x).sum((2, 3))
        return self.head(features)[:, 0] + (self.embedding(labels) * features).sum(1)


@torch.no_grad()
def open_gates(module: nn.Module) -> None:
    """Set every weight that holds zeros alone to one; biases stay."""
    for name, parameter in module.named_parameters():
        if not name.endswith("bias") and not parameter.any():
            parameter.fill_(1.0)


def without_batch_norm(module: nn.Module) -> None:
    """Put nothing in the place of every batch normalisation of a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)]
