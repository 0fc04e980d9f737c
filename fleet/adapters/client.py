"""The registry's HTTP API, called: for the command line and for tests.

For: one method for each verb, answers as typed values, errors by name.
Not for: printing, or opening the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from msgspec.structs import replace

from fleet.audit import WHY_HEADER, AuditEntry
from fleet.bars import BarsAsk, BarsShow
from fleet.enrolment_views import EnrolAsk, EnrolmentView, RevokedView, TokenShow
from fleet.people import RollbackAsk, RolloutAsk
from fleet.publish.upload import Bundle
from fleet.tokens import TokenAsk, TokenMade, TokenView
from fleet.views import BundleView, DeviceView, ReleaseView, RollbackShow, RolloutShow, RolloutView
from wire.errors import ShallopError

TIMEOUT_S = 60.0
UPLOADS_AT_ONCE = 4
"""The registry waits for its disk once a blob, and disks like several to wait for."""
UPLOAD_ROUNDS_MAX = 8
"""Blobs that were lost on the registry's disk meanwhile are asked for again; not without end."""
ERROR_BYTES_MAX, ERROR_CHARS_MAX = 64 * 1024, 16 * 1024
ANSWER_BYTES_MAX = 256 * 1024 * 1024

T = TypeVar("T")


class ServerUnreachableError(ShallopError):
    """No registry answers at the address."""


class TokenInClearError(ShallopError):
    """A token would be sent where others can read it."""


