"""Fetches data sets that lie at a plain address: with resume, checksum and safe extraction."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import lzma
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxbench.errors import RunError, UsageError, first_line

CHUNK = 2**20
TIMEOUT_S = 60
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)


@dataclass(frozen=True)
class Archive:
    """A file to be fetched.

    Attributes:
        url: where it lies.
        algorithm, digest: what it must hash to.
        largest: bytes that its members may have in all, unpacked.
    """

    url: str
    algorithm: str
    digest: str
    largest: int

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
# Digests: VOC's as torchvision has them, ADE20K's as GluonCV has it.
ARCHIVES = {
    "voc": Archive(
        f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar", "md5", "6cd6e144f989b92b3379bac3b3de84fd", 4 * 2**30
    ),
    "pascal-context": Archive(
        f"{VOC}/voc2010/VOCtrainval_03-May-2010.tar", "md5", "da459979d0c395079b5c75ee67908abb", 4 * 2**30
    ),
    "ade20k": Archive(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "sha1",
        "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        8 * 2**30,
    ),
}


def fetch(archive: Archive, root: Path, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Fetch an archive into `root` and unpack it there; returns its path.

    Raises:
        UsageError: if `root` cannot be written to.
        RunError: if the file cannot be fetched, is not the expected one, or is unsafe to unpack.
    """
    path = obtain(archive, root, tell)
    tell(f"unpacking {path}")
    unpack(archive, path, root)
    return path


def obtain(archive: Archive, root: Path, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Fetch a file into `root`; returns its path.

    A part that an interrupted download left is gone on with; a complete file is not fetched again.

    Raises:
        UsageError: if `root` cannot be written to.
        RunError: if the file cannot be fetched, or is not the expected one.
    """
    path = root / archive.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            download(archive, path, tell)
        elif digest_of(path, archive.algorithm) != archive.digest:
            raise RunError(f"{path} is not the expected file: its {archive.algorithm} differs; remove it")
    except urllib.error.HTTPError as error:
        raise RunError(f"cannot fetch {archive.url}: {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise RunError(f"cannot fetch {archive.url}: {reason}; run the same command again to go on") from None
    except (http.client.HTTPException, ValueError) as error:
        raise RunError(
            f"cannot fetch {archive.url}: {type(error).__name__}; run the same command again to go on"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write to {root}: {error.strerror}") from None
    return path


def download(archive: Archive, path: Path, tell: Callable[[str], None]) -> None:
    """Fetch the file; it gets its name when it has proved to be the right one."""
    partial = path.with_name(f"{path.name}.part")
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, partial.open("ab") as file:
            if answer.status != 206:  # the server starts from the beginning
                file.truncate(0)
                done = 0
            total = done + int(answer.headers.get("Content-Length", 0))
            while part := received(answer):
                file.write(part)
                done += len(part)
                tell(f"{archive.name}: {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB")
            if done < total:
                raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # all of it is there
            raise
    if done < 1 or digest_of(partial, archive.algorithm) != archive.digest:
        partial.unlink(missing_ok=True)
        raise RunError(
            f"{archive.url} is not the expected file: its {archive.algorithm} differs; it was removed"
        )
    os.replace(partial, path)


def received(answer: Any) -> bytes:
    """The next part of a file.

    Raises:
        ConnectionError: for whatever keeps it from coming.
    """
    try:
        return bytes(answer.read(CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(first_line(error) or type(error).__name__) from error


def digest_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def unpack(archive: Archive, path: Path, root: Path) -> None:
    """Unpack below `root`: no member may lie elsewhere, be a link out of it or a device, or be too large."""
    try:
        with opened(path) as (size, extract):
            if size > archive.largest:
                raise RunError(f"{path} would unpack to {size:,} bytes, more than {archive.largest:,}")
            extract(root)
    except RunError:
        raise
    except (*DAMAGED, RuntimeError) as error:  # zipfile tells of encryption and unknown methods by the latter
        raise RunError(f"cannot unpack {path}: {first_line(error)}") from None
    except OSError as error:
        raise RunError(f"cannot unpack {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[int, Callable[[Path], Any]]]:
    """The size of all members, and what unpacks them."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as zipped:
            for name in zipped.namelist():
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise RunError(f"{path} holds {name!r}, which lies outside")
            yield sum(info.file_size for info in zipped.infolist()), zipped.extractall
    else:
        with tarfile.open(path) as tape:
            yield sum(member.size for member in tape), lambda root: tape.extractall(root, filter="data")
