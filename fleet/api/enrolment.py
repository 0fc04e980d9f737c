"""The routes about enrolment, for people: tokens for devices, and devices that are shut out.

For: the verbs of `fleet.enrolling` over the registry's own API.
Not for: what devices ask (`fleet.api.enrol_door`).

    POST   /api/enrolments                           EnrolAsk -> [TokenShow], each token said once
    GET    /api/enrolments                           [EnrolmentView]
    POST   /api/enrolments/ID_OR_DEVICE/cancel       [EnrolmentView] that ended
    POST   /api/devices/D/revoke                     RevokedView
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from fleet.api.exchange import Handler, answer, by_of, read_json
from fleet.enrolling import Enrolling
from fleet.enrolment_views import EnrolAsk


def enrolment_routes(enrolling: Enrolling, wake: Callable[[], None]) -> tuple[tuple[str, str, Handler], ...]:
    """Method, path and handler of each.

    Args:
        enrolling: the verbs.
        wake: tells the conductor that something changed.
    """
    api = _Api(enrolling, wake)
    return (
        ("POST", "/api/enrolments", api.make),
        ("GET", "/api/enrolments", api.tokens),
        ("POST", "/api/enrolments/{which}/cancel", api.cancel),
        ("POST", "/api/devices/{device}/revoke", api.revoke),
    )


class _Api:
    """The handlers."""

    def __init__(self, enrolling: Enrolling, wake: Callable[[], None]) -> None:
        self._enrolling = enrolling
        self._wake = wake

    async def make(self, request: Request) -> Response:
        ask = await read_json(request, EnrolAsk)
        return answer(await run_in_threadpool(self._enrolling.make, ask, by_of(request)))

    async def tokens(self, _request: Request) -> Response:
        return answer(await run_in_threadpool(self._enrolling.tokens))

    async def cancel(self, request: Request) -> Response:
        which = request.path_params["which"]
        return answer(await run_in_threadpool(self._enrolling.cancel, which, by_of(request)))

    async def revoke(self, request: Request) -> Response:
        device = request.path_params["device"]
        revoked = await run_in_threadpool(self._enrolling.revoke, device, by_of(request))
        self._wake()
        return answer(revoked)
