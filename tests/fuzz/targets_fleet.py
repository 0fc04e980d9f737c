"""Targets: the registry's edges: what devices say and what people and programs ask over HTTP.

For: messages taken in to the database's end, where nothing that a device sent may raise; every route of the
API with a hostile body, which must answer by name and never by 500; the registry's answers to its own client.
Not for: configurations (`tests.fuzz.targets_yaml`).
"""

from __future__ import annotations

import asyncio
import atexit
import base64
from contextlib import suppress
from functools import cache, partial
from random import Random
from typing import Any

import httpx
import msgspec

from fleet.adapters import broker_files
from fleet.audit import AuditHead, checked, follow, genesis
from fleet.audit_heads import exported, imported, read_head
from fleet.bars import BarsAsk
from fleet.enrolment_views import EnrolAsk
from fleet.keys import KeysError
from fleet.people import RollbackAsk, RolloutAsk
from fleet.ports import Delivery
from fleet.scopes import Scope
from fleet.tokens import TokenAsk
from fleet.verify_statement import expected_files, statement_fault
from tests.fleet.site import Site
from tests.fleet.twins import TOPICS, Harness
from tests.fuzz.mutate import bent_json
from tests.fuzz.places import filed
from tests.fuzz.target import Target
from tests.fuzz.targets_wire import honest
from tests.wire.samples import MANIFEST
from wire import codec, topics
from wire.topics import CHANNELS, Channel
from wire.trust import seal


class Broken(Exception):  # noqa: N818 - what the oracle calls it
    """The registry failed where it should refuse."""


@cache
def _harness() -> Harness:
    return Harness()


def _taken(channel: Channel, data: bytes) -> object:
    """One message of a device, in a transaction that is rolled back."""
    harness = _harness()
    words = {"device": "roof-17", "id": "c1", "digest": "ab" * 32, "number": "1", "group": "north"}
    used = {name: word for name, word in words.items() if f"{{{name}}}" in channel.pattern}
    delivery = Delivery(topic=TOPICS.topic(channel, **used), payload=data, retain=channel.retain)
    told = ""
    with suppress(_Undo), harness.store.inner.begin() as tx:
        harness.ingest.refused.clear()
        taken = harness.ingest.take(tx, [delivery], 1_800_000_000.0)
        told = repr((taken, tx.device("roof-17"), sorted(harness.ingest.refused)))
        _undo()
    return told


class _Undo(Exception):  # noqa: N818 - ends a transaction
    """Nothing of it stays, so that one execution tells nothing to the next."""


def _undo() -> None:
    raise _Undo


def _said(channel: Channel) -> dict[str, bytes]:
    assert channel.kind is not None
    found = honest(channel.kind)
    return {name: seal(channel.kind, data) for name, data in found.items()} if channel.enveloped else found


def _ingest(channel: Channel) -> Target:
    return Target(
        name=f"fleet.ingest.{channel.name}", run=partial(_taken, channel), seeds=partial(_said, channel),
        mutate=bent_json, weight=8,
    )  # fmt: skip


# --- HTTP


class _Api:
    """The application on a loop of its own, which lasts as long as the process."""

    def __init__(self) -> None:
        self.site = Site()
        self._transport = httpx.ASGITransport(self.site.app, raise_app_exceptions=True)
        self._loop = asyncio.new_event_loop()
        self._shown = {"Authorization": f"Bearer {self.site.made('fuzz', *Scope)}"}
        atexit.register(self._loop.close)

    def ask(self, method: str, path: str, content: bytes) -> httpx.Response:
        """One request."""

        async def request() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=self._transport, base_url="http://localhost:8470"
            ) as client:
                return await client.request(method, path, content=content, headers=self._shown)

        return self._loop.run_until_complete(request())


@cache
def _api() -> _Api:
    return _Api()


def _asked(method: str, path: str, data: bytes) -> object:
    answer = _api().ask(method, path, data)
    if answer.status_code >= 500:
        raise Broken(f"{method} {path} answered {answer.status_code}")
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"code", "message"}, error
        return answer.status_code, error["code"]
    return answer.status_code


def _route(name: str, method: str, path: str, body: object) -> Target:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Target(
        name=f"fleet.http.{name}", run=partial(_asked, method, path), seeds=lambda: {"honest": data},
        mutate=bent_json, weight=3, stable=False,
    )  # fmt: skip


