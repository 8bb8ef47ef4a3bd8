"""What turns images into features: a small network for digits, trained on the spot, or Inception from a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.files import UnreadableError, read_weights, replacing
from tasks.generation.data import Images
from tasks.generation.randomness import seeded
from tasks.generation.scoring import Features

BATCH = 256
# The weights of the TensorFlow Inception of 2015 as torch-fidelity publishes them: 96 MB.
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
EPOCHS, RATE = 12, 2e-3
HELD_OUT = 5  # every so many images are not trained on, but tell the accuracy


class DigitsNet(nn.Module):
    """Grey images (B, 1, size, size), uint8 -> 64 features of mean 0 and variance 1 without activation, and ten logits."""

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
        features = self.layers(x.float() / 127.5 - 1)
        return features, self.head(F.relu(features))


@dataclass(frozen=True)
class Extractor:
    """A network with a name that holds the digest of its weights.

    Attributes:
        network: uint8 images (N, C, H, W) -> features (N, d) and logits (N, classes).
        knows_classes: whether its classes are those of the images.
        width: number of features.
    """

    network: nn.Module
    name: str
    knows_classes: bool
    width: int
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, C, H, W) -> features and logits, on the CPU."""
        found = [self.network(part.to(self.device)) for part in images.split(BATCH)]
        values, logits = (torch.cat([each[place].cpu().float() for each in found]) for place in (0, 1))
        return Features(values, logits)


class WeightsError(ValueError):
    """A file with weights is missing, or is not the expected one."""


def inception_place() -> Path:
    """Where torch-fidelity looks for the weights, and leaves them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rsplit("/", 1)[-1]


@cache
def inception(path: Path, device: str = "cpu") -> Extractor:
    """torch-fidelity's Inception V3 with 2048 features, of images of any size, which it resizes as TensorFlow 1.

    Raises:
        WeightsError: if the file cannot be read, or does not hold the published weights.
    """
    try:
        if path.exists() and not path.is_file():
            raise WeightsError(f"{path} is no regular file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    if digest != INCEPTION_SHA256:
        raise WeightsError(
            f"{path} is not {inception_place().name}: its SHA-256 begins with {digest[:12]}, not "
            f"{INCEPTION_SHA256[:12]}"
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    return Extractor(network.to(device), f"inception-v3-compat-{digest[:12]}", False, 2048, device)


def digits_extractor(data: Images, folder: Path | None) -> Extractor:
    """The one that the folder keeps, or a new one, trained on these images; equal images give equal weights.

    Args:
        folder: of this version of the code, as what it keeps is not trained again; None: keep nothing.
    """
    path = folder and folder / f"digits-{data.digest}.pt"
    network = DigitsNet()
    if path is None or not loaded(network, path):
        with seeded("extractor"):
            network = fitted(data)
        if path is not None:
            with replacing(path) as partial:
                torch.save(network.state_dict(), partial)
    return Extractor(network.eval().requires_grad_(False), f"digits-cnn-{digest_of(network)}", True, 64)


def loaded(network: nn.Module, path: Path) -> bool:
    """Whether the file is there, whole, and its weights are now the network's."""
    try:
        network.load_state_dict(read_weights(path))
    except (UnreadableError, RuntimeError):
        return False
    return True


def fitted(data: Images) -> DigitsNet:
    """Trained on all but the held-out images."""
    network = DigitsNet()
    seen = torch.arange(len(data.labels)) % HELD_OUT != 0
    images, labels = data.images[seen], data.labels[seen]
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
