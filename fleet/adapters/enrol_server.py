"""HTTPS for devices that do not know the fleet yet: TLS 1.3, one request a connection, everything bounded.

For: connections, handshakes, HTTP/1.1 by h11, and the certificate that it shows, which it renews by itself.
Not for: what is answered (`fleet.api.enrol_door`), or the API for people (`fleet.adapters.web_server`).

Why not uvicorn: it counts a connection only after its handshake, gives a handshake 60 seconds and a request's
head all the time in the world; here strangers speak first (ADR 0018). A connection is refused unread above
the limits of its address and of all; what it says must be whole within `request_s`, handshake included.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import h11
from msgspec import Struct

from fleet.adapters.authority import Authority
from fleet.api.enrol_door import MISTRUSTED, Answer, refusal
from fleet.ports import ConflictError
from fleet.rates import Rates
from wire.enrolment import ASK_BYTES_MAX

_LOG = logging.getLogger("shallop.fleet.enrol_server")

CERTIFICATE_LIFE_S = 90 * 86_400.0
RENEW_AT = 1 / 3
"""With this share of its life left, the server's certificate is made anew."""
LOOK_S = 600.0
HEAD_BYTES_MAX = 8 * 1024
WORKERS = 4
"""Requests that are answered at one time; each waits for the database."""
AT_ONCE_PER_ADDRESS = 16
START_S_MAX = 10.0


class Limits(Struct, frozen=True, kw_only=True):
    """What strangers may use up.

    Attributes:
        connections_max: at one time.
        request_s: from the connection to the last byte of the answer.
        connections_per_minute: of one address.
        failures_per_minute: refused tries of one address; above that it is answered `too_many`.
    """

    connections_max: int
    request_s: float
    connections_per_minute: int
    failures_per_minute: int


