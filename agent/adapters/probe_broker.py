"""One short conversation with the broker, for `shallop-agent doctor`.

For: name, connection, TLS, login, ping and this device's retained status, each step with its own words. MQTT
3.1.1 by hand, because a client library hides which step failed and what the certificate said.
Not for: judging it (`agent.doctor.broker`), or carrying anything.

It logs in as `ID-doctor` with a clean session, so that a running agent is not thrown off; only where no agent
runs and the broker takes no other name does it use the agent's own, and leaves that session as it is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import statistics
import subprocess
import time

from msgspec import Struct
from msgspec.structs import replace

from agent.config import BrokerConfig
from agent.doctor.broker import BrokerFacts, Step
from agent.identity import Identity
from agent.tls import JudgedAt, context, of_identity
from wire.codec import decode
from wire.errors import WireError
from wire.messages import Status
from wire.topics import STATUS

STEP_S_MAX, TOLD_S_MAX = 4.0, 1.0
PINGS, PACKET_BYTES_MAX = 3, 64 * 1024
_CONNECT, _CONNACK, _PUBLISH, _SUBSCRIBE, _PING, _PONG, _DISCONNECT = 0x10, 0x20, 0x30, 0x82, 0xC0, 0xD0, 0xE0
_CLEAN, _USERNAME, _PASSWORD = 0x02, 0x80, 0x40
_OTHER_ID_REFUSED = {2, 5}


class Answer(Struct, frozen=True, kw_only=True):
    """What a conversation brought; `told` is the retained status of this device, if the broker gave it."""

    facts: BrokerFacts
    told: Status | None = None


class _StepError(Exception):
    """A step failed; `facts` say which and how."""

    def __init__(self, facts: BrokerFacts) -> None:
        super().__init__(facts.error)
        self.facts = facts


def ask(
    config: BrokerConfig,
    password: str | None,
    client_id: str,
    status_topic: str,
    *,
    agent_runs: bool,
    found: Identity | None = None,
    at_s: JudgedAt = time.time,
) -> Answer:
    """Goes through all steps, the last one that fails in the answer.

    Args:
        config: where the broker is, the section `tls` in it only where it is used.
        password: for `config.username`.
        client_id: the agent's own.
        status_topic: this device's.
        agent_runs: whether `client_id` is in use.
        found: the identity that is used, if one is.
        at_s: the time at which certificates are judged.

    Raises:
        ConfigError: `tls_unusable`.
        StateError: `identity_unusable`, `authorities_unusable`.
    """
    encrypted: ssl.SSLContext | None = None
    if config.tls is not None:
        encrypted = context(config.tls, at_s)
    elif found is not None:
        # The name in the certificate is the client's to such a broker: a second one throws the first one off.
        return _conversation(
            _Visit(
                config=config, password=password, client_id=client_id, status_topic=status_topic, at_s=at_s,
                encrypted=of_identity(found, at_s), clean=False, silent=agent_runs, own_s=found.not_after_s,
            )
        )  # fmt: skip
    visit = _Visit(
        config=config, password=password, client_id=f"{client_id}-doctor", status_topic=status_topic,
        at_s=at_s, encrypted=encrypted, own_s=_own_expiry(config.tls.cert_file if config.tls else None),
    )  # fmt: skip
    answer = _conversation(visit)
    if answer.facts.connack in _OTHER_ID_REFUSED and not agent_runs:
        return _conversation(replace(visit, client_id=client_id, clean=False))
    return answer


class _Visit(Struct, frozen=True, kw_only=True):
    """How one conversation is had; `silent` ends it before the login."""

    config: BrokerConfig
    password: str | None
    client_id: str
    status_topic: str
    at_s: JudgedAt
    encrypted: ssl.SSLContext | None
    own_s: float | None
    clean: bool = True
    silent: bool = False


def _conversation(visit: _Visit) -> Answer:
    config = visit.config
    facts = BrokerFacts(
        host=config.host, port=config.port, client_id=visit.client_id, tls=visit.encrypted is not None,
        now_s=visit.at_s(), own_not_after_s=visit.own_s, silent=visit.silent,
    )  # fmt: skip
    try:
        sock, facts = _connect(config, facts)
        with sock:
            sock, facts = _encrypt(sock, visit.encrypted, facts)
            with sock:
                if visit.silent:
                    return Answer(facts=_not_refused(sock, facts))
                facts = _log_in(sock, config.username, visit.password, facts, clean=visit.clean)
                facts = _ping(sock, facts)
                told = _told(sock, visit.status_topic)
                with contextlib.suppress(OSError):
                    sock.sendall(bytes((_DISCONNECT, 0)))
    except _StepError as error:
        return Answer(facts=error.facts)
    return Answer(facts=facts, told=told)


def _connect(config: BrokerConfig, facts: BrokerFacts) -> tuple[socket.socket, BrokerFacts]:
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _StepError(replace(facts, failed="name", error=_words(error))) from None
    addresses = [str(address[0]) for *_, address in found]
    facts = replace(facts, loopback=_all_loopback(addresses))
    try:
        sock = socket.create_connection((config.host, config.port), timeout=STEP_S_MAX)
    except OSError as error:
        raise _StepError(replace(facts, failed="connect", error=_words(error))) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, facts


def _all_loopback(addresses: list[str]) -> bool:
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def _encrypt(
    sock: socket.socket, encrypted: ssl.SSLContext | None, facts: BrokerFacts
) -> tuple[socket.socket, BrokerFacts]:
    if encrypted is None:
        return sock, facts
    try:
        secure = encrypted.wrap_socket(sock, server_hostname=facts.host)
    except OSError as error:
        code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else None
        words = _words(error)
        raise _StepError(replace(facts, failed="tls", error=words, verify_code=code)) from None
    ends = (secure.getpeercert() or {}).get("notAfter")
    not_after_s = ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None
    return secure, replace(facts, tls_version=secure.version() or "", not_after_s=not_after_s)


def _not_refused(sock: socket.socket, facts: BrokerFacts) -> BrokerFacts:
    """By TLS 1.3 a broker refuses a client's certificate after the handshake, at once; silence is consent."""
    try:
        sock.settimeout(TOLD_S_MAX)
        said = sock.recv(1)
    except TimeoutError:
        return facts
    except OSError as error:
        raise _StepError(replace(facts, failed="tls", error=_words(error))) from None
    words = "it closed the connection" if not said else "it talks before it is spoken to"
    raise _StepError(replace(facts, failed="login", error=words))


