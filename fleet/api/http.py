"""The HTTP API, on Starlette: JSON in, JSON out, every body capped.

For: the registry's verbs for the command line and the dashboard. There is no login: it listens on
loopback unless told otherwise, and belongs behind a proxy beyond that.
Not for: deciding anything (`fleet.people`, `fleet.publish.intake`).

    GET    /api/health                               state of the registry, counters of refused messages
    GET    /api/releases                             [ReleaseView]
    PUT    /api/bundles                              body: manifest.json -> {digest, missing: [sha256]}
    PUT    /api/bundles/DIGEST/blobs/SHA256          body: the blob
    POST   /api/bundles/DIGEST/finish                all blobs are here: publish
    GET    /api/devices[?select=EXPR]                [DeviceView]
    GET    /api/devices/D                            DeviceView
    DELETE /api/devices/D                            forget it
    PUT    /api/devices/D/labels                     {key: value or null} -> DeviceView
    PUT    /api/devices/D/groups                     {groups: [name]} -> DeviceView
    POST   /api/devices/D/clear-duplicate            DeviceView
    POST   /api/rollouts                             RolloutAsk -> RolloutView
    GET    /api/rollouts                             [RolloutView]
    GET    /api/rollouts/ID                          RolloutShow
    POST   /api/rollouts/ID/pause|resume|abort       {why} | - | {action} -> RolloutView
    GET    /api/rollouts/ID/rollback-payload[?device=D]   bytes for mosquitto_pub; the topic in X-Topic
    POST   /api/rollbacks                            RollbackAsk -> RollbackShow
    GET    /api/rollbacks/ID                         RollbackShow

Errors: {"error": {"code": ..., "message": ...}} with 400 (bad input), 403 (asked by a page of another
site), 404, 409 (conflict), 413 (too large) or 503 (the database cannot be used).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fleet.api.guard import Guard
from fleet.people import People, RollbackAsk, RolloutAsk
from fleet.ports import ConflictError, NotFoundError, StoreError
from fleet.publish.intake import Intake
from fleet.rollout import FailureAction
from wire import topics as wt
from wire.bundle import MANIFEST_BYTES_MAX
from wire.errors import ShallopError
from wire.types import GroupName

_LOG = logging.getLogger("shallop.fleet.api")

JSON_BYTES_MAX = 256 * 1024

T = TypeVar("T")


class Health(Struct, frozen=True, kw_only=True):
    """State of the registry.

    Attributes:
        broker_trouble: what is wrong at the broker's door (`fleet.adapters.gate`); None if nothing is known.
    """

    status: str
    broker_connected: bool
    syncing: bool
    outbox_pending: int
    registry_id: str
    generation: int
    refused: dict[str, int]
    failures: dict[str, int]
    root: str
    signed: bool
    broker_trouble: str | None = None


class Services(Struct, frozen=True, kw_only=True):
    """What the API calls.

    Attributes:
        people: the verbs.
        intake: takes bundles in.
        health: what to answer on /api/health.
        wake: tells the conductor that something changed.
    """

    people: People
    intake: Intake
    health: Callable[[], Health]
    wake: Callable[[], None]


class BundleAnswer(Struct, frozen=True, kw_only=True):
    """What an upload still needs."""

    digest: str
    model: str
    release: str
    state: str
    missing: list[str]


class _Pause(Struct, frozen=True, forbid_unknown_fields=True):
    why: Annotated[str, Meta(max_length=2000)] = "by a person"


class _Groups(Struct, frozen=True, forbid_unknown_fields=True):
    groups: Annotated[tuple[GroupName, ...], Meta(max_length=64)] = ()


class _Abort(Struct, frozen=True, forbid_unknown_fields=True):
    action: FailureAction = FailureAction.ROLLBACK_ALL


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


def _status_of(error: ShallopError) -> int:
    match error:
        case NotFoundError():
            return 404
        case ConflictError():
            return 409
        case TooLargeError():
            return 413
        case StoreError():
            return 503
        case _:
            return 400


async def _on_shallop_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ShallopError):
        raise error
    return error_answer(error.code, str(error.args[0]), _status_of(error))


async def _on_http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "http_error")
    return error_answer(code, f"{error.detail}; the paths stand in fleet/api/http.py", error.status_code)


async def _on_fault(_request: Request, _error: Exception) -> Response:
    return error_answer("internal", "the registry failed; its log says why", 500)


_Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The handlers; each reads its input and calls one verb off the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def _changed(self, work: Callable[..., T], *args: Any) -> Response:  # noqa: ANN401 - passed on
        """Answers with what a verb returned and wakes the conductor."""
        result = await run_in_threadpool(work, *args)
        self._services.wake()
        return answer(result)

    async def health(self, _request: Request) -> Response:
        """GET /api/health."""
        return answer(await run_in_threadpool(self._services.health))

    async def releases(self, _request: Request) -> Response:
        """GET /api/releases."""
        return answer(await run_in_threadpool(self._services.people.releases))

    async def bundle_begin(self, request: Request) -> Response:
        """PUT /api/bundles."""
        self._services.people.require_authority()
        data = await read_body(request, MANIFEST_BYTES_MAX)
        row, missing = await run_in_threadpool(self._services.intake.begin, data)
        return answer(
            BundleAnswer(
                digest=row.digest, model=row.model, release=row.name, state=row.state, missing=missing
            )
        )

    async def bundle_blob(self, request: Request) -> Response:
        """PUT /api/bundles/DIGEST/blobs/SHA256."""
        release, digest = request.path_params["release"], request.path_params["digest"]
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BadRequestError(
                "digest_malformed", "a blob is named by its SHA-256 in lower-case hexadecimal"
            )
        data = await read_body(request, wt.BLOB.size_bytes_max)
        await run_in_threadpool(self._services.intake.blob, release, digest, iter([data]))
        return answer({"stored": digest})

    async def bundle_finish(self, request: Request) -> Response:
        """POST /api/bundles/DIGEST/finish."""
        self._services.people.require_authority()
        envelope = await read_body(request, wt.RELEASE.size_bytes_max) or None
        row = await run_in_threadpool(self._services.intake.finish, request.path_params["release"], envelope)
        self._services.wake()
        return answer(
            BundleAnswer(digest=row.digest, model=row.model, release=row.name, state=row.state, missing=[])
        )

    async def devices(self, request: Request) -> Response:
        """GET /api/devices."""
        select = request.query_params.get("select", "all")
        return answer(await run_in_threadpool(self._services.people.devices, select))

    async def device(self, request: Request) -> Response:
        """GET /api/devices/D."""
        return answer(await run_in_threadpool(self._services.people.device, request.path_params["device"]))

    async def device_forget(self, request: Request) -> Response:
        """DELETE /api/devices/D."""
        device = request.path_params["device"]
        await run_in_threadpool(self._services.people.forget, device)
        self._services.wake()
        return answer({"forgotten": device})

    async def device_labels(self, request: Request) -> Response:
        """PUT /api/devices/D/labels."""
        changes = await read_json(request, dict[str, str | None])
        return await self._changed(self._services.people.label, request.path_params["device"], changes)

    async def device_groups(self, request: Request) -> Response:
        """PUT /api/devices/D/groups."""
        groups = (await read_json(request, _Groups)).groups
        return await self._changed(self._services.people.group, request.path_params["device"], groups)

    async def device_clear_duplicate(self, request: Request) -> Response:
        """POST /api/devices/D/clear-duplicate."""
        return await self._changed(self._services.people.clear_duplicate, request.path_params["device"])

    async def rollout_start(self, request: Request) -> Response:
        """POST /api/rollouts."""
        ask = await read_json(request, RolloutAsk)
        return await self._changed(self._services.people.start, ask)

    async def rollouts(self, _request: Request) -> Response:
        """GET /api/rollouts."""
        return answer(await run_in_threadpool(self._services.people.rollouts))

    async def rollout(self, request: Request) -> Response:
        """GET /api/rollouts/ID."""
        return answer(await run_in_threadpool(self._services.people.rollout, request.path_params["id"]))

    async def rollout_verb(self, request: Request) -> Response:
        """POST /api/rollouts/ID/pause|resume|abort."""
        rollout, verb, people = request.path_params["id"], request.path_params["verb"], self._services.people
        if verb == "pause":
            return await self._changed(people.pause, rollout, (await read_json(request, _Pause)).why)
        if verb == "resume":
            return await self._changed(people.resume, rollout)
        if verb == "abort":
            return await self._changed(people.abort, rollout, (await read_json(request, _Abort)).action)
        raise BadRequestError("unknown_verb", f"{verb[:40]!r} is none of pause, resume, abort")

    async def rollout_payload(self, request: Request) -> Response:
        """GET /api/rollouts/ID/rollback-payload."""
        device = request.query_params.get("device")
        topic, payload = await run_in_threadpool(
            self._services.people.rollback_payload, request.path_params["id"], device
        )
        return Response(payload, media_type="application/json", headers={"X-Topic": topic})

    async def rollback_start(self, request: Request) -> Response:
        """POST /api/rollbacks."""
        ask = await read_json(request, RollbackAsk)
        return await self._changed(self._services.people.roll_back, ask)

    async def rollback(self, request: Request) -> Response:
        """GET /api/rollbacks/ID."""
        return answer(await run_in_threadpool(self._services.people.rollback, request.path_params["id"]))


def build(services: Services, hosts: frozenset[str] | None = None) -> Starlette:
    """The application.

    Args:
        services: what it calls.
        hosts: names under which it may be addressed; None: any.
    """
    api = Api(services)
    table: tuple[tuple[str, str, _Handler], ...] = (
        ("GET", "/api/health", api.health),
        ("GET", "/api/releases", api.releases),
        ("PUT", "/api/bundles", api.bundle_begin),
        ("PUT", "/api/bundles/{release}/blobs/{digest}", api.bundle_blob),
        ("POST", "/api/bundles/{release}/finish", api.bundle_finish),
        ("GET", "/api/devices", api.devices),
        ("GET", "/api/devices/{device}", api.device),
        ("DELETE", "/api/devices/{device}", api.device_forget),
        ("PUT", "/api/devices/{device}/labels", api.device_labels),
        ("PUT", "/api/devices/{device}/groups", api.device_groups),
        ("POST", "/api/devices/{device}/clear-duplicate", api.device_clear_duplicate),
        ("POST", "/api/rollouts", api.rollout_start),
        ("GET", "/api/rollouts", api.rollouts),
        ("GET", "/api/rollouts/{id}", api.rollout),
        ("GET", "/api/rollouts/{id}/rollback-payload", api.rollout_payload),
        ("POST", "/api/rollouts/{id}/{verb}", api.rollout_verb),
        ("POST", "/api/rollbacks", api.rollback_start),
        ("GET", "/api/rollbacks/{id}", api.rollback),
    )
    return Starlette(
        middleware=[Middleware(Guard, hosts=hosts)],
        routes=[Route(path, handler, methods=[method]) for method, path, handler in table],
        exception_handlers={
            ShallopError: _on_shallop_error,
            HTTPException: _on_http_error,
            500: _on_fault,
        },
    )
