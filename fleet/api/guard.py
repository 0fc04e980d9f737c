"""Who may speak to the registry: tokens with scopes, and no page of another site.

For: every request passes here first. It is refused (403) if it comes from another site's page open in an
operator's browser, or addresses a loopback registry by a foreign name, which is how a page gets around the
first rule by changing what its own name resolves to; (401) without a token that is good, once one was ever
made; (403) without the scope that `fleet.scopes` asks for; (429) after too many wrong tokens.
What passes carries its `Caller` in the ASGI scope's state.
Not for: what a token is (`fleet.tokens`), or encryption.

The token stands in `Authorization: Bearer`, which no browser sends by itself. A dashboard's login would be
another way to show one: `_shown` is its place.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fleet.api.exchange import error_answer, status_of
from fleet.attempts import Attempts
from fleet.scopes import ANYONE, Caller, needed
from fleet.tokens import AccessError, Tokens, token_sha256
from wire.errors import ShallopError

_LOG = logging.getLogger("shallop.fleet.api")

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def allowed_hosts(listen_host: str) -> frozenset[str] | None:
    """Names under which a registry that listens there may be addressed; None: any."""
    return LOOPBACK if listen_host in LOOPBACK else None


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, tokens: Tokens) -> None:
        self._app = app
        self._hosts = hosts
        self._tokens = tokens
        self._attempts = Attempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] == "http":
            refusal = await self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._of_this_site(headers):
            message = "refused: the request comes from another site's page or addresses another name"
            return error_answer("cross_origin", message, 403)
        need, token = needed(scope["method"], scope["path"]), _shown(headers)
        if need is ANYONE and (token is None or not token.startswith("shf_")):
            return None
        caller = await self._caller(scope, token)
        if isinstance(caller, Response):
            return caller
        if need is not ANYONE and need not in caller.scopes:
            return error_answer(
                "scope_missing",
                f"this needs the scope {need}, and the token of {caller.name} has "
                f"{', '.join(sorted(caller.scopes))}; whoever administers the registry gives another: "
                f"`shallop-fleet tokens create {caller.name} --scope {need}`",
                403,
            )
        scope.setdefault("state", {})["caller"] = caller
        return None

    async def _caller(self, scope: Scope, token: str | None) -> Caller | Response:
        """Who shows the token, or the refusal."""
        address, now = _address(scope), time.monotonic()
        key = token_sha256(token or "")
        wait_s = self._attempts.wait_s(address, key, now)
        if wait_s:
            answer = error_answer(
                "too_many_attempts", f"too many wrong tokens from {address}; try again in {wait_s:.0f} s", 429
            )
            answer.headers["Retry-After"] = f"{wait_s:.0f}"
            return answer
        try:
            caller = await run_in_threadpool(self._tokens.caller, token)
        except ShallopError as error:
            answer = error_answer(error.code, str(error.args[0]), status_of(error))
            if isinstance(error, AccessError):
                answer.headers["WWW-Authenticate"] = 'Bearer realm="shallop"'
                if token is not None:
                    self._attempts.failed(address, now)
                    _LOG.warning("refused a token shown from %s: %s", address, error.code)
            return answer
        self._attempts.passed(address, key, now)
        return caller

    def _of_this_site(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
                return False
            return origin is None or urlsplit(origin).netloc == host
        except ValueError:
            return False


def _shown(headers: Headers) -> str | None:
    """The token that a request shows."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _address(scope: Scope) -> str:
    """Of the other side; of IPv6 its network, since one machine has as many addresses as it likes."""
    client = scope.get("client")
    if not client:
        return "unknown"
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)