def _log_in(
    sock: socket.socket, username: str | None, password: str | None, facts: BrokerFacts, *, clean: bool
) -> BrokerFacts:
    flags, payload = _CLEAN if clean else 0, _text(facts.client_id)
    for bit, value in ((_USERNAME, username), (_PASSWORD, password if username is not None else None)):
        if value is not None:
            flags, payload = flags | bit, payload + _text(value)
    keepalive = int(2 * STEP_S_MAX).to_bytes(2, "big")
    login = _packet(_CONNECT, _text("MQTT") + bytes((4, flags)) + keepalive + payload)
    try:
        # A TLS 1.3 broker refuses a client without a certificate only now, perhaps before this is sent; what
        # it said is still there to be read, unless its reset came with it.
        with contextlib.suppress(OSError):
            sock.sendall(login)
        kind, body = _receive(sock)
    except (ssl.SSLError, ConnectionError) as error:
        step: Step = "tls" if facts.tls else "login"
        raise _StepError(replace(facts, failed=step, error=_words(error))) from None
    except OSError as error:
        raise _StepError(replace(facts, failed="login", error=_words(error))) from None
    if kind != _CONNACK or len(body) != 2:
        raise _StepError(replace(facts, failed="login", error="the answer is not MQTT"))
    if body[1] != 0:
        raise _StepError(replace(facts, failed="login", connack=body[1]))
    return facts


def _ping(sock: socket.socket, facts: BrokerFacts) -> BrokerFacts:
    took = []
    try:
        for _ in range(PINGS):
            started = time.perf_counter()
            sock.sendall(bytes((_PING, 0)))
            _until(sock, _PONG)
            took.append((time.perf_counter() - started) * 1000)
    except OSError as error:
        raise _StepError(replace(facts, failed="answer", error=_words(error))) from None
    return replace(facts, round_trip_ms=statistics.median(took))


def _told(sock: socket.socket, topic: str) -> Status | None:
    """The retained status; None where there is none, or the access list keeps it from this client."""
    try:
        sock.settimeout(TOLD_S_MAX)
        sock.sendall(_packet(_SUBSCRIBE, (1).to_bytes(2, "big") + _text(topic) + b"\0"))
        body = _until(sock, _PUBLISH)
        size = int.from_bytes(body[:2], "big")
        return decode(body[2 + size :], Status, STATUS.size_bytes_max)
    except (OSError, WireError):
        return None


# --- packets (MQTT 3.1.1, section 2) ------------------------------------------------------------------


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def _packet(kind: int, body: bytes) -> bytes:
    left, size = len(body), bytearray()
    while True:
        left, digit = divmod(left, 128)
        size.append(digit | (0x80 if left else 0))
        if not left:
            return bytes((kind,)) + bytes(size) + body


def _until(sock: socket.socket, wanted: int) -> bytes:
    """The body of the next packet of that kind; a broker that talks of other things for long is cut off."""
    deadline_s = time.monotonic() + STEP_S_MAX
    while time.monotonic() < deadline_s:
        kind, body = _receive(sock)
        if kind & 0xF0 == wanted & 0xF0:
            return body
    raise TimeoutError("no answer")


def _receive(sock: socket.socket) -> tuple[int, bytes]:
    kind = _exactly(sock, 1)[0]
    size = shift = 0
    while True:
        digit = _exactly(sock, 1)[0]
        size += (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            break
        if shift > 21:
            raise OSError("the answer is not MQTT")
    if size > PACKET_BYTES_MAX:
        raise OSError(f"a packet of {size} bytes where a few are expected")
    return kind, _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionResetError("it closed the connection")
        data += part
    return bytes(data)


# --- the rest -----------------------------------------------------------------------------------------


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {STEP_S_MAX:g} s"
    return (getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error))[:300]


def _own_expiry(path: str | None) -> float | None:
    """When a certificate of ours ends, by `openssl`; Python's ssl cannot read one that is not a peer's."""
    if path is None:
        return None
    try:
        said = subprocess.run(
            ["openssl", "x509", "-in", path, "-noout", "-enddate"], stdin=subprocess.DEVNULL,
            capture_output=True, timeout=STEP_S_MAX, check=True,
        )  # fmt: skip
        return float(ssl.cert_time_to_seconds(said.stdout.decode("ascii").strip().removeprefix("notAfter=")))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
