"""PURE. Who may do what: the scopes of a token, and for every route of the API the scope that it needs.

For: the one table of routes; a route that is not in it needs the highest scope, so that a forgotten one is
closed and not open.
Not for: tokens themselves (`fleet.tokens`), or HTTP (`fleet.api.guard` asks here).
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from msgspec import Struct


class Scope(StrEnum):
    """What a token is good for."""

    VIEW = "view"
    """Read everything but secrets; the registry holds none that it gives out."""
    PUBLISH = "publish"
    """Bring releases in, and bar them."""
    OPERATE = "operate"
    """Change what devices run, and what the registry calls them."""
    ADMINISTER = "administer"
    """Give and take these rights."""


IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.VIEW: frozenset({Scope.VIEW}),
    Scope.PUBLISH: frozenset({Scope.PUBLISH, Scope.VIEW}),
    Scope.OPERATE: frozenset({Scope.OPERATE, Scope.VIEW}),
    Scope.ADMINISTER: frozenset(Scope),
}
"""What each scope brings with it."""

ANYONE = None
"""In the table: no token is needed; a route that has something to protect asks for a secret of its own."""

ROUTES: dict[tuple[str, str], Scope | None] = {
    ("GET", "/api/health"): ANYONE,
    ("GET", "/api/releases"): Scope.VIEW,
    ("PUT", "/api/bundles"): Scope.PUBLISH,
    ("PUT", "/api/bundles/{release}/blobs/{digest}"): Scope.PUBLISH,
    ("POST", "/api/bundles/{release}/finish"): Scope.PUBLISH,
    ("GET", "/api/devices"): Scope.VIEW,
    ("GET", "/api/devices/{device}"): Scope.VIEW,
    ("DELETE", "/api/devices/{device}"): Scope.OPERATE,
    ("PUT", "/api/devices/{device}/labels"): Scope.OPERATE,
    ("PUT", "/api/devices/{device}/groups"): Scope.OPERATE,
    ("POST", "/api/devices/{device}/clear-duplicate"): Scope.OPERATE,
    ("POST", "/api/rollouts"): Scope.OPERATE,
    ("GET", "/api/rollouts"): Scope.VIEW,
    ("GET", "/api/rollouts/{id}"): Scope.VIEW,
    ("GET", "/api/rollouts/{id}/rollback-payload"): Scope.OPERATE,
    ("POST", "/api/rollouts/{id}/{verb}"): Scope.OPERATE,
    ("POST", "/api/rollbacks"): Scope.OPERATE,
    ("GET", "/api/rollbacks/{id}"): Scope.VIEW,
    ("GET", "/api/tokens"): Scope.ADMINISTER,
    ("POST", "/api/tokens"): Scope.ADMINISTER,
    ("POST", "/api/tokens/{token}/revoke"): Scope.ADMINISTER,
    ("POST", "/api/enrolments"): Scope.ADMINISTER,
    ("GET", "/api/enrolments"): Scope.VIEW,
    ("POST", "/api/enrolments/{which}/cancel"): Scope.OPERATE,
    ("POST", "/api/devices/{device}/revoke"): Scope.OPERATE,
    ("GET", "/api/bars"): Scope.VIEW,
    ("POST", "/api/bars"): Scope.PUBLISH,
    ("GET", "/api/roots"): Scope.VIEW,
    ("GET", "/api/releases/{release}/manifest"): Scope.VIEW,
    ("GET", "/api/releases/{release}/envelope"): Scope.VIEW,
    ("GET", "/api/releases/{release}/deltas"): Scope.VIEW,
    ("GET", "/api/blobs/{digest}"): Scope.VIEW,
    ("GET", "/api/audit"): Scope.VIEW,
    ("GET", "/api/audit/head"): Scope.VIEW,
}
"""Every route. The ready rollback payload is a signed order: whoever holds it can send it, so reading it
is operating."""

UNRECORDED: dict[tuple[str, str], str] = {
    ("PUT", "/api/bundles/{release}/blobs/{digest}"): "a blob belongs to nothing until its upload's finish",
}
"""Routes that change something and leave no entry in the audit log, each with the reason."""

READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""


class Caller(Struct, frozen=True, kw_only=True):
    """Whoever makes a request.

    Attributes:
        name: of the token, or `fleet.audit.ANYBODY`.
        scopes: of the token, with all that they imply.
    """

    name: str
    scopes: frozenset[Scope]


def implied(scopes: Collection[Scope]) -> frozenset[Scope]:
    """The scopes with all that they imply."""
    return frozenset().union(*(IMPLIED[scope] for scope in scopes))


def needed(method: str, path: str) -> Scope | None:
    """The scope that a request needs; ANYONE where it needs none, `administer` where nobody thought of it.

    Args:
        method: of the request.
        path: as the router sees it, escapes undone.
    """
    method = "GET" if method == "HEAD" else method
    exact = ROUTES.get((method, path), Scope.ADMINISTER)
    if "{" not in path and (method, path) in ROUTES:
        return exact
    segments = path.split("/")
    for (known, pattern), scope in ROUTES.items():
        if known == method and _fits(pattern.split("/"), segments):
            return scope
    return Scope.ADMINISTER


def _fits(pattern: list[str], segments: list[str]) -> bool:
    return len(pattern) == len(segments) and all(
        (part.startswith("{") and segment != "") or part == segment
        for part, segment in zip(pattern, segments, strict=True)
    )
