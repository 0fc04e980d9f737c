"""Keeps pages of other sites, open in an operator's browser, from speaking to the registry.

For: a registry on loopback has no login, and a browser sends any page's requests there. A request with
another site's `Origin` is refused, and so is one that addresses a loopback registry by a foreign name,
which is how a page gets around the first rule by changing what its own name resolves to.
Not for: people or programs on the network; beyond loopback a proxy with a login stands before this.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def allowed_hosts(listen_host: str) -> frozenset[str] | None:
    """Names under which a registry that listens there may be addressed; None: any."""
    return LOOPBACK if listen_host in LOOPBACK else None


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] == "http" and not self._may_pass(Headers(scope=scope)):
            message = "refused: the request comes from another site's page or addresses another name"
            body = msgspec.json.encode({"error": {"code": "cross_origin", "message": message}})
            await Response(body, 403, media_type="application/json")(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
                return False
            return origin is None or urlsplit(origin).netloc == host
        except ValueError:
            return False
