"""What generators learn from, and what they are compared with: digits, twins, and folders of images."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tasks.files import replacing

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
NAMED = 3  # files that a message names
PART = 1024  # images decoded before their bytes are written
TWIN, GAP, PAIRINGS = 8, 16, 4  # side of a twin and pixels between two; how often each digit is a left twin


warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class DataError(ValueError):
    """Images that are not there, or cannot be read."""


@dataclass(frozen=True)
class Images:
    """Images (N, channels, H, W), uint8, with their classes (N,).

    Attributes:
        digest: 12 hexadecimal digits that change with images and classes.
    """

    images: Tensor
    labels: Tensor
    digest: str

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> Images:
        digest = hashlib.sha256(repr(tuple(images.shape)).encode())
        for part in (images, labels):
            digest.update(part.contiguous().numpy().tobytes())
        return cls(images, labels, digest.hexdigest()[:12])


def digits(size: int) -> Images:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged bilinearly to (N, 1, size, size)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] * (255 / 16)
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return Images.of(large.round().to(torch.uint8), torch.from_numpy(found.target))


def twins() -> Images:
    """Two digits of one class, far apart, (N, 1, 8, 32): each digit is the left one of four in a row."""
    single = digits(TWIN)
    random = torch.Generator().manual_seed(0)
    found, labels = [], []
    for label in range(10):
        left = single.images[single.labels == label].repeat_interleave(PAIRINGS, 0)
        right = left[torch.randperm(len(left), generator=random)]
        found.append(torch.cat((left, left.new_zeros(len(left), 1, TWIN, GAP), right), 3))
        labels.append(torch.full((len(left),), label))
    return Images.of(torch.cat(found), torch.cat(labels))


def halves(images: Tensor) -> Tensor:
    """The left and the right twins of (N, 1, 8, 32): (2, N, 1, 8, 8)."""
    return torch.stack((images[..., :TWIN], images[..., -TWIN:]))


@dataclass(frozen=True)
class Listing:
    """The images below a folder, by their paths' order.

    Attributes:
        paths: relative to the folder; labels: the numbers of their classes, which are the folder's folders.
        classes: their names; a flat folder has one, "".
    """

    folder: Path
    paths: list[Path]
    labels: list[int]
    classes: list[str]

    @classmethod
    def of(cls, folder: Path) -> Listing:
        """Every image at any depth.

        Raises:
            DataError: if there is no folder, none in it, or some lie beside the folders of classes.
        """
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder")
        paths = sorted(images_below(folder))
        if not paths:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))})")
        names = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
        classes = sorted(set(names))
        if "" in classes and len(classes) > 1:
            raise DataError(
                f"{folder} holds {names.count('')} images beside the folder {classes[1]}: either all images lie "
                "in folders of classes, or none"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        return cls(folder, paths, [numbers[name] for name in names], classes)

    @cached_property
    def digest(self) -> str:
        """Changes with names, classes and lengths of the files, and with when they were written."""
        digest = hashlib.sha256()
        for path in self.paths:
            about = (self.folder / path).stat()
            digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:12]

    def load(self, size: tuple[int, int], cache: Path) -> Images:
        """All images as (N, 3, *size), decoded once and kept in `cache`.

        Raises:
            DataError: naming files that cannot be decoded.
        """
        height, width = size
        path = cache / f"images-{self.digest}-{height}x{width}.npy"
        kept = self.kept(path, size)
        if kept is None:
            cache.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # whoever else wants them waits, and finds them here
                kept = self.kept(path, size)
                if kept is None:
                    for left in cache.glob(f"{path.name}.tmp-*"):  # by one that was killed
                        left.unlink(missing_ok=True)
                    with replacing(path) as partial:
                        self.decode(size, partial)
                    kept = np.load(path, mmap_mode="c", allow_pickle=False)
        return Images(torch.from_numpy(kept), torch.tensor(self.labels), self.digest)

    def kept(self, path: Path, size: tuple[int, int]) -> np.ndarray | None:
        """What the file holds, if it is these images."""
        try:
            found = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        whole = found.dtype == np.uint8 and found.shape == (len(self.paths), 3, *size)
        return found if whole else None

    def decode(self, size: tuple[int, int], path: Path) -> None:
        """Write all images into one file, a part at a time."""
        target = np.lib.format.open_memmap(path, "w+", np.uint8, (len(self.paths), 3, *size))
        if hasattr(os, "posix_fallocate"):  # a disk that fills up while pages are written kills the process
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        bad: list[Path] = []

        def decoded(number: int) -> None:
            try:
                with opened(self.folder / self.paths[number]) as image:
                    target[number] = cropped(image, size)
            except UndecodableError:
                bad.append(self.paths[number])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            numbers = iter(range(len(self.paths)))
            while part := list(islice(numbers, PART)):
                list(pool.map(decoded, part))
        target.flush()
        if bad:
            names = ", ".join(map(str, sorted(bad)[:NAMED])) + (", …" if len(bad) > NAMED else "")
            raise DataError(f"{self.folder}: {len(bad)} of {len(self.paths)} images cannot be read: {names}")

    def pictures(self) -> Iterator[Tensor]:
        """Each image as it is, (1, 3, H, W), uint8.

        Raises:
            DataError: naming the file that cannot be decoded.
        """
        for path in self.paths:
            try:
                with opened(self.folder / path) as image:
                    array = np.array(image)
            except UndecodableError:
                raise DataError(f"{self.folder}: {path} cannot be read as an image") from None
            yield torch.from_numpy(array).permute(2, 0, 1)[None]


def images_below(folder: Path) -> Iterator[Path]:
    """The images at any depth, relative to the folder; links to folders are followed, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        about = Path(place).stat()
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in ENDINGS and not name.startswith(".") and path.is_file():
                yield path.relative_to(folder)


class UndecodableError(ValueError):
    """A file that is no image of the formats that are read."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image as RGB; of 16 bits the upper eight."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            found: Image.Image = image
            if image.mode.startswith("I"):
                found = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
            found = found.convert("RGB")
    except Exception as error:  # decoders raise whatever they like
        raise UndecodableError(str(path)) from error
    yield found


def cropped(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The largest part in the middle that has this shape, resized: (3, H, W)."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    small = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(small).transpose(2, 0, 1)
