"""The routes about people: tokens, the audit log, and the list of barred releases.

For: who may do what, and the record of it, over HTTP.
Not for: the guard that asks for tokens (`fleet.api.guard`).

    GET    /api/tokens                               [TokenView]
    POST   /api/tokens                               TokenAsk -> TokenMade, the secret said once
    POST   /api/tokens/ID_OR_NAME/revoke             [TokenView]
    GET    /api/bars                                 BarsShow
    POST   /api/bars                                 BarsAsk -> BarsShow
    GET    /api/audit[?after=N][&limit=N]            [AuditEntry] from number N + 1 on, oldest first
    GET    /api/audit?newest=N[&who=W][&subject=S]   [AuditEntry] the newest N, oldest first
    GET    /api/audit/head                           the signed head, an envelope of `audit_head`
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from fleet.api.exchange import BadRequestError, Handler, answer, by_of, read_json
from fleet.audit_log import PAGE_MAX, AuditLog
from fleet.bars import Bars, BarsAsk
from fleet.people_approval import Approvals
from fleet.tokens import TokenAsk, Tokens


class Crew(Struct, frozen=True, kw_only=True):
    """What these routes call; `wake` tells the conductor that something changed."""

    tokens: Tokens
    approvals: Approvals
    log: AuditLog
    bars: Bars
    wake: Callable[[], None]


def people_routes(crew: Crew) -> tuple[tuple[str, str, Handler], ...]:
    """Method, path and handler of each."""
    api = _Api(crew)
    return (
        ("GET", "/api/tokens", api.tokens),
        ("POST", "/api/tokens", api.token_create),
        ("POST", "/api/tokens/{token}/revoke", api.token_revoke),
        ("GET", "/api/bars", api.bars),
        ("POST", "/api/bars", api.bars_change),
        ("GET", "/api/audit", api.audit),
        ("GET", "/api/audit/head", api.audit_head),
    )


class _Api:
    """The handlers."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    async def tokens(self, _request: Request) -> Response:
        return answer(await run_in_threadpool(self._crew.tokens.tokens))

    async def token_create(self, request: Request) -> Response:
        ask = await read_json(request, TokenAsk)
        return answer(await run_in_threadpool(self._crew.tokens.create, ask, by_of(request)))

    async def token_revoke(self, request: Request) -> Response:
        wanted = request.path_params["token"]
        return answer(await run_in_threadpool(self._crew.tokens.revoke, wanted, by_of(request)))

    async def bars(self, _request: Request) -> Response:
        return answer(await run_in_threadpool(self._crew.bars.show))

    async def bars_change(self, request: Request) -> Response:
        ask = await read_json(request, BarsAsk)
        show = await run_in_threadpool(self._crew.bars.change, ask, by_of(request, ask.why))
        self._crew.wake()
        return answer(show)

    async def audit(self, request: Request) -> Response:
        query, log = request.query_params, self._crew.log
        if "newest" in query:
            count = _number(query["newest"])
            return answer(await run_in_threadpool(log.newest, count, query.get("who"), query.get("subject")))
        after, limit = _number(query.get("after", "0")), _number(query.get("limit", str(PAGE_MAX)))
        return answer(await run_in_threadpool(log.page, after, limit))

    async def audit_head(self, _request: Request) -> Response:
        return Response(await run_in_threadpool(self._crew.log.head), media_type="application/json")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 16):
        raise BadRequestError("number_malformed", f"{text[:40]!r} is no number")
    return int(text)
