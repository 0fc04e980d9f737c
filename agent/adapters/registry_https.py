"""The registry's enrolment over HTTPS.

For: fulfilling `agent.ports.Registry`: one request on one connection, TLS 1.3, answers capped in size and
time, and every way in which it can fail by its name. No redirect and no proxy is followed.
Not for: what is asked and believed (`agent.enrolling`, `agent.renewal`). It imports `http.client` and `ssl`:
for whoever enrols, and in the daemon only where a certificate has ended.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading

from agent import tls
from agent.errors import AgentError, FinalError, RetryError
from agent.judged import EXPIRED, NOT_YET_VALID
from wire.enrolment import ANSWER_BYTES_MAX, CA_PATH, server
from wire.errors import WireError

STEP_S_MAX = 10.0
WHOLE_S_MAX = 60.0


class HttpsRegistry:
    """One registry after another; nothing is kept between two requests."""

    def __init__(self, at_s: tls.JudgedAt, whole_s_max: float = WHOLE_S_MAX) -> None:
        self._at_s, self._whole_s_max = at_s, whole_s_max

    def authorities(self, url: str) -> bytes:
        """The certificates that the registry shows to anybody; who sent them is not checked.

        Raises:
            WireError: `token_url`.
            RetryError: `registry_unreachable`, `registry_failed`.
            FinalError: `registry_tls`, `registry_oversized`.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        status, body = self._request(url, context, "GET", CA_PATH, None)
        if status != http.HTTPStatus.OK:
            raise RetryError(
                "registry_failed", f"{url}{CA_PATH} answers {status}; is this the enrolment's address?"
            )
        return body

    def post(self, url: str, path: str, body: bytes, authorities_pem: str) -> tuple[int, bytes]:
        """Status and body of an answer, from a server whose certificate one of the authorities signed.

        Raises:
            WireError: `token_url`.
            StateError: `authorities_unusable`.
            RetryError: `registry_unreachable`, `clock_wrong`, `registry_failed`.
            FinalError: `wrong_ca`, `wrong_host`, `registry_tls`, `registry_oversized`.
        """
        return self._request(url, tls.verifying(authorities_pem, self._at_s), "POST", path, body)

    def get(self, url: str, path: str, authorities_pem: str) -> tuple[int, bytes]:
        """The same without a body; raises likewise."""
        return self._request(url, tls.verifying(authorities_pem, self._at_s), "GET", path, None)

    def _request(
        self, url: str, context: ssl.SSLContext, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        host, port = server(url)
        connection = http.client.HTTPSConnection(host, port, timeout=STEP_S_MAX, context=context)
        # A server that sends a byte now and then must not hold this device for ever.
        limit = threading.Timer(self._whole_s_max, _cut, (connection,))
        limit.daemon = True
        limit.start()
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _named(error, url, host) from None
        finally:
            limit.cancel()
            connection.close()
        if len(data) > ANSWER_BYTES_MAX:
            raise FinalError("registry_oversized", f"{url} answers more than {ANSWER_BYTES_MAX} bytes")
        return answer.status, data


def _cut(connection: http.client.HTTPSConnection) -> None:
    sock = connection.sock
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


def _named(error: Exception, url: str, host: str) -> AgentError | WireError:
    """The failure by the name that tells a person where to look."""
    if isinstance(error, ssl.SSLCertVerificationError):
        words = error.verify_message
        if error.verify_code in {NOT_YET_VALID, EXPIRED}:
            return RetryError(
                "clock_wrong",
                f"{url}: {words}; see `date`: is this machine's clock right? If it is, the registry's "
                "certificate has to be renewed",
            )
        if "mismatch" in words:
            return FinalError(
                "wrong_host", f"{url}: {words}; the registry's certificate is for another name than {host}"
            )
        return FinalError("wrong_ca", f"{url} is not the registry that the fleet's authority knows: {words}")
    if isinstance(error, ssl.SSLError):
        return FinalError("registry_tls", f"{url} speaks no TLS 1.3 as it should: {error.reason or error}")
    if isinstance(error, http.client.HTTPException | ValueError):
        return RetryError("registry_failed", f"{url} gives no answer of HTTP: {type(error).__name__} {error}")
    words = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)  # type: ignore[attr-defined]
    return RetryError(
        "registry_unreachable",
        f"{url} cannot be reached: {words}; `nc -vz` asks the same; the token stays good until it ends",
    )
