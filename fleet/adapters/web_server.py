"""The HTTP server: an ASGI application on uvicorn.

For: binding an address (port 0 for any free one, printed) and running until a signal.
Not for: what is answered (`fleet.api.http`).
"""

from __future__ import annotations

import logging
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from fleet.adapters.web_protocol import BoundedProtocol
from fleet.ports import ConflictError

_LOG = logging.getLogger("shallop.fleet.web")

STOP_S_MAX = 5


class WebServer:
    """An application at an address.

    Raises:
        ConflictError: `address_in_use`.
    """

    def __init__(self, application: Starlette, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With the protocol named, asyncio turns Nagle's algorithm off for each connection; else the second
        # packet of every answer waits 40 ms for the client to acknowledge the first.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ConflictError(
                "address_in_use",
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --listen",
            ) from None
        config = uvicorn.Config(
            application,
            http=BoundedProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=STOP_S_MAX,
        )
        self._server = uvicorn.Server(config)
        self._host = host

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM."""
        self._socket.listen(128)
        port = self._socket.getsockname()[1]
        _LOG.info("listening on http://%s:%d", self._host, port)
        # uvicorn ends in order and then raises the signal once more, for whoever was there before it;
        # without these the second one would end the process before the rest is closed.
        signal.signal(signal.SIGTERM, _already_stopping)
        signal.signal(signal.SIGINT, _already_stopping)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()


def _already_stopping(_number: int, _frame: FrameType | None) -> None:
    _LOG.info("stopped")
