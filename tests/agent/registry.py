"""A registry's enrolment for the tests of the device: real HTTPS, a real authority, answers as a test wants.

For: losing answers, refusing, lying; what the real registry never does on request.
Not for: the conversation with the real one (tests/integration/test_enrolled_device.py).
"""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.adapters.ed25519 import verify
from fleet.adapters.authority import Authority
from tests.keys import ORDER, Key, root_of, root_sha256, sealed_root
from wire import codec, enrolment, trust
from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.enrolment import BrokerAddress, Enrol, Enrolled, Token

DEVICE = "roof-17"
SECRET = bytes(range(20))
DAY_S = 86400.0
Word = Enrol | Renewal


def text_of(at_s: float) -> str:
    """RFC 3339 in UTC with seconds, as the registry writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(at_s))


class Registry:
    """One on loopback.

    Attributes:
        asked: every word that came.
        refuses: what the next words are refused with.
        status: of its answers in HTTP.
        delay_s: before each.
        instead: an answer of other bytes.
        loses: how many answers are lost after they were made.
        changes: what becomes of a certificate before it is signed.
        roots: envelopes of root documents, the pinned one first.
        life_s: of the certificates.
        signer: of the certificates' envelopes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        now_s: float | None = None,
        ca: Authority | None = None,
        broker_port: int = 8883,
    ) -> None:
        self.now_s = time.time() if now_s is None else now_s
        self.ca = ca or Authority.create(folder / "keys", "test authority", None, self.now_s)
        self.asked: list[Word] = []
        self.refuses: CertificateRefused | None = None
        self.loses = 0
        self.changes: Callable[[Certificate], Certificate] = lambda certificate: certificate
        self.roots: Sequence[bytes] = (sealed_root(root_of()),)
        self.life_s = 90 * DAY_S
        self.signer: Key = ORDER
        self.broker = BrokerAddress(host="localhost", port=broker_port)
        self.status, self.delay_s = 200, 0.0
        self.instead: bytes | None = None
        self._issued: dict[str, bytes] = {}
        server = self.ca.issue_server(["localhost"], self.now_s, 365 * DAY_S)
        (folder / "server.pem").write_bytes(server.issued.pem.encode() + server.key_pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem")
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.answer(self, registry.ca.certificates_pem.encode())

            def do_POST(self) -> None:
                registry.answer(
                    self, registry.said(self.path, self.rfile.read(int(self.headers["Content-Length"])))
                )

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base has it
                pass

        class Server(http.server.ThreadingHTTPServer):
            def get_request(self) -> tuple[ssl.SSLSocket, object]:
                sock, address = self.socket.accept()
                return registry.context.wrap_socket(sock, server_side=True), address

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://localhost:{self._server.server_address[1]}"

    def token(self, device: str = DEVICE, secret: bytes = SECRET, **fields: object) -> str:
        """A token for a device."""
        given = {
            "url": self.url, "device": device, "ca_sha256": bytes.fromhex(self.ca.sha256), "secret": secret,
            "root_sha256": bytes.fromhex(root_sha256(root_of())), "issued_at": int(self.now_s),
            "expires_at": int(self.now_s) + 3600, **fields,
        }  # fmt: skip
        return enrolment.write_token(Token(**given))  # type: ignore[arg-type]

    def forget(self) -> None:
        """Forgets what it issued."""
        self._issued.clear()

    # --- its side of the conversation

    def answer(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        """Sends it, or loses it."""
        time.sleep(self.delay_s)
        if self.loses and handler.command == "POST":
            self.loses -= 1
            handler.close_connection = True
            return
        handler.send_response(self.status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def said(self, path: str, body: bytes) -> bytes:
        """The answer to a word, as the contract has it."""
        first_time = path == enrolment.ENROL_PATH
        word: Word = enrolment.read_enrol(body) if first_time else enrolment.read_renewal(body)
        self.asked.append(word)
        if self.instead is not None:
            return self.instead
        if self.refuses is not None:
            return enrolment.encode(self.refuses)
        assert proven(word)
        first = 0 if isinstance(word, Enrol) else word.root_number
        return enrolment.encode(
            Enrolled(
                roots=tuple(self.roots[first:]), certificate=self.certificate(word.device, word.public),
                broker=self.broker, url=self.url,
            )
        )  # fmt: skip

    def certificate(self, device: str, public: str) -> bytes:
        """The envelope of a certificate; the same for the same key."""
        if public not in self._issued:
            issued = self.ca.issue_device(device, bytes.fromhex(public), self.now_s, self.life_s)
            made = Certificate(
                device=device, public=public, pem=issued.pem, authorities_pem=self.ca.certificates_pem,
                not_before=text_of(issued.not_before), not_after=text_of(issued.not_after),
                issued_at=text_of(self.now_s),
            )  # fmt: skip
            self._issued[public] = trust.seal("certificate", codec.encode(self.changes(made)), [self.signer])
        return self._issued[public]


def proven(word: Word) -> bool:
    """Whether the key that a certificate is asked for signed the question."""
    statement = (
        enrolment.enrolment_statement(word.device, word.public, bytes.fromhex(word.secret))
        if isinstance(word, Enrol)
        else enrolment.renewal_statement(word.device, word.public)
    )
    return verify(bytes.fromhex(word.public), statement, bytes.fromhex(word.proof))


def refusal(code: str, detail: str = "no") -> CertificateRefused:
    """One of the registry's words."""
    return CertificateRefused(code=code, detail=detail)
