"""The registry's API in this process, on twins, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fleet.api.guard import LOOPBACK
from fleet.api.http import Health, Services, build
from fleet.api.people_routes import Crew
from fleet.audit import AuditEntry, By
from fleet.audit_log import AuditLog
from fleet.bars import Bars
from fleet.people_approval import Approvals
from fleet.scopes import Scope
from fleet.tokens import TokenAsk, Tokens
from tests.fleet.bundles import write_bundle
from tests.fleet.twins import Harness


class Site:
    """A harness behind HTTP.

    Attributes:
        token: shown with every request; None: none.
    """

    def __init__(self, harness: Harness | None = None) -> None:
        self.harness = harness or Harness()
        self.token: str | None = None
        self.woken = 0
        harness = self.harness
        self.tokens = Tokens(harness.store, harness.clock)
        services = Services(
            people=harness.people,
            crew=Crew(
                tokens=self.tokens,
                approvals=Approvals(harness.store, harness.clock, harness.current),
                log=AuditLog(harness.store, harness.clock, harness.current),
                bars=Bars(harness.store, harness.clock, harness.current, insecure_unsigned=True),
                wake=self._wake,
            ),
            intake=harness.intake,
            archive=harness.archive,
            health=self._health,
            wake=self._wake,
            enrolling=harness.enrolling,
        )
        self.app = build(services, LOOPBACK)
        self._transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)

    def _wake(self) -> None:
        self.woken += 1

    def _health(self) -> Health:
        return Health(
            status="ok",
            access="tokens" if self.tokens.demanded() else "open",
            broker_connected=True,
            syncing=False,
            outbox_pending=0,
            registry_id="a" * 32,
            generation=0,
            refused={},
            failures={},
            root="shallop/v1",
            signed=False,
        )

    def get(self, method: str, path: str, **more: Any) -> httpx.Response:  # noqa: ANN401 - as httpx takes it
        headers = {
            **({"Authorization": f"Bearer {self.token}"} if self.token else {}),
            **more.pop("headers", {}),
        }

        async def request() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=self._transport, base_url="http://localhost:8470"
            ) as client:
                return await client.request(method, path, headers=headers, **more)

        return asyncio.run(request())

    def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:  # noqa: ANN401 - as httpx takes it
        answer = self.get(method, path, **more)
        return answer.status_code, answer.json()

    def code(self, method: str, path: str, **more: Any) -> tuple[int, str]:  # noqa: ANN401 - as above
        status, body = self.ask(method, path, **more)
        assert set(body) == {"error"}, body
        assert body["error"]["message"]
        return status, body["error"]["code"]

    def made(self, name: str, *scopes: Scope, expires_s: float | None = None) -> str:
        """A new token, made at the machine."""
        ask = TokenAsk(name=name, scopes=scopes, expires_s=expires_s)
        return self.tokens.create(ask, By(who="local:root")).token

    def entries(self) -> list[AuditEntry]:
        """The whole audit log."""
        with self.harness.store.begin() as tx:
            return tx.audit_entries(0, 10_000)


@contextmanager
def site_with_a_release(folder: Path) -> Iterator[Site]:
    """Two devices, and `camera@v1` published from a bundle in `folder`."""
    made = Site()
    for name in ("dev-0", "dev-1"):
        made.harness.device(name)
    write_bundle(folder / "v1", "v1", size_bytes=20_000)
    made.harness.publish(folder / "v1")
    made.harness.settle()
    yield made
    made.harness.store.close()
