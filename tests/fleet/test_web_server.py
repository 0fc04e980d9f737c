"""The registry's listening socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fleet.adapters import web_protocol
from fleet.adapters.web_server import WebServer
from tests.fleet.processes import wait_for


def test_an_answer_of_two_packets_does_not_wait_for_an_acknowledgement() -> None:
    """Every answer took 44 ms: asyncio sets TCP_NODELAY only on sockets whose protocol is named."""
    listening = WebServer(Starlette(), "127.0.0.1", 0)._socket

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            one = writer.get_extra_info("socket")
            found.set_result(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(connected, sock=listening)
        async with server:
            _, writer = await asyncio.open_connection(*listening.getsockname())
            try:
                return await found
            finally:
                writer.close()
                await writer.wait_closed()

    assert asyncio.run(accepted()) != 0


async def slow(_request: Request) -> Response:
    await asyncio.sleep(0.7)
    return PlainTextResponse("done")


@contextmanager
def running() -> Iterator[tuple[str, int]]:
    """The server in a thread; its signals are for a process's first one."""
    web = WebServer(Starlette(routes=[Route("/", slow)]), "127.0.0.1", 0)
    web._socket.listen(128)
    address = web._socket.getsockname()
    thread = threading.Thread(target=web._server.run, kwargs={"sockets": [web._socket]})
    thread.start()
    try:
        yield address
    finally:
        web._server.should_exit = True
        thread.join(20)
        web._socket.close()


def ended(link: socket.socket) -> bool:
    link.settimeout(0.05)
    try:
        return link.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: b"])
def test_who_never_ends_a_requests_head_is_cut_off(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "HEAD_S_MAX", 0.3)
    with running() as address, socket.create_connection(address) as link:
        link.sendall(said)
        wait_for("the end", lambda: ended(link))


def test_who_asked_once_does_not_stay_by_half_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "HEAD_S_MAX", 0.3)
    with running() as address, socket.create_connection(address) as link:
        link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        link.settimeout(10)
        assert link.recv(4096).startswith(b"HTTP/1.1 200")
        link.sendall(b"GET / HT")
        wait_for("the end", lambda: ended(link))


def test_an_answer_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "HEAD_S_MAX", 0.2)
    with running() as (host, port), httpx.Client(trust_env=False) as client:
        assert client.get(f"http://{host}:{port}/").text == "done"
        assert client.get(f"http://{host}:{port}/").text == "done"


def test_there_are_no_more_connections_than_the_process_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "CONNECTIONS_MAX", 20)
    with running() as address, ExitStack() as held:
        links = [held.enter_context(socket.create_connection(address)) for _ in range(50)]
        wait_for("the refusals", lambda: sum(ended(link) for link in links) == 30)
        links[0].close()
        wait_for("room", lambda: _answers(address))


def _answers(address: tuple[str, int]) -> bool:
    try:
        return httpx.get(f"http://{address[0]}:{address[1]}/", trust_env=False).text == "done"
    except httpx.TransportError:
        return False