class EnrolServer:
    """The listener, in a thread of its own.

    Attributes:
        refused: connections and requests that got no further, by reason.

    Raises:
        ConflictError: `address_in_use`.
        KeysError: a host that cannot stand in a certificate.
    """

    def __init__(
        self, address: tuple[str, int], hosts: tuple[str, ...], authority: Authority, limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._hosts, self._authority, self._limits, self._clock = hosts, authority, limits, clock
        self._answer: Callable[[str, str, bytes], Answer] = lambda *_: refusal("unavailable", "starting", 503)
        self._connections = Rates(limits.connections_per_minute, limits.connections_per_minute)
        self._failures = Rates(limits.failures_per_minute, limits.failures_per_minute)
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused: Counter[str] = Counter()
        self._renewing = threading.Lock()
        self._context, self._renew_at = self._shown(authority)
        self._socket = _listening(*address)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="enrol")
        self._thread = threading.Thread(target=self._run, name="enrol-listener", daemon=True)
        self._started = threading.Event()

    def start(self, answer: Callable[[str, str, bytes], Answer]) -> None:
        """Begins; `answer` is called by several threads."""
        self._answer = answer
        self._thread.start()
        self._started.wait(START_S_MAX)
        _LOG.info("enrolment at port %d for %s", self.port, ", ".join(self._hosts))

    def stop(self) -> None:
        """Ends; open connections are cut."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_S_MAX)
        self._socket.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def renew_certificate(self) -> bool:
        """Makes a certificate with a new key where the old one ends soon; whether it did."""
        with self._renewing:
            if self._clock() < self._renew_at:
                return False
            self._context, self._renew_at = self._shown(self._authority)
            return True

    def follow(self, authority: Authority) -> None:
        """Another authority signs from now on, and the next handshake shows a certificate of it.

        Raises:
            KeysError: `no_life`: it can sign none; the one before stays.
        """
        with self._renewing:
            self._context, self._renew_at = self._shown(authority)
            self._authority = authority

    def _shown(self, authority: Authority) -> tuple[ssl.SSLContext, float]:
        """What a handshake shows, a new certificate with a new key, and when it is to be made anew.

        A context of its own, since handshakes may be under way with the one before. The key is never on a
        disk: OpenSSL reads it from memory by a name under /proc.
        """
        now = self._clock()
        identity = authority.issue_server(self._hosts, now, CERTIFICATE_LIFE_S)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        memory = os.memfd_create("shallop-enrol", os.MFD_CLOEXEC)
        try:
            os.write(memory, identity.issued.pem.encode() + identity.key_pem)
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
        return context, identity.issued.not_after - RENEW_AT * (identity.issued.not_after - now)

    # --- in the loop's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(
            self._loop.create_server(lambda: _Arrival(self._arrived), sock=self._socket)
        )
        self._loop.call_soon(self._look)
        self._loop.call_soon(self._started.set)
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    def _look(self) -> None:
        try:
            self.renew_certificate()
        except Exception:  # noqa: BLE001 - the old one still serves, and the failure is logged whole
            _LOG.exception("the enrolment's certificate could not be renewed; it is tried again")
        self._loop.call_later(LOOK_S, self._look)

    def _arrived(self, transport: asyncio.Transport) -> None:
        """A connection stands, and nothing was read of it."""
        name = address_name(transport.get_extra_info("peername"))
        code = self._unwelcome(name)
        if code:
            self.refused[code] += 1
            transport.abort()
            return
        transport.pause_reading()
        self._open[name] += 1
        task = self._loop.create_task(self._bounded(transport, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _unwelcome(self, name: str) -> str:
        if self._open.total() >= self._limits.connections_max or self._open[name] >= AT_ONCE_PER_ADDRESS:
            return "too_many_connections"
        return "" if self._connections.take(name, self._loop.time()) else "too_often"

    async def _bounded(self, transport: asyncio.Transport, name: str) -> None:
        try:
            async with asyncio.timeout(self._limits.request_s):
                await self._converse(transport, name)
        except TimeoutError:
            self.refused["too_slow"] += 1
        except ssl.SSLError:
            self.refused["no_tls"] += 1
        except (OSError, asyncio.IncompleteReadError):
            self.refused["client_gone"] += 1
        except Exception:  # noqa: BLE001 - one stranger's connection must not end the listener
            _LOG.exception("a connection to the enrolment failed")
        finally:
            transport.abort()
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

    async def _converse(self, transport: asyncio.Transport, name: str) -> None:
        """The handshake, then one request and its answer."""
        reader = asyncio.StreamReader(HEAD_BYTES_MAX, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        secured = await self._loop.start_tls(
            transport, protocol, self._context, server_side=True,
            ssl_handshake_timeout=self._limits.request_s, ssl_shutdown_timeout=1.0,
        )  # fmt: skip
        if secured is None:
            raise ConnectionResetError
        protocol.connection_made(secured)
        writer = asyncio.StreamWriter(secured, protocol, reader, self._loop)
        try:
            await self._one_request(reader, writer, name)
        finally:
            secured.abort()

    async def _one_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str
    ) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        try:
            answer = await self._answered(http, reader, name)
        except h11.RemoteProtocolError as error:
            detail = f"this is no HTTP/1.1 that is answered: {str(error)[:200]}"
            answer = refusal("malformed", detail, 400)
        self._count(answer, name)
        if http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            writer.write(_framed(http, answer))
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _answered(self, http: h11.Connection, reader: asyncio.StreamReader, name: str) -> Answer:
        request, body = await _asked(http, reader)
        if len(body) > ASK_BYTES_MAX:
            return refusal("oversized", f"the body is above {ASK_BYTES_MAX} bytes", 413)
        if not self._failures.left(name, self._loop.time()):
            return refusal("too_many", "too many tries from this address; wait a minute", 429)
        path, method = request.target.decode("ascii", "replace"), request.method.decode("ascii", "replace")
        return await self._loop.run_in_executor(self._pool, self._answer, method, path, body)

    def _count(self, answer: Answer, name: str) -> None:
        if answer.code:
            self.refused[answer.code] += 1
        if answer.code in MISTRUSTED:
            self._failures.take(name, self._loop.time())


class _Arrival(asyncio.Protocol):
    """A connection before its handshake; nothing is read by it."""

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A stranger is there."""
        if isinstance(transport, asyncio.Transport):
            self._arrived(transport)


async def _asked(http: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request, bytes]:
    """One request and its body, of which no more than one byte above the limit is kept.

    Raises:
        h11.RemoteProtocolError: it is no HTTP.
        asyncio.IncompleteReadError: it ended early.
    """
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(HEAD_BYTES_MAX)
            http.receive_data(data)
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif request is None or isinstance(event, h11.ConnectionClosed):
            raise asyncio.IncompleteReadError(bytes(body), None)
        if request is not None and (isinstance(event, h11.EndOfMessage) or len(body) > ASK_BYTES_MAX):
            return request, bytes(body)


def _framed(http: h11.Connection, answer: Answer) -> bytes:
    length = str(len(answer.body))
    headers = [("content-type", answer.content_type), ("content-length", length), ("connection", "close")]
    parts = (h11.Response(status_code=answer.status, headers=headers), h11.Data(data=answer.body))
    return b"".join(http.send(part) or b"" for part in (*parts, h11.EndOfMessage()))


def address_name(peer: object) -> str:
    """By what an address is counted: IPv6 by its /64, which is what one subscriber has."""
    host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise ConflictError(
            "address_in_use",
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another enrol_listen",
        ) from None
    made.setblocking(False)
    return made
