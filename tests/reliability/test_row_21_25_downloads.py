"""Archives that are not what they should be, and downloads that end early, from a real server."""

import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10

from attention_transfer.data import load_data
from attention_transfer.errors import InputError


def hostile_archive(folder: Path) -> bytes:
    """An archive whose members would land outside of its folder, by name and by link."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in ("../outside", str(folder / "absolute"), "cifar-10-batches-py/data_batch_1"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../linked"
        archive.addfile(link)
    return content.getvalue()


class Answers(BaseHTTPRequestHandler):
    """Sends a body of a stated length, or as much of it as there is."""

    body, length, requests = b"", 0, 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(self.length))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    class Own(Answers):
        pass

    with HTTPServer(("127.0.0.1", 0), Own) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{http.server_port}/cifar-10-python.tar.gz"
        monkeypatch.setattr(CIFAR10, "url", url)
        yield Own
        http.shutdown()
        thread.join()


def test_an_archive_that_is_not_cifar_is_not_unpacked(
    server: type[Answers], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    server.body = hostile_archive(tmp_path)
    server.length = len(server.body)
    with pytest.raises(InputError, match=r"no whole cifar10 in .*corrupted"):
        load_data(f"cifar10:{folder}", download=True)
    left = {path.name for path in tmp_path.rglob("*")}
    assert not left & {"outside", "absolute", "link", "linked", "data_batch_1"}
    assert server.requests < 4


def test_a_download_that_is_cut_is_said_in_a_line(server: type[Answers], tmp_path: Path) -> None:
    server.body, server.length = b"half", 170_498_071
    with pytest.raises(InputError, match="no whole cifar10") as caught:
        load_data(f"cifar10:{tmp_path}", download=True)
    assert "\n" not in str(caught.value)
    assert server.requests < 4


def test_without_a_network_it_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"no whole cifar10 in .*refused"):
        load_data(f"cifar10:{tmp_path}", download=True)
