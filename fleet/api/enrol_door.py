"""What devices may ask over HTTPS before the broker lets them in: three paths, and nothing else.

For: bytes in, bytes out: the words of `wire.enrolment`, and which failures count against an address.
Not for: TLS, HTTP's framing, or connections (`fleet.adapters.enrol_server`); deciding (`fleet.enrolling`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import Struct

from fleet.enrolling import Enrolling
from wire.certificates import CertificateRefused
from wire.enrolment import CA_PATH, ENROL_PATH, RENEW_PATH, encode, read_enrol, read_renewal
from wire.errors import ShallopError, WireError

_LOG = logging.getLogger("shallop.fleet.enrol_door")

PEM, JSON = "application/x-pem-file", "application/json"
MISTRUSTED = frozenset(
    {"token_unknown", "wrong_device", "bad_proof", "unknown_device", "token_used", "malformed", "oversized"}
)
"""Refusals after which an address has fewer tries left; the others happen to honest devices."""


class Answer(Struct, frozen=True, kw_only=True):
    """An HTTP answer.

    Attributes:
        code: of a refusal; empty where something was given.
    """

    status: int
    content_type: str
    body: bytes
    code: str = ""


def refusal(code: str, detail: str, status: int) -> Answer:
    """A refusal in the words of the contract."""
    body = encode(CertificateRefused(code=code, detail=detail))
    return Answer(status=status, content_type=JSON, body=body, code=code)


UNAVAILABLE = Answer(
    status=503,
    content_type="text/plain",
    body=b"the registry cannot answer now; try again\n",
    code="unavailable",
)
"""No word of the contract, which would be final for the device: this one comes again."""


class Door:
    """Answers requests; called by several threads at once."""

    def __init__(self, enrolling: Enrolling, authorities_pem: Callable[[], str]) -> None:
        self._enrolling = enrolling
        self._authorities_pem = authorities_pem

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """The answer to a request whose body is not above `wire.enrolment.ASK_BYTES_MAX`; raises nothing."""
        wanted = {CA_PATH: "GET", ENROL_PATH: "POST", RENEW_PATH: "POST"}.get(path)
        if wanted is None:
            return refusal("no_such_path", f"enrolment answers {CA_PATH}, {ENROL_PATH} and {RENEW_PATH}", 404)
        if method != wanted:
            return refusal("no_such_method", f"{path} is asked by {wanted}", 405)
        if path == CA_PATH:
            return Answer(status=200, content_type=PEM, body=self._authorities_pem().encode())
        try:
            return self._told(path, body)
        except WireError as error:
            return refusal(error.code, str(error.args[0]), 413 if error.code == "oversized" else 400)
        except Exception as error:  # noqa: BLE001 - the device is told to come again; the log has it whole
            _LOG.error(
                "a device could not be answered: %s", error, exc_info=not isinstance(error, ShallopError)
            )
            return UNAVAILABLE

    def _told(self, path: str, body: bytes) -> Answer:
        if path == ENROL_PATH:
            said = self._enrolling.enrol(read_enrol(body))
        else:
            said = self._enrolling.renew(read_renewal(body))
        if isinstance(said, CertificateRefused):
            return refusal(said.code, said.detail, 429 if said.code == "too_many" else 403)
        return Answer(status=200, content_type=JSON, body=encode(said))
