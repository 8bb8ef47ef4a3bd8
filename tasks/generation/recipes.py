"""How a GAN is trained: layout, data, optimisers, schedule.

Sources: the official HamGAN (training scripts and flags) for `hamgan-*`; Zhang et al. (2019), Self-Attention
Generative Adversarial Networks, as TF-GAN trains it, for `sagan`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.generation.models import Layout


@dataclass(frozen=True)
class Recipe:
    """A protocol.

    Attributes:
        data: what is generated: "digits", "twins" or "folder".
        layout: of both networks.
        iterations, batch: of training; one update of the discriminator and one of the generator each.
        rates: learning rates of generator and discriminator (Adam).
        betas: of Adam.
        ema: decay of the moving average of the generator's weights, which is what is scored; 0: none.
        note: what else belongs to the protocol.
    """

    data: str
    layout: Layout
    iterations: int
    batch: int
    rates: tuple[float, float]
    betas: tuple[float, float] = (0.0, 0.999)
    ema: float = 0.0
    note: str = ""


IMAGENET = Layout(
    size=128,
    channels=3,
    classes=1000,
    latent=128,
    generator=(1024, 1024, 512, 256, 128, 64),
    discriminator=(64, 128, 256, 512, 1024, 1024),
    slots=(3, 2),
)
DIGITS_LAYOUT = Layout(
    size=16,
    channels=1,
    classes=10,
    latent=32,
    generator=(32, 32, 16),
    discriminator=(16, 32, 32),
    slots=(1, 1),
    generator_norm=False,
    momentum=0.1,
)
DIGITS = Recipe(
    "digits",
    DIGITS_LAYOUT,
    iterations=3000,
    batch=32,
    rates=(1e-3, 1e-3),
    ema=0.99,
    note="no spectral normalisation in the generator: with it the images of a class become one at this length",
)
