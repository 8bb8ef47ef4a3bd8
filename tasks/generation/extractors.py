"""What turns images into features: a small network for digits, trained on the spot, or Inception from a file."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.generation.data import Images
from tasks.generation.scoring import Features
from tasks.generation.training import seeded

BATCH = 256
EPOCHS, RATE = 12, 2e-3
HELD_OUT = 5  # every so many images are not trained on, but tell the accuracy


class DigitsNet(nn.Module):
    """Grey images (B, 1, size, size) in -1..1 -> 64 features of mean 0 and variance 1 without activation, and ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.BatchNorm1d(64, affine=False),  # so that distances are in units of the real images' spread
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(x)
        return features, self.head(F.relu(features))


@dataclass(frozen=True)
class Extractor:
    """A network with a name that holds the digest of its weights."""

    network: nn.Module
    name: str

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, C, H, W) -> features and logits."""
        found = [self.network(part.float() / 127.5 - 1) for part in images.split(BATCH)]
        return Features(torch.cat([it[0] for it in found]), torch.cat([it[1] for it in found]))


def digits_extractor(data: Images, folder: Path) -> Extractor:
    """The one that the folder keeps, or a new one, trained on these images; equal images give equal weights."""
    path = folder / f"digits-{data.digest}.pt"
    network = DigitsNet()
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        with seeded(0):
            network = fitted(data)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        torch.save(network.state_dict(), partial)
        os.replace(partial, path)
    return Extractor(network.eval().requires_grad_(False), f"digits-cnn-{digest_of(network)}")


def fitted(data: Images) -> DigitsNet:
    """Trained on all but the held-out images."""
    network = DigitsNet()
    seen = torch.arange(len(data.labels)) % HELD_OUT != 0
    images, labels = data.images[seen].float() / 127.5 - 1, data.labels[seen]
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[chosen])[1], labels[chosen]).backward()
            optimizer.step()
    return network


def digest_of(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
