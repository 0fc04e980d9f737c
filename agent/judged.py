"""TLS whose certificates are judged at a time that this program gives, and not at the machine's clock.

For: a device whose clock stands at 1970: its highest signed time is later, and that one counts
(DESIGN.md section 6). Every use of TLS in the agent goes through `judge()`.
Not for: making contexts (`agent.tls`), or telling that time (`agent.signed_time`). It imports `ssl`, so it is
itself imported only where a connection is encrypted.

Python's ssl cannot tell OpenSSL another time. So OpenSSL is told to check no times
(X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h: everything else of the chain is checked as ever), and the
socket checks the dates of every certificate of the verified chain itself, its authority's included, right
after the handshake and before a byte of the application is sent or read. What it refuses has OpenSSL's own
numbers and words (9: not yet valid, 10: expired). The chain is that of `_ssl`'s own socket, which Python
3.10 to 3.14 have and only 3.13 shows in public, as DER; where it is missing nothing is believed.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agent.tls import Heard

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME."""
NOT_YET_VALID, EXPIRED, UNSPECIFIED = 9, 10, 1
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_UNSPECIFIED."""

_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_OF_CERTIFICATES = ("certificate", "unknown ca", "access denied")
"""In OpenSSL's names of the alerts by which a server refuses a client's certificate (RFC 8446, 6.2)."""

JudgedAt = Callable[[], float]


def judge(context: ssl.SSLContext, at_s: JudgedAt, heard: Heard | None = None) -> ssl.SSLContext:
    """The same context, its certificates judged at `at_s()`, seconds since 1970, at each handshake.

    `heard` takes why a connection that is made with it fails.
    """
    context.verify_flags = ssl.VerifyFlags(int(context.verify_flags) | NO_CHECK_TIME)

    class Judged(_JudgedSocket):
        _judged_at_s = staticmethod(at_s)
        _heard = heard if heard is not None else Heard()

    context.sslsocket_class = Judged
    return context


class _JudgedSocket(ssl.SSLSocket):
    _judged_at_s: JudgedAt
    _heard: Heard

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
            if self.context.verify_mode is not ssl.CERT_NONE:
                require_dates(_chain(self), self._judged_at_s())
        except ssl.SSLCertVerificationError as error:
            self._heard.words = error.verify_message
            self.close()
            raise
        except ssl.SSLError as error:
            self._note(error)
            raise

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002, ANN401 - as its base has it
        # By TLS 1.3 the server refuses a client's certificate only after the handshake.
        try:
            return super().read(len, buffer)
        except ssl.SSLError as error:
            self._note(error)
            raise

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401 - as its base has it
        # Refused and hung up on, one may find out while sending; what was said still lies there to be read.
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                self.setblocking(False)
                self.read(1)
            raise

    def _note(self, error: ssl.SSLError) -> None:
        reason = error.reason or ""
        if "_ALERT_" in reason:
            words = reason.partition("_ALERT_")[2].lower().replace("_", " ")
            self._heard.words = f"it said: {words}"
            self._heard.certificate = any(mark in words for mark in _OF_CERTIFICATES)


def _chain(sock: ssl.SSLSocket) -> Sequence[Mapping[str, Any]]:
    """Every certificate that was verified, from the server's own to the authority's."""
    try:
        return [certificate.get_info() for certificate in sock._sslobj.get_verified_chain()]  # type: ignore[attr-defined] # noqa: SLF001
    except (AttributeError, TypeError):
        return []


def require_dates(chain: Sequence[Mapping[str, Any]], at_s: float) -> None:
    """Returns if every certificate of a verified chain lives at that time.

    Args:
        chain: as `ssl.SSLSocket.getpeercert()` shows one.
        at_s: seconds since 1970.

    Raises:
        ssl.SSLCertVerificationError: as OpenSSL would raise it.
    """
    if not chain:
        raise _refusal(UNSPECIFIED, "the certificates' dates cannot be read in this Python", {})
    for certificate in chain:
        if _seconds(certificate["notBefore"]) > at_s:
            words = f"certificate is not yet valid at {_day(at_s)}: it begins {certificate['notBefore']}"
            raise _refusal(NOT_YET_VALID, words, certificate)
        if _seconds(certificate["notAfter"]) < at_s:
            words = f"certificate has expired at {_day(at_s)}: it ended {certificate['notAfter']}"
            raise _refusal(EXPIRED, words, certificate)


def _seconds(text: str) -> float:
    """Of a date such as `Nov 21 17:39:29 2026 GMT`; `ssl.cert_time_to_seconds` imports `calendar` for it.

    Raises:
        ssl.SSLCertVerificationError: it is none.
    """
    try:
        month, day, clock, year, zone = text.split()
        hour, minute, second = map(int, clock.split(":"))
        at = datetime(int(year), _MONTHS.index(month) // 3 + 1, int(day), hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise _refusal(UNSPECIFIED, f"the date {text!r} cannot be read", {}) from None
    if zone != "GMT":
        raise _refusal(UNSPECIFIED, f"the date {text!r} is of another zone", {})
    return at.timestamp()


def _refusal(code: int, words: str, certificate: Mapping[str, Any]) -> ssl.SSLCertVerificationError:
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    whose = f" ({names[0]})" if names else ""
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {words}{whose}")
    error.verify_code, error.verify_message = code, words + whose
    error.reason, error.library = "CERTIFICATE_VERIFY_FAILED", "SSL"
    return error


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(max(0.0, at_s)))
