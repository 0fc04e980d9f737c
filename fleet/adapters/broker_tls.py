"""TLS to the fleet's broker, and a knock at its door: who is taken in, and who is refused, and why.

For: the registry's connection, and short visits of a few packets that show what the broker does.
Not for: the registry's own traffic (`fleet.adapters.mqtt_broker`), or what follows from a visit
(`fleet.adapters.gate`).

MQTT 3.1.1 by hand, since a visit needs four packets and their order: http://docs.oasis-open.org/mqtt/mqtt/v3.1.1/.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec import Struct

from fleet.adapters.authority import Authority
from fleet.ports import BrokerError

VISIT_S_MAX = 5.0
"""For one step of a visit: to connect, the handshake, one packet."""
WHOLE_VISIT_S_MAX = 30.0
"""For all that the broker may send after the handshake, however it spreads it."""
PACKET_BYTES_MAX = 64 * 1024
TAKEOVER_LIFE_S = 300.0
"""Longer than broker's and registry's clocks differ where both are kept."""

_CONNACK, _PUBLISH, _PINGRESP = 0x20, 0x30, 0xD0
_REVOKED = "SSLV3_ALERT_CERTIFICATE_REVOKED"


def client_context(ca_file: Path, cert_file: Path, key_file: Path | None = None) -> ssl.SSLContext:
    """TLS 1.3 with a certificate of our own, the other side checked by the fleet's authorities and its name.

    Raises:
        BrokerError: `broker_tls`: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca_file)
        context.load_cert_chain(cert_file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise BrokerError(
            "broker_tls",
            f"{ca_file} or {cert_file} cannot be used for TLS to the broker: {error}; "
            "`shallop-fleet broker init` makes them",
        ) from None
    return context


class LatestContext(ssl.SSLContext):
    """For a client that is given its context once: each connection is made by the one that counts then.

    Args:
        first: it, until another succeeds it; all of them alike but for their certificates.
    """

    _now: ssl.SSLContext

    def __new__(cls, first: ssl.SSLContext) -> Self:
        """The class of `ssl` takes a protocol in the place of `first`."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made._now = first
        return made

    def succeed(self, context: ssl.SSLContext) -> None:
        """The next connection is made by that one; those that stand go on."""
        self._now = context

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:  # noqa: ANN401 - handed on
        """As of `ssl.SSLContext`."""
        return self._now.wrap_socket(*args, **kwargs)


@contextmanager
def context_as(device: str, authority: Authority, now: float) -> Iterator[ssl.SSLContext]:
    """TLS in the name of a device, by a certificate for a key that ends with this block.

    Raises:
        KeysError: `bad_name`.
    """
    key = Ed25519PrivateKey.generate()
    issued = authority.issue_device(device, key.public_key().public_bytes_raw(), now, TAKEOVER_LIFE_S)
    with tempfile.TemporaryDirectory(prefix="shallop-") as folder:
        cert_file, ca_file = Path(folder) / "own.pem", Path(folder) / "ca.pem"
        cert_file.touch(0o600)
        own = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        cert_file.write_bytes(issued.pem.encode() + own)
        ca_file.write_text(authority.certificates_pem)
        yield client_context(ca_file, cert_file)


class Answer(StrEnum):
    """What the broker does with one who knocks."""

    TAKEN_IN = "taken_in"
    REVOKED = "revoked"
    REFUSED = "refused"
    """For another reason; no proof of a revocation."""
    SILENT = "silent"
    """It cannot be reached, or is not the fleet's broker."""


class Knock(Struct, frozen=True, kw_only=True):
    """One visit, in words for a person.

    Attributes:
        server_not_after: when the certificate that the broker showed ends, seconds since 1970; None where
            none was seen.
        trespassed: whether a message on a topic that nobody may use came through; None where not tried.
        ticket: whether it gave one by which the same client comes again without its certificate (RFC 8446,
            4.6.1); None where it took nobody in.
    """

    answer: Answer
    detail: str = ""
    server_not_after: float | None = None
    trespassed: bool | None = None
    ticket: bool | None = None


def knock(
    address: tuple[str, int], context: ssl.SSLContext, trespass: str | None = None, *, listen_s: float = 0.0
) -> Knock:
    """Connects once with a clean session, under the name in the certificate, and leaves.

    Whoever had that name's session until now has lost it, with its subscriptions and its queue, when this
    returns TAKEN_IN (MQTT 3.1.1, 3.1.4 and 3.1.2.4).

    Args:
        address: host and port of the broker.
        context: with a certificate.
        trespass: a topic to subscribe to and to publish on; where the message comes back, the access list
            is not in force.
        listen_s: how long to wait for a refusal before CONNECT is sent. In TLS 1.3 it comes after the
            handshake, and is lost where the broker ends a connection from which it has not read everything.
    """
    seen: float | None = None
    try:
        with _Visit(address, context) as visit:
            seen = visit.server_not_after
            code = visit.connect(listen_s)
            if code != 0:
                return Knock(
                    answer=Answer.REFUSED,
                    detail=f"the broker answers {code} to CONNECT",
                    server_not_after=seen,
                )
            came = None if trespass is None else visit.trespasses(trespass)
            return Knock(
                answer=Answer.TAKEN_IN, server_not_after=seen, trespassed=came, ticket=visit.has_ticket
            )
    except ssl.SSLCertVerificationError as error:
        return Knock(
            answer=Answer.SILENT, detail=f"its certificate is not the broker's: {error.verify_message}"
        )
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        # No word of TLS that would say why: another visit under the same name is enough for that.
        return Knock(answer=Answer.SILENT, detail="the broker ended the connection", server_not_after=seen)
    except ssl.SSLError as error:
        answer = Answer.REVOKED if error.reason == _REVOKED else Answer.REFUSED
        return Knock(answer=answer, detail=str(error.reason), server_not_after=seen)
    except (OSError, EOFError) as error:
        return Knock(answer=Answer.SILENT, detail=str(error) or type(error).__name__, server_not_after=seen)


class _Visit:
    """One connection; its packets are few and small."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self._address, self._context = address, context

    def __enter__(self) -> Self:
        plain = socket.create_connection(self._address, VISIT_S_MAX)
        try:
            plain.settimeout(VISIT_S_MAX)
            self._link = self._context.wrap_socket(plain, server_hostname=self._address[0])
        except BaseException:
            plain.close()
            raise
        self._until = time.monotonic() + WHOLE_VISIT_S_MAX
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    @property
    def server_not_after(self) -> float | None:
        """When the broker's certificate ends."""
        ends = (self._link.getpeercert() or {}).get("notAfter")
        return ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None

    @property
    def has_ticket(self) -> bool:
        """Whether a ticket came; it does before whatever the broker says first."""
        session = self._link.session
        return session is not None and session.has_ticket

    def connect(self, listen_s: float) -> int:
        """The return code of CONNACK, after listening for a refusal."""
        if listen_s > 0:
            self._link.settimeout(listen_s)
            try:
                self._link.recv(1)
            except TimeoutError:
                pass
            else:
                raise EOFError("the broker ended the connection")
            self._link.settimeout(VISIT_S_MAX)
        name = b"shallop"  # the broker takes the certificate's name in its place
        self._send(0x10, b"\x00\x04MQTT\x04\x02\x00\x1e" + _text(name))
        kind, body = self._packet()
        if kind != _CONNACK or len(body) != 2:
            raise EOFError("what answers there speaks no MQTT 3.1.1")
        return body[1]

    def trespasses(self, topic: str) -> bool:
        """Whether our own message on `topic` comes back before the answer to the ping that follows it."""
        self._send(0x82, b"\x00\x01" + _text(topic.encode()) + b"\x00")
        self._send(0x30, _text(topic.encode()) + b"trespass")
        self._send(0xC0, b"")
        came = False
        while True:
            kind, _ = self._packet()
            if kind == _PINGRESP:
                self._send(0xE0, b"")
                return came
            came = came or kind & 0xF0 == _PUBLISH

    def _send(self, kind: int, body: bytes) -> None:
        size, length = len(body), bytearray()
        while True:
            size, low = divmod(size, 128)
            length.append(low | (0x80 if size else 0))
            if not size:
                break
        self._link.sendall(bytes([kind]) + bytes(length) + body)

    def _packet(self) -> tuple[int, bytes]:
        kind, size = self._exactly(1)[0], 0
        for place in range(4):
            digit = self._exactly(1)[0]
            size += (digit & 0x7F) << 7 * place
            if digit < 0x80:
                break
        if size > PACKET_BYTES_MAX:
            raise EOFError(f"a packet of {size} bytes in answer to a visit")
        return kind, self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            if time.monotonic() > self._until:
                raise EOFError(f"the broker came to no end in {WHOLE_VISIT_S_MAX:g} s")
            more = self._link.recv(count - len(found))
            if not more:
                raise EOFError("the broker ended the connection")
            found += more
        return found


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value