ROUTES: tuple[tuple[str, str, str, Any], ...] = (
    ("bundles", "PUT", "/api/bundles", codec.encode(MANIFEST)),
    ("finish", "POST", f"/api/bundles/{'ab' * 32}/finish", seal("release", codec.encode(MANIFEST))),
    ("labels", "PUT", "/api/devices/roof-17/labels", {"site": "north", "old": None}),
    ("groups", "PUT", "/api/devices/roof-17/groups", {"groups": ["north"]}),
    ("rollouts", "POST", "/api/rollouts", RolloutAsk(model="fashion", release="2", gate={"failures_max": 0})),
    ("pause", "POST", "/api/rollouts/r1/pause", {"why": "x"}),
    ("abort", "POST", "/api/rollouts/r1/abort", {"action": "halt"}),
    ("tokens", "POST", "/api/tokens", TokenAsk(name="kim", scopes=(Scope.VIEW,), expires_s=60.0)),
    ("enrolments", "POST", "/api/enrolments", EnrolAsk(devices=("roof-17",))),
    ("bars", "POST", "/api/bars", BarsAsk(bar=("ab" * 32,), why="known as bad")),
    ("rollbacks", "POST", "/api/rollbacks", RollbackAsk(model="fashion", devices=("roof-17",))),
)
"""Every route that reads a body; a test compares the list with the application's."""


# --- the audit log's export, which an auditor gets as a file


def _audited(data: bytes) -> object:
    heads: list[bytes] = []
    found = checked(imported(data.splitlines(keepends=True), heads.append), "a" * 32)
    return found, [read_head(head) for head in heads]


def _log() -> dict[str, bytes]:
    one = follow(
        0, genesis("a" * 32), at=1.0, who="kim", what="rollout.start", subject="r1", why="x", details={"a": 1}
    )
    two = follow(1, one.sha256, at=2.0, who="kim", what="rollout.pause", subject="r1", why="", details={})
    head = AuditHead(registry_id="a" * 32, number=2, sha256=two.sha256, at_ms=2000)
    return {"log": b"".join(exported([one, two], seal("audit_head", msgspec.json.encode(head))))}


def _bent_lines(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = bent_json(random, lines[at])
    return b"\n".join(lines)


# --- records of the broker's files, and a signature to be given out


def _broker_files(data: bytes) -> object:
    path = filed("broker.json", data)
    try:
        return broker_files._load(path, broker_files._REVOKED)
    except KeysError:
        return broker_files._load(path, broker_files._SETUP)


def _broker_records() -> dict[str, bytes]:
    revoked = broker_files.Revoked(
        devices={"roof-17": 1.0}, certificates={"ab": broker_files.RevokedCertificate(at=1.0, not_after=2.0)}
    )
    return {"revoked": msgspec.json.encode(revoked)}


_EXPECTED = expected_files(MANIFEST, "ab" * 32)


def _statement(data: bytes) -> object:
    bundle = {"dsseEnvelope": {"payload": base64.b64encode(data).decode()}}
    return statement_fault(msgspec.json.encode(bundle), _EXPECTED), statement_fault(data, _EXPECTED)


def _statements() -> dict[str, bytes]:
    named = [{"name": n, "digest": d, "algorithm": "sha256"} for n, d in _EXPECTED.items()]
    return {"statement": msgspec.json.encode({"predicate": {"resources": named}})}


_FROM_DEVICES = tuple(one for one in CHANNELS if one.sender == "agent" and one.kind is not None)

TARGETS: tuple[Target, ...] = (
    *map(_ingest, (*_FROM_DEVICES, topics.SEED, topics.DESIRED)),
    *(_route(*route) for route in ROUTES),
    Target(
        name="fleet.broker_files",
        run=_broker_files,
        seeds=_broker_records,
        mutate=bent_json,
        memory_bytes_max=2 * broker_files.RECORD_BYTES_MAX,
        weight=60,
    ),
    Target(name="fleet.statement", run=_statement, seeds=_statements, mutate=bent_json),
    Target(name="fleet.audit", run=_audited, seeds=_log, mutate=_bent_lines),
)
