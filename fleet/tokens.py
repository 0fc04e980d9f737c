"""API tokens: made, shown once, kept as a hash, asked for, revoked.

For: `shf_ID_SECRET`. The secret has 256 random bits, so one plain SHA-256 of the token is kept and
compared in constant time: slow hashes are for passwords that people choose.
Not for: which scope a route needs (`fleet.scopes`), or HTTP (`fleet.api.guard`).

Before the first token was made everybody who reaches the registry may do everything, which is why it
listens on loopback alone then (`fleet.app`). Once one was made there is no way back to that: where all of
them are lost, a person at the machine makes another.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from fleet.audit import ANYBODY, REGISTRY, By
from fleet.ports import Clock, ConflictError, NotFoundError, RegistryError, Store
from fleet.ports_people import TokenRow
from fleet.scopes import Caller, Scope, implied
from wire.errors import ShallopError

FORM = re.compile(r"shf_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
SECRET_BYTES = 32
USED_EVERY_S = 60.0
"""The last use is written at most so often."""
EXPIRES_S_MAX = 10 * 366 * 86400.0

RESERVED = frozenset({ANYBODY, REGISTRY})
"""Names that the audit log uses for others than people."""

EVERYBODY = Caller(name=ANYBODY, scopes=frozenset(Scope))
"""Who speaks while no token was ever made."""


class AccessError(ShallopError):
    """Who asks is not known here."""


class TokenAsk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token as it is asked for.

    Attributes:
        name: of the person or program; one person's tokens carry one name, since the second person that an
            approval asks for is one of another name.
        expires_s: how long it is good for; None: until revoked.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}(?!\n)$")]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=4)] = (Scope.VIEW,)
    expires_s: Annotated[float, Meta(gt=0.0, le=EXPIRES_S_MAX)] | None = None


class TokenView(Struct, frozen=True, kw_only=True):
    """A token without its secret."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    state: str
    created_at: float
    created_by: str
    expires_at: float | None
    used_at: float | None


class TokenMade(Struct, frozen=True, kw_only=True):
    """A new token; `token` is said here and never again."""

    token: str
    view: TokenView


def token_sha256(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


class Tokens:
    """The tokens of one registry."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._demanded = False

    def demanded(self) -> bool:
        """Whether a token is needed: one was made once. What was made stays, so this never falls back."""
        if not self._demanded:
            with self._store.begin() as tx:
                self._demanded = tx.any_token()
        return self._demanded

    def caller(self, token: str | None) -> Caller:
        """Who shows this token.

        Args:
            token: None where none was shown.

        Raises:
            AccessError: `token_needed`, `token_refused` (no such token), `token_revoked` or `token_expired`.
        """
        if token is None:
            if self.demanded():
                raise AccessError(
                    "token_needed",
                    "this registry asks for a token: set SHALLOP_TOKEN or give --token-file FILE; "
                    "whoever administers it makes one by `shallop-fleet tokens create NAME`",
                )
            return EVERYBODY
        now = self._clock.now()
        with self._store.begin() as tx:
            named = FORM.fullmatch(token)
            row = None if named is None else tx.token(named[1])
            # Compared in any case, so that the time does not tell whether the id exists.
            if (
                not hmac.compare_digest("-" if row is None else row.sha256, token_sha256(token))
                or row is None
            ):
                raise AccessError(
                    "token_refused", "there is no such token here; it may be another registry's"
                )
            _require_usable(row, now)
            if row.used_at is None or now - row.used_at >= USED_EVERY_S:
                tx.save_token(replace(row, used_at=now))
        return Caller(name=row.name, scopes=implied(_scopes(row)))

    def create(self, ask: TokenAsk, by: By) -> TokenMade:
        """Makes a token.

        Raises:
            RegistryError: `token_malformed` or `token_name_reserved`.
            ConflictError: `first_token_at_machine`: whoever is nobody cannot make the first.
        """
        try:
            ask = msgspec.convert(msgspec.to_builtins(ask), TokenAsk)
        except msgspec.ValidationError as error:
            raise RegistryError("token_malformed", f"no such token can be made: {error}") from None
        if ask.name.casefold() in RESERVED:
            raise RegistryError("token_name_reserved", f"{ask.name} is a name of the audit log's own")
        if by.who == ANYBODY:
            raise ConflictError(
                "first_token_at_machine",
                "the first token is made at the registry's machine: "
                "`shallop-fleet tokens create NAME --scope administer --data DIR`",
            )
        token_id, now = secrets.token_hex(8), self._clock.now()
        token = f"shf_{token_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
        row = TokenRow(
            id=token_id,
            name=ask.name,
            scopes=",".join(scope for scope in Scope if scope in ask.scopes),
            sha256=token_sha256(token),
            created_at=now,
            created_by=by.who,
            expires_at=None if ask.expires_s is None else now + ask.expires_s,
        )
        with self._store.begin() as tx:
            tx.save_token(row)
            details = {"name": row.name, "scopes": row.scopes, "expires_at": row.expires_at}
            tx.audit(at=now, who=by.who, what="token.create", subject=token_id, why=by.why, details=details)
        return TokenMade(token=token, view=_view(row, now))

    def tokens(self) -> list[TokenView]:
        """All of them, oldest first."""
        with self._store.begin() as tx:
            rows = tx.tokens()
        return [_view(row, self._clock.now()) for row in rows]

    def revoke(self, wanted: str, by: By) -> list[TokenView]:
        """Takes tokens back at once: the one of that id, or all of that name that were not yet.

        Raises:
            NotFoundError: `unknown_token`.
        """
        now = self._clock.now()
        with self._store.begin() as tx:
            rows = [r for r in tx.tokens() if wanted in {r.id, r.name} and r.revoked_at is None]
            if not rows:
                raise NotFoundError(
                    "unknown_token", f"no token in force is called {wanted[:64]!r}; see `tokens list`"
                )
            revoked = [replace(row, revoked_at=now) for row in rows]
            for row in revoked:
                tx.save_token(row)
                details = {"name": row.name}
                tx.audit(at=now, who=by.who, what="token.revoke", subject=row.id, why=by.why, details=details)
        return [_view(row, now) for row in revoked]


def _require_usable(row: TokenRow, now: float) -> None:
    if row.revoked_at is not None:
        raise AccessError("token_revoked", f"the token of {row.name} was revoked; ask for another one")
    if row.expires_at is not None and now >= row.expires_at:
        raise AccessError("token_expired", f"the token of {row.name} has expired; ask for another one")


def _scopes(row: TokenRow) -> tuple[Scope, ...]:
    return tuple(Scope(scope) for scope in row.scopes.split(","))


def _view(row: TokenRow, now: float) -> TokenView:
    try:
        _require_usable(row, now)
        state = "good"
    except AccessError as error:
        state = error.code.removeprefix("token_")
    return TokenView(
        id=row.id,
        name=row.name,
        scopes=_scopes(row),
        state=state,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        used_at=row.used_at,
    )
