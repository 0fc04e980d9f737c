"""The command line's HTTP client, where what answers is no registry, or a hostile one."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fleet.adapters import client as client_module
from fleet.adapters.client import ERROR_BYTES_MAX, Client, RefusedError, ServerUnreachableError
from fleet.audit import follow, genesis
from fleet.publish.upload import read_bundle
from tests.fleet.bundles import write_bundle

CAP_BYTES = 1024 * 1024
WHOLE = {"digest": "cd" * 32, "model": "camera", "release": "v1", "state": "uploading"}
JSON = b"Content-Type: application/json\r\n"


class Server:
    """Answers each request by the next of some bytes, the last one again and again; `endless` follows it."""

    def __init__(self, *answers: bytes, endless: bytes = b"") -> None:
        self._answers, self._endless = answers, endless
        self.asked: list[bytes] = []
        self.sent = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listening.accept()
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(20)
                    self._serve(peer)

    def _serve(self, peer: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = peer.recv(65_536)
            if not more:
                return
            head += more
        self.asked.append(head)
        peer.sendall(self._answers[min(len(self.asked), len(self._answers)) - 1])
        while self._endless:
            peer.sendall(self._endless)
            self.sent += len(self._endless)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65_536):
            pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(30)


@contextlib.contextmanager
def answering(*answers: bytes, endless: bytes = b"") -> Iterator[tuple[Client, Server]]:
    server = Server(*answers, endless=endless)
    try:
        with Client(server.url) as client:
            yield client, server
    finally:
        server.close()


def http(body: bytes, head: bytes = b"", status: int = 200) -> bytes:
    size = b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d X\r\nConnection: close\r\n" % status + size + JSON + head + b"\r\n" + body


ENDLESS = b"HTTP/1.1 %d X\r\nConnection: close\r\n" + JSON + b"\r\n"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", CAP_BYTES)


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_end_is_left_unread_by_name(status: int) -> None:
    cap = CAP_BYTES if status == 200 else ERROR_BYTES_MAX
    with answering(ENDLESS % status, endless=b" " * 65_536) as (client, server):
        with pytest.raises(RefusedError) as refused:
            client.devices()
        assert refused.value.code == "oversized"
        assert str(cap) in str(refused.value)
    # What lies in the sockets' buffers was sent too.
    assert server.sent < 64 * CAP_BYTES


def test_an_answer_that_is_as_large_as_is_read_is_read() -> None:
    body = b"[]" + b" " * (CAP_BYTES - 2)
    with answering(http(body)) as (client, _):
        assert client.devices() == []
    with answering(http(body + b" ")) as (client, _), pytest.raises(RefusedError, match="oversized"):
        client.devices()


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, gzip", b"deflate", b"br"])
def test_a_packed_answer_is_refused_and_never_unpacked(coding: bytes) -> None:
    """Nobody asked for it: 64 KiB of it may stand for 64 MiB, and packed twice for more than there is."""
    bomb = gzip.compress(gzip.compress(bytes(64 * 1024 * 1024)))
    with answering(http(bomb, b"Content-Encoding: " + coding + b"\r\n")) as (client, server):
        tracemalloc.start()
        with pytest.raises(ServerUnreachableError) as refused:
            client.devices()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        with pytest.raises(ServerUnreachableError, match="not_a_registry"):
            client.fetch("/api/roots", CAP_BYTES)
    assert refused.value.code == "not_a_registry"
    assert "Content-Encoding" in str(refused.value)
    assert peak < 16 * 1024 * 1024
    assert b"accept-encoding: identity" in server.asked[0].lower()


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"code": "x y\\u001b[2J", "message": "m"}}',
        b'{"error": {"code": "' + b"a" * 5000 + b'", "message": "m"}}',
        b'{"error": {"code": "oversized", "message": "' + b"m" * 20_000 + b'"}}',
        b"[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_an_error_that_no_registry_writes_is_none_of_a_registry(body: bytes) -> None:
    with answering(http(body, status=400)) as (client, _), pytest.raises(ServerUnreachableError) as refused:
        client.devices()
    assert refused.value.code == "not_a_registry"
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("missing", [None, 7, ["ab" * 32], ["../x"], [3]])
def test_an_upload_asks_nothing_of_a_bundle_that_it_does_not_hold(tmp_path: Path, missing: object) -> None:
    write_bundle(tmp_path / "b", "v1", seed=1)
    begun = http(msgspec.json.encode({**WHOLE, **({} if missing is None else {"missing": missing})}))
    with answering(begun) as (client, _), pytest.raises(ServerUnreachableError) as refused:
        client.upload(read_bundle(tmp_path / "b"), lambda _sent, _total: None)
    assert refused.value.code == "not_a_registry"


def test_a_registry_that_never_has_enough_is_left(tmp_path: Path) -> None:
    """It said each time that a blob is missing which it had just taken, and the upload went on for ever."""
    write_bundle(tmp_path / "b", "v1", seed=1)
    bundle = read_bundle(tmp_path / "b")
    wanting = http(msgspec.json.encode({**WHOLE, "missing": [next(iter(bundle.places))]}))
    with answering(wanting) as (client, server):
        with pytest.raises(ServerUnreachableError) as refused:
            client.upload(bundle, lambda _sent, _total: None)
        assert refused.value.code == "upload_without_end"
    assert len(server.asked) < 30


def test_a_log_that_goes_in_a_circle_is_left() -> None:
    entry = follow(0, genesis("a" * 32), at=1.0, who="kim", what="x", subject="r1", why="", details={})
    with answering(http(msgspec.json.encode([entry]))) as (client, server):
        with pytest.raises(ServerUnreachableError, match="not_a_registry"):
            list(client.audit())
        assert len(server.asked) == 2
