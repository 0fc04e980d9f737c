"""The registry's listening socket."""

from __future__ import annotations

import asyncio
import socket

from starlette.applications import Starlette

from fleet.adapters.web_server import WebServer


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
