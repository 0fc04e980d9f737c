"""Devices' side of enrolment, played by PyNaCl, and a registry with a real authority, for tests.

For: words of `wire.enrolment` with good and bad proofs. Not for: the agent's own code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from fleet.adapters.authority import Authority
from fleet.adapters.signing_desk import Keyring
from fleet.audit import By
from fleet.current import Current
from fleet.enrolling import Enrolling, Office
from fleet.enrolment_views import EnrolAsk, TokenShow
from fleet.orders import Desk
from fleet.ports import CutOff
from tests.fleet.twins import NO_OFFICE, TOPICS, Harness
from tests.keys import ORDER, RELEASE, Key, root_of, sealed_root
from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.codec import decode
from wire.enrolment import Enrol, Enrolled, Token, enrolment_statement, read_token, renewal_statement
from wire.errors import ShallopError
from wire.trust import Policy, open_envelope

INSTALL = "1" * 32
DAY_S = 86_400.0
URL = "https://fleet.example:8471"
DEVICE = "roof-17"
BY = By(who="anna", why="a new roof")


def public(key: Key) -> str:
    """The key's public half, in hexadecimal."""
    return key.public.public


def enrol_word(token: Token, key: Key, device: str | None = None, signer: Key | None = None) -> Enrol:
    """What a device says with a token."""
    name = device or token.device
    statement = enrolment_statement(name, public(key), token.secret)
    return Enrol(
        device=name, secret=token.secret.hex(), public=public(key), agent_version="0.1.0",
        proof=(signer or key).sign(statement).hex(),
    )  # fmt: skip


def renewal_word(
    device: str, key: Key, before: Key, root_number: int = 1, signer: Key | None = None
) -> Renewal:
    """What a device says when its certificate is to be followed."""
    statement = renewal_statement(device, public(key))
    return Renewal(
        device=device, install_id=INSTALL, public=public(key), proof=(signer or key).sign(statement).hex(),
        proof_before=before.sign(statement).hex(), root_number=root_number,
    )  # fmt: skip


class Barrier:
    """A broker's door that writes down what it was told.

    Attributes:
        told: devices that were cut off, with the serial numbers of their certificates, and ("in", device).
        broken: whether its files cannot be written.
        deaf: whether the broker does not read them.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.broken = self.deaf = False

    def cut_off(self, device: str, serials: Mapping[int, float]) -> CutOff:
        if self.broken:
            raise ShallopError("key_unwritable", "the disk is full")
        self.told.append((device, set(serials)))
        return CutOff(in_force=not self.deaf, detail="it does not listen" if self.deaf else "done")

    def let_in(self, device: str) -> bool:
        self.told.append(("in", device))
        return not self.deaf


class Registry:
    """A harness that signs, with an authority in `folder`.

    Attributes:
        barrier: the broker's door.
    """

    def __init__(self, folder: Path, now: float = 1_000_000.0, **office: object) -> None:
        root = root_of()
        self.desk = Desk(
            TOPICS, signers=(ORDER,), release_signers=(RELEASE,), policy=Policy(verifier=Keyring(root)),
            roots=(sealed_root(root),), root=root,
        )  # fmt: skip
        self.authority = Authority.create(folder, "test", None, now)
        self.barrier = Barrier()
        ours = {"authority": lambda: self.authority, "url": lambda: URL}
        self.office: Office = replace(NO_OFFICE, **{**ours, **office})
        self.harness = Harness(desk=self.desk, office=self.office, gate=self.barrier)
        self.clock = self.harness.clock
        self.clock.time = now

    @property
    def enrolling(self) -> Enrolling:
        """The verbs."""
        return self.harness.enrolling

    def with_desk(self, desk: Desk) -> Enrolling:
        """The verbs of another life of the registry, with other keys."""
        return Enrolling(self.harness.store, self.clock, Current(desk), self.office, self.harness.doorman)

    def token(self, device: str = DEVICE, valid_s: float = DAY_S) -> Token:
        """A new token."""
        return read_token(self.shown(device, valid_s).token)

    def shown(self, device: str = DEVICE, valid_s: float = DAY_S) -> TokenShow:
        """A new token as a person gets it."""
        (token,) = self.enrolling.make(EnrolAsk(devices=(device,), valid_s=valid_s), BY)
        return token

    def certificate(self, answer: Enrolled | CertificateRefused) -> Certificate:
        """The signed certificate of an answer, checked as a device checks it."""
        assert isinstance(answer, Enrolled), answer
        return self.opened(answer.certificate)

    def opened(self, envelope: bytes) -> Certificate:
        """The certificate of an envelope."""
        payload = open_envelope(envelope, "certificate", self.desk.policy, 64 * 1024)
        return decode(payload, Certificate, 64 * 1024)

    def enrolled(self, key: Key, device: str = DEVICE) -> Certificate:
        """A device with a certificate for that key."""
        return self.certificate(self.enrolling.enrol(enrol_word(self.token(device), key)))

    def serials(self, key: Key) -> set[int]:
        """Serial numbers of the certificates for a key."""
        with self.harness.store.begin() as tx:
            return {int(h.serial, 16) for h in tx.certificate_heads() if h.public == public(key)}

    def audit(self) -> list[str]:
        """The verbs of the audit log, in order."""
        with self.harness.store.begin() as tx:
            return [entry.what for entry in tx.audit_entries(0, 1000)]


def code_of(answer: object) -> str:
    """Why a device was refused."""
    assert isinstance(answer, CertificateRefused), answer
    assert re.search(r"\S", answer.detail)
    return answer.code
