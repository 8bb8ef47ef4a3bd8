"""Downloads go on where they stopped, are checked, and unpack nowhere but below their folder."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctxbench import fetch as module
from ctxbench.data import archive_of
from ctxbench.errors import RunError, UsageError
from ctxbench.fetch import Archive, fetch


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, also from a byte on, and notes where each answer began."""

    begun: list[int] = []  # noqa: RUF012
    ranges = True
    most: int | None = None

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, asked = path.read_bytes(), self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        self.begun.append(start)
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.most])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    monkeypatch.setattr(Handler, "begun", [])
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def tape(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as found:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            found.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            found.addfile(info)
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as found:
        for name, content in members.items():
            found.writestr(name, content)
    return file.getvalue()


def serve(folder: Path, server: str, content: bytes, name: str = "data.tar", largest: int = 10**6) -> Archive:
    (folder / "served" / name).write_bytes(content)
    return Archive(f"{server}/{name}", "sha256", hashlib.sha256(content).hexdigest(), largest)


@pytest.mark.parametrize(("make", "name"), [(tape, "data.tar"), (zipped, "data.zip")])
def test_an_archive_is_fetched_checked_and_unpacked_once(
    tmp_path: Path, server: str, make: object, name: str
) -> None:
    assert callable(make)
    archive = serve(tmp_path, server, make({"VOC/a.txt": b"one", "VOC/b/c.txt": b"two"}), name)
    told: list[str] = []
    fetch(archive, tmp_path / "root", told.append)
    assert (tmp_path / "root" / "VOC" / "b" / "c.txt").read_bytes() == b"two"
    assert any(text.startswith(f"{name}: ") for text in told)
    fetch(archive, tmp_path / "root")
    assert Handler.begun == [0], "what is there is not fetched again"


@pytest.mark.parametrize("ranges", [True, False], ids=["from a byte on", "whole files alone"])
def test_an_interrupted_download_goes_on(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr(Handler, "ranges", ranges)
    content = tape({"a.txt": b"content" * 1000})
    archive = serve(tmp_path, server, content)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "data.tar.part").write_bytes(content[:4000])
    fetch(archive, tmp_path / "root")
    assert Handler.begun == [4000 if ranges else 0]
    assert (tmp_path / "root" / "a.txt").read_bytes() == b"content" * 1000
    assert not (tmp_path / "root" / "data.tar.part").exists()


def test_a_connection_that_ends_early_keeps_what_came(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tape({"a.txt": b"content" * 1000})
    archive = serve(tmp_path, server, content)
    monkeypatch.setattr(Handler, "most", 5000)
    with pytest.raises(RunError, match="run the same command again to go on"):
        fetch(archive, tmp_path / "root")
    assert (tmp_path / "root" / "data.tar.part").stat().st_size == 5000
    monkeypatch.setattr(Handler, "most", None)
    fetch(archive, tmp_path / "root")
    assert Handler.begun == [0, 5000]


def test_a_download_that_was_complete_but_not_yet_named_is_kept(tmp_path: Path, server: str) -> None:
    content = tape({"a.txt": b"one"})
    archive = serve(tmp_path, server, content)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "data.tar.part").write_bytes(content)
    fetch(archive, tmp_path / "root")
    assert (tmp_path / "root" / "a.txt").exists()


def test_another_file_than_the_expected_one_is_removed(tmp_path: Path, server: str) -> None:
    archive = serve(tmp_path, server, tape({"a.txt": b"one"}))
    (tmp_path / "served" / "data.tar").write_bytes(tape({"a.txt": b"two"}))
    with pytest.raises(RunError, match="its sha256 differs"):
        fetch(archive, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (tape({"../outside.txt": b"x"}), "data.tar"),
        (tape({"/outside.txt": b"x"}, {}), "data.tar"),
        (tape({}, {"link": "../.."}), "data.tar"),
        (zipped({"../outside.txt": b"x"}), "data.zip"),
        (zipped({"/outside.txt": b"x"}), "data.zip"),
    ],
    ids=["parent", "absolute", "link", "parent in zip", "absolute in zip"],
)
def test_nothing_is_unpacked_outside(tmp_path: Path, server: str, content: bytes, name: str) -> None:
    archive = serve(tmp_path, server, content, name)
    before = {path for path in tmp_path.rglob("*") if "root" not in path.parts}
    try:
        fetch(archive, tmp_path / "root")
    except RunError as error:
        assert name in str(error)
    after = {path for path in tmp_path.rglob("*") if "root" not in path.parts}
    assert after == before
    assert not Path("/outside.txt").exists()


@pytest.mark.parametrize(("make", "name"), [(tape, "data.tar"), (zipped, "data.zip")])
def test_more_than_is_expected_is_not_unpacked(tmp_path: Path, server: str, make: object, name: str) -> None:
    assert callable(make)
    archive = serve(tmp_path, server, make({"a.txt": bytes(2000)}), name, largest=1999)
    with pytest.raises(RunError, match="more than 1,999"):
        fetch(archive, tmp_path / "root")
    assert not (tmp_path / "root" / "a.txt").exists()


def test_a_file_that_is_no_archive_is_told(tmp_path: Path, server: str) -> None:
    with pytest.raises(RunError, match="cannot unpack"):
        fetch(serve(tmp_path, server, b"no archive"), tmp_path / "root")


def test_a_server_that_does_not_answer_is_told_and_the_command_goes_on_later(
    tmp_path: Path, server: str
) -> None:
    with pytest.raises(RunError, match=r"404 Not Found$"):
        fetch(Archive(f"{server}/absent.tar", "md5", "0" * 32, 10), tmp_path / "root")
    with pytest.raises(RunError, match="run the same command again to go on"):
        fetch(Archive("http://127.0.0.1:9/data.tar", "md5", "0" * 32, 10), tmp_path / "root")


def test_a_file_that_is_there_and_not_the_expected_one_is_not_unpacked(tmp_path: Path, server: str) -> None:
    archive = serve(tmp_path, server, tape({"a": b""}))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / archive.name).write_bytes(tape({"b": b""}))
    with pytest.raises(RunError, match="not the expected file"):
        fetch(archive, tmp_path / "root")
    assert not (tmp_path / "root" / "b").exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_server_that_speaks_nonsense_is_told(tmp_path: Path, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def once() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=once, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/data.tar"
        with pytest.raises(RunError, match="cannot fetch"):
            fetch(Archive(url, "md5", "0" * 32, 10), tmp_path / "root")
        thread.join(10)


def test_a_root_that_is_a_file_is_the_users_mistake(tmp_path: Path, server: str) -> None:
    (tmp_path / "root").touch()
    with pytest.raises(UsageError, match="cannot write"):
        fetch(serve(tmp_path, server, tape({"a": b""})), tmp_path / "root")


def test_what_cannot_be_fetched_is_told_with_what_to_do() -> None:
    assert archive_of("voc") is module.ARCHIVES["voc"]
    with pytest.raises(UsageError, match="needs an account: register"):
        archive_of("cityscapes")
    with pytest.raises(UsageError, match="there are voc, pascal-context, ade20k, cityscapes"):
        archive_of("legend")
