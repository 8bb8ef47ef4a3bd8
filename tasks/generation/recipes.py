"""How a GAN is trained: layout, data, optimisers, schedule.

Sources: the official HamGAN (training scripts and flags) for `hamgan-*`; Zhang et al. (2019), Self-Attention
Generative Adversarial Networks, as TF-GAN trains it, for `sagan`. `digits` and `twins` are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.generation.models import Layout


@dataclass(frozen=True)
class Recipe:
    """A protocol.

    Attributes:
        data: what is generated: "digits", "twins" or "folder".
        layout: of both networks; those of a folder have its number of classes.
        blocks: which are trained where none are named.
        iterations, batch: of training; one update of the discriminator and one of the generator each.
        rates: learning rates of generator and discriminator (Adam).
        count: images that are generated to be scored.
        betas: of Adam.
        ema: decay of the moving average of the generator's weights, which is what is scored; 0: none.
        usual: options of blocks, by name, in the generator's slot and in the discriminator's.
        note: what else belongs to the protocol.
    """

    data: str
    layout: Layout
    blocks: str
    iterations: int
    batch: int
    rates: tuple[float, float]
    count: int
    betas: tuple[float, float] = (0.0, 0.999)
    ema: float = 0.0
    usual: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    note: str = ""


IMAGENET_LAYOUT = Layout(
    channels=3,
    classes=1000,
    latent=128,
    generator=(1024, 1024, 512, 256, 128, 64),
    discriminator=(64, 128, 256, 512, 1024, 1024),
    slots=(3, 2),
)


def imagenet(blocks: str, iterations: int, batch: int, note: str) -> Recipe:
    """HamGAN's protocol; see `models` for what differs in the slot."""
    return Recipe(
        "folder",
        IMAGENET_LAYOUT,
        blocks,
        iterations,
        batch,
        rates=(1e-4, 4e-4),
        count=50_000,
        usual={"rank": (32, 16)},
        note="no augmentation, antialiased resizing; statistics of batch normalisation over all processes on GPUs; "
        "50,000 images, classes as frequent as in the reference, last checkpoint (HamGAN: 50,176, uniform, best of up "
        "to 100); " + note,
    )


def small_layout(**fields: Any) -> Layout:
    """A few ten thousand parameters in each network."""
    usual: dict[str, Any] = {
        "channels": 1,
        "classes": 10,
        "latent": 32,
        "generator": (32, 32, 16),
        "discriminator": (16, 32, 32),
        "slots": (1, 1),
        "halvings": 2,
        "generator_norm": False,
        "momentum": 0.1,
    }
    return Layout(**(usual | fields))


def small(data: str, iterations: int, layout: Layout) -> Recipe:
    return Recipe(
        data,
        layout,
        "none,ham-nmf,self-attn",
        iterations,
        batch=32,
        rates=(1e-3, 1e-3),
        count=1797,
        ema=0.99,
        usual={"rank": (8, 8)},
        note="no spectral normalisation in the generator: with it the images of a class become one at this length",
    )


HAM_NOTE = "a block's own batch normalisation in the generator is not conditional (HamGAN: conditional)"
SAGAN_NOTE = "SAGAN's schedule; its own attention is the block sagan"


RECIPES: dict[str, dict[str, Recipe]] = {
    "digits": {
        "16x16": small("digits", 3000, small_layout()),
        "32x32": small("digits", 3000, small_layout(generator=(32, 32, 32, 16), slots=(2, 1))),
    },
    "twins": {
        "8x32": small("twins", 1500, small_layout(start=(2, 8), halvings=1, divided=True)),
    },
    "imagenet": {
        "hamgan-baby": imagenet("ham-nmf", 2_000_000, 256, HAM_NOTE),
        "hamgan-strong": imagenet("ham-nmf", 1_000_000, 1024, HAM_NOTE),
        "sagan": imagenet("sagan", 999_999, 1024, SAGAN_NOTE),
    },
}
