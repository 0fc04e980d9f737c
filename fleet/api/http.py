"""The HTTP API, on Starlette: JSON in, JSON out, every body capped.

For: the registry's verbs for the command line and the dashboard. Who may call which route stands in
`fleet.scopes`, and `fleet.api.guard` asks for the token; tokens and the audit log have their routes in
`fleet.api.people_routes`.
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
    POST   /api/rollouts/ID/pause|resume|approve     {why} -> RolloutView
    POST   /api/rollouts/ID/abort|reject             {why, action} -> RolloutView
    GET    /api/rollouts/ID/rollback-payload[?device=D]   bytes for mosquitto_pub; the topic in X-Topic
    POST   /api/rollbacks                            RollbackAsk -> RollbackShow
    GET    /api/rollbacks/ID                         RollbackShow
    and what a release is made of: fleet/api/provenance.py

Why something is changed stands in the header `Shallop-Why`, percent-encoded, for every route.

Errors: {"error": {"code": ..., "message": ...}} with 400 (bad input), 401 (no token that is good here), 403
(a scope is missing, or a page of another site asks), 404, 409 (conflict), 413 (too large), 429 (too many
wrong tokens) or 503 (the database cannot be used).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fleet.api import provenance
from fleet.api.enrolment import enrolment_routes
from fleet.api.exchange import (
    BadRequestError,
    Handler,
    answer,
    by_of,
    caller_of,
    on_fault,
    on_http_error,
    on_shallop_error,
    read_body,
    read_json,
)
from fleet.api.guard import Guard
from fleet.api.people_routes import Crew, people_routes
from fleet.enrolling import Enrolling
from fleet.enrolment_views import TrustHealth
from fleet.people import People, RollbackAsk, RolloutAsk
from fleet.publish.archive import Archive
from fleet.publish.intake import Intake
from fleet.recalled import RestoredHealth
from fleet.rollout import FailureAction
from fleet.views import BundleView
from wire import topics as wt
from wire.bundle import MANIFEST_BYTES_MAX
from wire.errors import ShallopError
from wire.types import GroupName

T = TypeVar("T")


class Health(Struct, frozen=True, kw_only=True):
    """State of the registry.

    Attributes:
        access: `tokens`, or `open` while none was ever made and everybody who reaches the registry may do
            everything.
        signing_root: number of the root under which everything is signed; None where nothing is.
        authorities: SHA-256 of the authorities whose certificates are accepted; the first one signs.
        broker_trouble: what is wrong at the broker's door (`fleet.adapters.gate`), or what the broker sent
            lately that it should not (`fleet.adapters.mqtt_bounded`); None if nothing is known.
        keys_trouble: why keys or certificates that lie there are not used; None if they are.
        restored: what a registry on an older database found out; None where nothing ever went back.
    """

    status: str
    access: str
    broker_connected: bool
    syncing: bool
    outbox_pending: int
    registry_id: str
    generation: int
    refused: dict[str, int]
    failures: dict[str, int]
    root: str
    signed: bool
    signing_root: int | None = None
    authorities: tuple[str, ...] = ()
    broker_trouble: str | None = None
    keys_trouble: str | None = None
    trust: TrustHealth | None = None
    restored: RestoredHealth | None = None


class _Brief(Struct, frozen=True):
    """What a stranger learns of the state."""

    status: str
    access: str


class Services(Struct, frozen=True, kw_only=True):
    """What the API calls.

    Attributes:
        people: the verbs.
        crew: tokens and the audit log.
        intake: takes bundles in.
        health: what to answer on /api/health.
        wake: tells the conductor that something changed.
        enrolling: tokens, and devices that are shut out (`fleet.api.enrolment`).
        archive: gives releases out.
    """

    people: People
    crew: Crew
    intake: Intake
    health: Callable[[], Health]
    wake: Callable[[], None]
    enrolling: Enrolling
    archive: Archive


class _Verb(Struct, frozen=True, forbid_unknown_fields=True):
    why: Annotated[str, Meta(max_length=2000)] = ""
    action: FailureAction = FailureAction.ROLLBACK_ALL


class _Groups(Struct, frozen=True, forbid_unknown_fields=True):
    groups: Annotated[tuple[GroupName, ...], Meta(max_length=64)] = ()


class Api:
    """The handlers; each reads its input and calls one verb off the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def _changed(self, work: Callable[..., T], *args: Any) -> Response:  # noqa: ANN401 - passed on
        """Answers with what a verb returned and wakes the conductor."""
        result = await run_in_threadpool(work, *args)
        self._services.wake()
        return answer(result)

    async def health(self, request: Request) -> Response:
        """GET /api/health; in full for who may see it."""
        found = await run_in_threadpool(self._services.health)
        stranger = found.access != "open" and caller_of(request) is None
        return answer(_Brief(status=found.status, access=found.access) if stranger else found)

    async def releases(self, _request: Request) -> Response:
        """GET /api/releases."""
        return answer(await run_in_threadpool(self._services.people.releases))

    async def bundle_begin(self, request: Request) -> Response:
        """PUT /api/bundles."""
        self._services.people.require_authority()
        data = await read_body(request, MANIFEST_BYTES_MAX)
        row, missing = await run_in_threadpool(self._services.intake.begin, data, by_of(request))
        return answer(
            BundleView(digest=row.digest, model=row.model, release=row.name, state=row.state, missing=missing)
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
        release, by = request.path_params["release"], by_of(request)
        row = await run_in_threadpool(self._services.intake.finish, release, envelope, by)
        self._services.wake()
        return answer(
            BundleView(digest=row.digest, model=row.model, release=row.name, state=row.state, missing=[])
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
        await run_in_threadpool(self._services.people.forget, device, by_of(request))
        self._services.wake()
        return answer({"forgotten": device})

    async def device_labels(self, request: Request) -> Response:
        """PUT /api/devices/D/labels."""
        changes = await read_json(request, dict[str, str | None])
        device, by = request.path_params["device"], by_of(request)
        return await self._changed(self._services.people.label, device, changes, by)

    async def device_groups(self, request: Request) -> Response:
        """PUT /api/devices/D/groups."""
        groups = (await read_json(request, _Groups)).groups
        device, by = request.path_params["device"], by_of(request)
        return await self._changed(self._services.people.group, device, groups, by)

    async def device_clear_duplicate(self, request: Request) -> Response:
        """POST /api/devices/D/clear-duplicate."""
        device, by = request.path_params["device"], by_of(request)
        return await self._changed(self._services.people.clear_duplicate, device, by)

    async def rollout_start(self, request: Request) -> Response:
        """POST /api/rollouts."""
        ask = await read_json(request, RolloutAsk)
        return await self._changed(self._services.people.start, ask, by_of(request))

    async def rollouts(self, _request: Request) -> Response:
        """GET /api/rollouts."""
        return answer(await run_in_threadpool(self._services.people.rollouts))

    async def rollout(self, request: Request) -> Response:
        """GET /api/rollouts/ID."""
        return answer(await run_in_threadpool(self._services.people.rollout, request.path_params["id"]))

    async def rollout_verb(self, request: Request) -> Response:
        """POST /api/rollouts/ID/pause|resume|abort|approve|reject."""
        rollout, verb, people = request.path_params["id"], request.path_params["verb"], self._services.people
        said = await read_json(request, _Verb)
        by = by_of(request, said.why)
        if verb == "pause":
            return await self._changed(people.pause, rollout, by)
        if verb == "resume":
            return await self._changed(people.resume, rollout, by)
        if verb == "abort":
            return await self._changed(people.abort, rollout, said.action, by)
        if verb == "approve":
            return await self._changed(self._services.crew.approvals.approve, rollout, by)
        if verb == "reject":
            return await self._changed(self._services.crew.approvals.reject, rollout, said.action, by)
        raise BadRequestError(
            "unknown_verb", f"{verb[:40]!r} is none of pause, resume, abort, approve, reject"
        )

    async def rollout_payload(self, request: Request) -> Response:
        """GET /api/rollouts/ID/rollback-payload."""
        device = request.query_params.get("device")
        topic, payload = await run_in_threadpool(
            self._services.people.rollback_payload, request.path_params["id"], device, by_of(request)
        )
        return Response(payload, media_type="application/json", headers={"X-Topic": topic})

    async def rollback_start(self, request: Request) -> Response:
        """POST /api/rollbacks."""
        ask = await read_json(request, RollbackAsk)
        return await self._changed(self._services.people.roll_back, ask, by_of(request))

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
    table: tuple[tuple[str, str, Handler], ...] = (
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
        *people_routes(services.crew),
        *enrolment_routes(services.enrolling, services.wake),
        *provenance.routes(services.archive),
    )
    return Starlette(
        middleware=[Middleware(Guard, hosts=hosts, tokens=services.crew.tokens)],
        routes=[Route(path, handler, methods=[method]) for method, path, handler in table],
        exception_handlers={
            ShallopError: on_shallop_error,
            HTTPException: on_http_error,
            500: on_fault,
        },
    )
