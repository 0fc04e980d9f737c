"""Whether a broker does what its files say, tried from outside as a stranger would try it.

For: `shallop-fleet broker check`, by a person after a change and before devices depend on it.
Not for: the registry's own look at the door every hour (`fleet.adapters.gate`), which is shorter.
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from fleet.adapters.authority import DAY_S, Authority
from fleet.adapters.broker_files import BrokerFiles, together
from fleet.adapters.broker_process import answers_plainly
from fleet.adapters.broker_tls import Answer, Knock, client_context, knock
from fleet.broker_rules import CA, PROBE

LISTEN_S = 1.0
AGAIN_S = (0.5, 1.5)
"""Between tries, where one was broken off."""

Address = tuple[str, int]


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was tried.

    Attributes:
        ok: whether the broker did as it should.
        what: it should do.
        seen: what it did.
    """

    ok: bool
    what: str
    seen: str


def check(files: BrokerFiles, address: Address, now: float) -> list[Finding]:
    """Everything that can be tried without a device, in the order in which it is worth mending.

    Args:
        files: as `broker init` made them.
        address: host and port of the broker, as devices know it.
        now: seconds since 1970.

    Raises:
        BrokerError: a file of ours cannot be used.
        KeysError: likewise.
    """
    ca_file, own = files.out / CA, files.program(PROBE)
    topic = f"{files.setup.root}/probe/{secrets.token_hex(8)}"
    probe = _taken_in(address, client_context(ca_file, own), topic)
    canary = _listening(address, client_context(ca_file, files.keys / "canary.pem"))
    found = [
        _finding("takes in whom the fleet's authority names", probe, Answer.TAKEN_IN),
        _trespass(probe),
        _finding("refuses what was revoked", canary, Answer.REVOKED),
        _finding("refuses one without a certificate", _listening(address, _nobody(ca_file)), Answer.REFUSED),
        _stranger(address, ca_file, now),
        _finding("speaks no TLS 1.2", _listening(address, _old(ca_file, own)), Answer.REFUSED),
        _ticket(probe),
        Finding(ok=not answers_plainly(address), what="speaks no MQTT without TLS there", seen="tried"),
    ]
    if probe.server_not_after is not None:
        days = (probe.server_not_after - now) / DAY_S
        found.append(Finding(ok=days > 30, what="shows a certificate that lasts", seen=f"{days:.0f} days"))
    return found


def _taken_in(address: Address, context: ssl.SSLContext, topic: str) -> Knock:
    """The registry looks at the door under the same name, and of two visits at once the broker ends one."""
    for wait_s in AGAIN_S:
        probe = knock(address, context, topic)
        if probe.answer is not Answer.SILENT or probe.server_not_after is None:
            return probe
        time.sleep(wait_s)
    return knock(address, context, topic)


def _trespass(probe: Knock) -> Finding:
    seen = {None: "not tried", False: "refused", True: "a message came through"}[probe.trespassed]
    what = "lets nobody write where the contract does not say"
    return Finding(ok=probe.trespassed is False, what=what, seen=seen)


def _ticket(probe: Knock) -> Finding:
    """By a ticket one comes again whose certificate ended, and nobody looks at it."""
    remedy = "it gives one: OPENSSL_CONF of its unit, docs/broker.md"
    seen = {None: "not tried", False: "none is given", True: remedy}[probe.ticket]
    return Finding(ok=probe.ticket is False, what="asks for the certificate each time", seen=seen)


def _finding(what: str, seen: Knock, wanted: Answer) -> Finding:
    words = f"{seen.answer} ({seen.detail})" if seen.detail else str(seen.answer)
    return Finding(ok=seen.answer is wanted, what=what, seen=words)


def _listening(address: Address, context: ssl.SSLContext) -> Knock:
    return knock(address, context, listen_s=LISTEN_S)


def _stranger(address: Address, ca_file: Path, now: float) -> Finding:
    """One whose certificate says what the registry's says, signed by an authority of its own."""
    with tempfile.TemporaryDirectory(prefix="shallop-") as folder:
        own = Path(folder) / "stranger.pem"
        own.touch(0o600)
        theirs = Authority.create(Path(folder), "Stranger", None, now)
        own.write_bytes(together(theirs.issue_client(PROBE, now, DAY_S)))
        seen = _listening(address, client_context(ca_file, own))
    return _finding("refuses another authority's certificate", seen, Answer.REFUSED)


def _nobody(ca_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    return context


def _old(ca_file: Path, cert_file: Path) -> ssl.SSLContext:
    context = client_context(ca_file, cert_file)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context