class RefusedError(ShallopError):
    """The registry refused what was asked; code and message are its own.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(code, message)
        self.status = status


class Client:
    """A registry at `server`; close it after use.

    Every method raises ServerUnreachableError or RefusedError.
    """

    def __init__(self, server: str, token: str | None = None, why: str = "") -> None:
        """Raises TokenInClearError where the token would travel unencrypted over a network."""
        self._server = server
        headers = {"Accept-Encoding": "identity"}
        if why:
            headers[WHY_HEADER] = quote(why.encode(errors="replace"))
        try:
            where = urlsplit(server)
            if token is not None:
                if where.scheme != "https" and not _is_here(where.hostname or ""):
                    raise TokenInClearError(
                        "token_in_clear",
                        f"{server} is not encrypted, and your token would be read on the way; use an https "
                        "address, or a tunnel: ssh -L 8470:127.0.0.1:8470 HOST",
                    )
                headers["Authorization"] = f"Bearer {token}"
            self._http = httpx.Client(base_url=server, timeout=TIMEOUT_S, trust_env=False, headers=headers)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerUnreachableError("server_url", f"{server!r} is no address: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives up the connection."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """State of the registry."""
        return self._ask("GET", "/api/health", dict[str, Any])

    def releases(self) -> list[ReleaseView]:
        """All releases."""
        return self._ask("GET", "/api/releases", list[ReleaseView])

    def fetch(self, path: str, size_bytes_max: int) -> bytes:
        """The bytes at a path; of more than that the rest is left unread.

        Raises:
            RefusedError: also `oversized`.
        """
        return self._exchange("GET", path, size_bytes_max)

    def upload(
        self, bundle: Bundle, progress: Callable[[int, int], None], envelope: bytes | None = None
    ) -> BundleView:
        """Publishes a bundle; only what the registry lacks is sent.

        Args:
            bundle: checked.
            progress: called with bytes sent and bytes to send.
            envelope: its manifest, signed here; None where the registry holds the release key.
        """
        missing, sent = self._missing(bundle), 0
        for _ in range(UPLOAD_ROUNDS_MAX):
            if not missing:
                finish = f"/api/bundles/{bundle.digest}/finish"
                return self._ask("POST", finish, BundleView, content=envelope or b"")
            total = sent + sum(bundle.places[digest].size_bytes for digest in missing)
            with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
                for size in pool.map(lambda digest: self._upload_blob(bundle, digest), missing):
                    sent += size
                    progress(sent, total)
            missing = self._missing(bundle)
        raise ServerUnreachableError(
            "upload_without_end",
            f"{self._server} still lacks {len(missing)} blobs that it took {UPLOAD_ROUNDS_MAX} times; "
            "look into its log, and at its disk",
        )

    def _missing(self, bundle: Bundle) -> list[str]:
        """What the registry lacks, each of it ours to give."""
        missing = self._ask("PUT", "/api/bundles", BundleView, content=bundle.data).missing
        if not bundle.places.keys() >= set(missing):
            raise ServerUnreachableError(
                "not_a_registry", f"{self._server} asks for blobs that are none of this bundle's"
            )
        return missing

    def _upload_blob(self, bundle: Bundle, digest: str) -> int:
        data = bundle.blob(digest)
        self._ask("PUT", f"/api/bundles/{bundle.digest}/blobs/{digest}", dict[str, Any], content=data)
        return len(data)

    def devices(self, select: str = "all") -> list[DeviceView]:
        """Devices that a selector means."""
        return self._ask("GET", "/api/devices", list[DeviceView], params={"select": select})

    def device(self, device: str) -> DeviceView:
        """One device."""
        return self._ask("GET", f"/api/devices/{quote(device, safe='')}", DeviceView)

    def forget(self, device: str) -> None:
        """Forgets a device."""
        self._ask("DELETE", f"/api/devices/{quote(device, safe='')}", dict[str, Any])

    def label(self, device: str, changes: dict[str, str | None]) -> DeviceView:
        """Sets labels; None removes one."""
        return self._ask("PUT", f"/api/devices/{quote(device, safe='')}/labels", DeviceView, json=changes)

    def group(self, device: str, groups: tuple[str, ...]) -> DeviceView:
        """Sets the groups."""
        return self._ask(
            "PUT", f"/api/devices/{quote(device, safe='')}/groups", DeviceView, json={"groups": groups}
        )

    def clear_duplicate(self, device: str) -> DeviceView:
        """Takes the mark of a duplicate identity away."""
        return self._ask("POST", f"/api/devices/{quote(device, safe='')}/clear-duplicate", DeviceView)

    def start(self, ask: RolloutAsk) -> RolloutView:
        """Starts a rollout."""
        return self._ask("POST", "/api/rollouts", RolloutView, json=ask)

    def rollouts(self) -> list[RolloutView]:
        """All rollouts."""
        return self._ask("GET", "/api/rollouts", list[RolloutView])

    def rollout(self, rollout_id: str) -> RolloutShow:
        """One rollout with its devices; the ready rollback's addresses are whole, with this server's."""
        show = self._ask("GET", f"/api/rollouts/{quote(rollout_id, safe='')}", RolloutShow)
        base, ready = self._server.rstrip("/"), show.rollback
        whole = replace(ready, url=base + ready.url, url_per_device=base + ready.url_per_device)
        return replace(show, rollback=whole)

    def verb(self, rollout_id: str, verb: str, body: dict[str, str]) -> RolloutView:
        """Pauses, resumes or aborts."""
        path = f"/api/rollouts/{quote(rollout_id, safe='')}/{verb}"
        return self._ask("POST", path, RolloutView, json=body)

    def roll_back(self, ask: RollbackAsk) -> RollbackShow:
        """Asks for a rollback."""
        return self._ask("POST", "/api/rollbacks", RollbackShow, json=ask)

    def rollback(self, rollback_id: str) -> RollbackShow:
        """How far a rollback is."""
        return self._ask("GET", f"/api/rollbacks/{quote(rollback_id, safe='')}", RollbackShow)

    def tokens(self) -> list[TokenView]:
        """All tokens, without their secrets."""
        return self._ask("GET", "/api/tokens", list[TokenView])

    def token_create(self, ask: TokenAsk) -> TokenMade:
        """Makes a token."""
        return self._ask("POST", "/api/tokens", TokenMade, json=ask)

    def token_revoke(self, wanted: str) -> list[TokenView]:
        """Revokes by id or name."""
        return self._ask("POST", f"/api/tokens/{quote(wanted, safe='')}/revoke", list[TokenView])

    def bars(self) -> BarsShow:
        """Barred releases."""
        return self._ask("GET", "/api/bars", BarsShow)

    def bars_change(self, ask: BarsAsk) -> BarsShow:
        """Bars and unbars."""
        return self._ask("POST", "/api/bars", BarsShow, json=ask)

    def audit_newest(self, count: int, who: str | None, subject: str | None) -> list[AuditEntry]:
        """The newest entries, oldest first."""
        asked = {"newest": str(count), "who": who, "subject": subject}
        params = {key: value for key, value in asked.items() if value is not None}
        return self._ask("GET", "/api/audit", list[AuditEntry], params=params)

    def audit(self) -> Iterator[AuditEntry]:
        """The whole log, oldest first, page by page."""
        after = 0
        while page := self._ask("GET", "/api/audit", list[AuditEntry], params={"after": str(after)}):
            if page[-1].number <= after:
                raise self._other(f"the audit log's entries after {after} with {page[-1].number}")
            yield from page
            after = page[-1].number

    def audit_head(self) -> bytes:
        """The log's head in its envelope."""
        return bytes(self._ask("GET", "/api/audit/head", msgspec.Raw))

    def enrol(self, ask: EnrolAsk) -> list[TokenShow]:
        """Makes tokens."""
        return self._ask("POST", "/api/enrolments", list[TokenShow], json=ask)

    def enrolments(self) -> list[EnrolmentView]:
        """All tokens, without their secrets."""
        return self._ask("GET", "/api/enrolments", list[EnrolmentView])

    def enrolment_cancel(self, which: str) -> list[EnrolmentView]:
        """Ends unused tokens, by id or device."""
        return self._ask("POST", f"/api/enrolments/{quote(which, safe='')}/cancel", list[EnrolmentView])

    def revoke(self, device: str) -> RevokedView:
        """Shuts a device out."""
        return self._ask("POST", f"/api/devices/{quote(device, safe='')}/revoke", RevokedView)

    def _ask(
        self,
        method: str,
        path: str,
        expected: type[T],
        *,
        content: bytes | None = None,
        json: object = None,
        params: dict[str, str] | None = None,
    ) -> T:
        body = content if json is None else msgspec.json.encode(json)
        found = self._exchange(method, path, ANSWER_BYTES_MAX, body, params)
        try:
            return msgspec.json.decode(found, type=expected)
        except _UNREADABLE as error:
            raise self._other(f"something else: {str(error)[:200]}") from None

    def _exchange(
        self,
        method: str,
        path: str,
        size_bytes_max: int,
        content: bytes | None = None,
        params: dict[str, str] | None = None,
    ) -> bytes:
        """The body of an answer; of a longer one the rest is left unread."""
        body = bytearray()
        try:
            with self._http.stream(method, path, content=content, params=params) as response:
                # Nobody asked for it, and what is unpacked may be a thousand times what came.
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise self._other("by a Content-Encoding that was not asked for")
                cap = size_bytes_max if response.status_code < 400 else ERROR_BYTES_MAX
                for piece in response.iter_raw():
                    body += piece
                    if len(body) > cap:
                        words = f"{path} holds more than the {cap} bytes that are read"
                        raise RefusedError("oversized", words, response.status_code)
        except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        if response.status_code >= 400:
            raise _refusal(bytes(body), str(response.url), response.status_code)
        return bytes(body)

    def _other(self, what: str) -> ServerUnreachableError:
        return ServerUnreachableError("not_a_registry", f"{self._server} answered {what}")

    def _unreachable(self, error: Exception) -> ServerUnreachableError:
        return ServerUnreachableError(
            "server_unreachable",
            f"no registry answers at {self._server} ({error}); is `shallop-fleet serve` running? "
            "Name another address by --server or SHALLOP_SERVER",
        )


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Error(msgspec.Struct):
    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,62}(?!\n)$")]
    message: Annotated[str, msgspec.Meta(max_length=ERROR_CHARS_MAX)]


class _Refusal(msgspec.Struct):
    error: _Error


def _refusal(content: bytes, url: str, status: int) -> ShallopError:
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except _UNREADABLE:
        return ServerUnreachableError("not_a_registry", f"{url} answered {status} and no error of a registry")
    return RefusedError(refusal.error.code, refusal.error.message, status)
