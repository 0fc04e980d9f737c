"""Requests read and answers written: bodies capped, parsed once, errors by name.

For: what every module of routes needs. Not for: the routes themselves (`fleet.api.http` and its neighbours).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import unquote

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fleet.audit import WHY_CHARS_MAX, WHY_HEADER, By, clean
from fleet.ports import ConflictError, NotFoundError, StoreError
from fleet.scopes import Caller
from fleet.tokens import AccessError
from wire.errors import ShallopError

JSON_BYTES_MAX = 256 * 1024

T = TypeVar("T")

Handler = Callable[[Request], Awaitable[Response]]
"""What answers one route."""


class TooLargeError(ShallopError):
    """A request's body is above its cap."""


class BadRequestError(ShallopError):
    """A request that cannot be read."""


def answer(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def error_answer(code: str, message: str, status: int) -> Response:
    """An error in the API's form."""
    return answer({"error": {"code": code, "message": message}}, status)


async def read_body(request: Request, size_bytes_max: int) -> bytes:
    """The body, refused as soon as it is larger than its cap.

    Raises:
        TooLargeError: `body_too_large`.
        BadRequestError: `client_gone`.
    """
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > size_bytes_max:
                raise TooLargeError("body_too_large", f"the body is above {size_bytes_max} bytes")
    except ClientDisconnect:
        raise BadRequestError("client_gone", "the connection ended within the body") from None
    return bytes(body)


async def read_json(request: Request, expected: type[T]) -> T:
    """The body as a typed value.

    Raises:
        TooLargeError: `body_too_large`.
        BadRequestError: `body_malformed`, naming the field.
    """
    body = await read_body(request, JSON_BYTES_MAX)
    try:
        return msgspec.json.decode(body or b"{}", type=expected)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError("body_malformed", f"the request cannot be read: {error}") from None


def caller_of(request: Request) -> Caller | None:
    """Who makes the request; None on a route that asks nobody, where nobody said."""
    found = request.scope.get("state", {}).get("caller")
    return found if isinstance(found, Caller) else None


def by_of(request: Request, said: str = "") -> By:
    """Who makes the request, and why: in the header, else as the body said.

    What people say ends on other people's terminals, so control characters end here.
    """
    caller = caller_of(request)
    if caller is None:
        raise RuntimeError("a route that changes something let a request in without a caller")
    why = unquote(request.headers.get(WHY_HEADER, ""), errors="replace") or said
    return By(who=caller.name, why=clean(why, WHY_CHARS_MAX))


def status_of(error: ShallopError) -> int:
    """The HTTP status of an error."""
    match error:
        case NotFoundError():
            return 404
        case ConflictError():
            return 409
        case TooLargeError():
            return 413
        case StoreError():
            return 503
        case AccessError():
            return 401
        case _:
            return 400


async def on_shallop_error(_request: Request, error: Exception) -> Response:
    """Answers with the error's own name."""
    if not isinstance(error, ShallopError):
        raise error
    return error_answer(error.code, str(error.args[0]), status_of(error))


async def on_http_error(_request: Request, error: Exception) -> Response:
    """Answers with a name for what the router did not find."""
    if not isinstance(error, HTTPException):
        raise error
    code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "http_error")
    return error_answer(code, f"{error.detail}; the paths stand in fleet/api/http.py", error.status_code)


async def on_fault(_request: Request, _error: Exception) -> Response:
    """Answers without any detail, which stands in the log."""
    return error_answer("internal", "the registry failed; its log says why", 500)
