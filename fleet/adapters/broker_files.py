"""The files that a broker reads, and the fleet's own names there; made by `shallop-fleet broker init`.

For: making and renewing them, and refusing devices: revoked certificates and denied names, from one record.
Not for: whether the broker has read them (`fleet.adapters.gate`), or what they say (`fleet.broker_rules`).

    OUT/setup.json       how the broker was set up            OUT/revoked.json   who is refused, the record
    OUT/ca.pem           whose certificates are accepted      OUT/crl.pem        made from the record
    OUT/server.pem       the broker's certificate and key     OUT/access.acl     made from setup and record
    OUT/mosquitto.conf   for /etc/mosquitto/conf.d
    KEYS/registry.pem    `fleet.registry`: certificate and key in one file, so that both change together
    KEYS/watch.pem       `fleet.watch`, likewise; also probe.pem and, where asked for, home-assistant.pem
    KEYS/canary.pem      revoked by the newest crl.pem: where the broker refuses it, that list is in force

Files are replaced whole, or not at all: a broker that reloads a torn list takes everybody in.
"""

from __future__ import annotations

import fcntl
import grp
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleet.adapters.authority import (
    AUTHORITY_LIFE_S,
    BACKDATE_S,
    CERTIFICATES,
    DAY_S,
    Authority,
    Identity,
)
from fleet.adapters.authority import read_certificate as certificate_of
from fleet.adapters.durable import give_directory, owner_in, write_atomically
from fleet.adapters.x509_parts import revoked_serials
from fleet.broker_rules import (
    ACCESS,
    CA,
    CONFIG,
    HOME,
    PROBE,
    REGISTRY,
    REVOKED,
    SERVER,
    WATCH,
    Setup,
    access_list,
    mosquitto_config,
)
from fleet.keys import KeysError

SETUP, RECORD = "setup.json", "revoked.json"
CANARY = "fleet.canary"
RECORD_BYTES_MAX = 256 * 1024 * 1024
SERVER_LIFE_S = 400 * DAY_S
PROGRAM_LIFE_S = 400 * DAY_S
RENEWED_AT = 2 / 3
"""Of a certificate's life."""

BROKER_GROUP = "mosquitto"
_PUBLIC, _FOR_BROKER, _OWN = 0o644, 0o640, 0o600

Document = TypeVar("Document", bound=Struct)


class RevokedCertificate(Struct, frozen=True, kw_only=True):
    """When a certificate was revoked, and when it would have ended; seconds since 1970."""

    at: float
    not_after: float


class Revoked(Struct, frozen=True, kw_only=True):
    """Who is refused at the broker.

    Attributes:
        devices: when each device was cut off, seconds since 1970.
        certificates: by serial number in hexadecimal; one that ended is dropped, since that refuses it too.
    """

    devices: dict[str, float] = {}
    certificates: dict[str, RevokedCertificate] = {}


# Made by the thread that imports this, as in `wire.codec`.
_SETUP = msgspec.json.Decoder(Setup)
_REVOKED = msgspec.json.Decoder(Revoked)


class BrokerFiles:
    """The files of one broker.

    Args:
        out: the directory that the broker reads.
        keys: the directory of the fleet's keys.
    """

    def __init__(self, out: Path, keys: Path) -> None:
        self.out, self.keys = out, keys

    @property
    def exist(self) -> bool:
        """Whether a broker was set up there."""
        return (self.out / SETUP).exists()

    @property
    def setup(self) -> Setup:
        """How it was set up.

        Raises:
            KeysError: `no_broker` or `broker_files_unreadable`.
        """
        if not self.exist:
            raise KeysError(
                "no_broker", f"no broker was set up in {self.out}; begin with `shallop-fleet broker init`"
            )
        return _load(self.out / SETUP, _SETUP)

    @property
    def programs(self) -> tuple[str, ...]:
        """The fleet's own names at the broker, each with a certificate in the keys' directory."""
        home = () if self.setup.home_assistant is None else (HOME,)
        return (REGISTRY, WATCH, PROBE, *home)

    @property
    def revoked(self) -> Revoked:
        """Who is refused.

        Raises:
            KeysError: `broker_files_unreadable`: the record is damaged or gone, which is not an empty one.
        """
        return _load(self.out / RECORD, _REVOKED)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One change at a time, of whatever process."""
        # The directory itself: a file would be root's where root came first.
        handle = os.open(self.out, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def prepare(self) -> None:
        """Makes the two directories, if they are missing.

        Raises:
            KeysError: `key_unwritable`.
        """
        self._make_directory(self.keys, 0o700)
        self._make_directory(self.out, 0o2750)

    # --- the whole set --------------------------------------------------------------------------------

    def begin(self, setup: Setup, authority: Authority, now: float, *, forget_revoked: bool = False) -> None:
        """Writes every file; who is refused stays refused, and programs keep certificates that live.

        Args:
            setup: of the broker.
            authority: signs.
            now: seconds since 1970.
            forget_revoked: begin with an empty record though there was one; else that is refused.

        Raises:
            KeysError: `bad_host`, `key_unwritable` or `broker_files_unreadable`; `record_lost`: these keys
                had a broker, whose record of revoked devices is not here.
            ValueError: the root of the tree is none.
        """
        access_list(setup)
        self.prepare()
        with self.locked():
            # Whatever may be refused comes before anything is replaced.
            revoked, server = (
                self._record_to_begin_with(forget_revoked),
                authority.issue_server(setup.hosts, now, SERVER_LIFE_S),
            )
            self._place(self.out / RECORD, msgspec.json.encode(revoked), _FOR_BROKER)
            self._place(self.out / SETUP, msgspec.json.format(msgspec.json.encode(setup)) + b"\n", _PUBLIC)
            self._place(self.out / CONFIG, mosquitto_config(setup).encode(), _PUBLIC)
            self._place(self.out / SERVER, together(server), _FOR_BROKER)
            for name in self.programs:
                if due(self.program(name), now):
                    self.renew_program(name, authority, now)
            self._write_lists(setup, revoked, authority, now)

    def _record_to_begin_with(self, forget: bool) -> Revoked:
        if (self.out / RECORD).exists():
            return self.revoked
        if not forget and (self.keys / "canary.pem").exists():
            raise KeysError(
                "record_lost",
                f"these keys had a broker, but who was revoked there is not here ({self.out / RECORD}): an "
                "empty record would let them come again. Put it back from a backup, or say --forget-revoked",
            )
        return Revoked()

    def rewrite(self, authority: Authority, now: float) -> None:
        """Makes what follows from authority, setup and record once more.

        Raises:
            KeysError: `no_broker`, `key_unwritable` or `broker_files_unreadable`.
        """
        setup = self.setup
        with self.locked():
            self._write_lists(setup, self.revoked, authority, now)

    def show_again(self) -> None:
        """Puts the list of revoked ones in its own place, so that whoever waits for a change sees one.

        The same list, with the same canary: it may be on its way to another machine.

        Raises:
            KeysError: `key_unwritable`.
        """
        with self.locked():
            self._place(self.out / REVOKED, (self.out / REVOKED).read_bytes(), _PUBLIC)

    def _write_lists(self, setup: Setup, revoked: Revoked, authority: Authority, now: float) -> None:
        """The canary first and the list of revoked ones last: what looks at that one sees all of them."""
        canary = authority.issue_client(CANARY, now, AUTHORITY_LIFE_S)
        self._place(self.keys / "canary.pem", together(canary), _OWN)
        serials = {int(serial, 16): one.at for serial, one in revoked.certificates.items()}
        serials[canary.issued.serial] = now
        # The file is the broker's own and reaches it by no network, so an old one is no attack; but a broker
        # whose list ended takes nobody in, and a registry that is off must not stop a fleet.
        listed = authority.revocation_list(serials, now - BACKDATE_S, authority.not_after)
        self._place(self.out / CA, authority.certificates_pem.encode(), _PUBLIC)
        self._place(self.out / ACCESS, access_list(setup, revoked.devices).encode(), _FOR_BROKER)
        self._place(self.out / REVOKED, listed, _PUBLIC)

    # --- certificates ---------------------------------------------------------------------------------

    def program(self, name: str) -> Path:
        """Where certificate and key of one of the fleet's programs lie."""
        return self.keys / f"{name.removeprefix('fleet.')}.pem"

    def renew_program(self, name: str, authority: Authority, now: float) -> None:
        """A new certificate and key for one of the fleet's programs.

        Raises:
            KeysError: `key_unwritable`.
        """
        self._place(self.program(name), together(authority.issue_client(name, now, PROGRAM_LIFE_S)), _OWN)

    def renew_server(self, authority: Authority, now: float) -> None:
        """A new certificate and key for the broker, of the same names.

        Raises:
            KeysError: `no_broker`, `key_unwritable` or `broker_files_unreadable`.
        """
        # When it was made stands nowhere in it: its life begins with the authority's.
        identity = authority.issue_server(self.setup.hosts, now, SERVER_LIFE_S)
        with self.locked():
            self._place(self.out / SERVER, together(identity), _FOR_BROKER)

    def server_due(self, now: float) -> bool:
        """Whether a third of the broker's certificate's life is left, or less."""
        path = self.out / SERVER
        return not path.exists() or now > certificate_of(path).not_after - SERVER_LIFE_S * (1 - RENEWED_AT)

    # --- refusing -------------------------------------------------------------------------------------

    def refuse(self, device: str, serials: Mapping[int, float], authority: Authority, now: float) -> bool:
        """Refuses a device by its name and by its certificates; the record is kept first.

        Args:
            device: its id.
            serials: of its certificates that live; when each ends, seconds since 1970.
            authority: signs the list.
            now: seconds since 1970.

        Returns:
            Whether that changed anything. Asked again, the lists stay as they are, canary included: they may
            be on their way to another machine.

        Raises:
            KeysError: `no_broker`, `key_unwritable` or `broker_files_unreadable`.
        """
        setup = self.setup
        with self.locked():
            before = self.revoked
            certificates = dict(before.certificates)
            for serial, not_after in serials.items():
                one = RevokedCertificate(at=now, not_after=not_after + BACKDATE_S)
                if one.not_after > now:
                    certificates.setdefault(f"{serial:x}", one)
            devices = {device: now} | before.devices
            after = replace(before, devices=devices, certificates=certificates)
            return self._record(setup, before, after, authority, now)

    def allow(self, device: str, authority: Authority, now: float) -> bool:
        """Takes a device's name off the list, its revoked certificates stay; whether that was a change.

        Raises:
            KeysError: `no_broker`, `key_unwritable` or `broker_files_unreadable`.
        """
        setup = self.setup
        with self.locked():
            before = self.revoked
            devices = {name: at for name, at in before.devices.items() if name != device}
            return self._record(setup, before, replace(before, devices=devices), authority, now)

    def mend(self, authority: Authority, now: float) -> bool:
        """Makes the lists anew where they do not say what record and authority do, as after a crash.

        Returns:
            Whether that was so.

        Raises:
            KeysError: `no_broker`, `key_unwritable` or `broker_files_unreadable`.
        """
        setup = self.setup
        with self.locked():
            return self._record(setup, self.revoked, self.revoked, authority, now)

    def _record(
        self, setup: Setup, before: Revoked, after: Revoked, authority: Authority, now: float
    ) -> bool:
        if after == before and self._lists_say(setup, after, authority):
            return False
        living = {serial: one for serial, one in after.certificates.items() if one.not_after > now}
        kept = replace(after, certificates=living)
        self._place(self.out / RECORD, msgspec.json.encode(kept), _FOR_BROKER)
        self._write_lists(setup, kept, authority, now)
        return True

    def _lists_say(self, setup: Setup, revoked: Revoked, authority: Authority) -> bool:
        try:
            listed = revoked_serials(self.out / REVOKED)
            canary = certificate_of(self.keys / "canary.pem").serial
            access = (self.out / ACCESS).read_text(encoding="utf-8")
            accepted = (self.out / CA).read_text(encoding="utf-8")
            # An authority that another one followed just now says nothing about whom the broker accepts.
            followed = (self.keys / CERTIFICATES).read_text(encoding="utf-8") != authority.certificates_pem
        except (KeysError, OSError, UnicodeDecodeError):
            return False
        wanted = {int(serial, 16) for serial in revoked.certificates} | {canary}
        known = followed or accepted == authority.certificates_pem
        return known and wanted <= listed and access == access_list(setup, revoked.devices)

    # --- the disk -------------------------------------------------------------------------------------

    def _place(self, path: Path, data: bytes, mode: int) -> None:
        try:
            write_atomically(path, data, mode, owner=owner_in(path.parent))
        except OSError as error:
            raise KeysError("key_unwritable", f"{path} cannot be written: {error}") from None

    def _make_directory(self, path: Path, mode: int) -> None:
        """Made by root, it becomes its parent's owner's, and the broker's directory the broker's group's."""
        if path.is_dir():
            return
        try:
            path.mkdir(mode=0o700, parents=True)
            owner = owner_in(path.parent)
            if owner is not None and mode & 0o2000:
                owner = (owner[0], _broker_group(owner[1]))
            give_directory(path, owner, mode)
        except OSError as error:
            raise KeysError("key_unwritable", f"{path} cannot be made: {error}") from None


def together(identity: Identity) -> bytes:
    """Certificate and private key in one PEM file."""
    return identity.issued.pem.encode() + identity.key_pem


def due(path: Path, now: float) -> bool:
    """Whether a certificate is missing, or two thirds of its life are over.

    Raises:
        KeysError: `certificate_unreadable`.
    """
    if not path.exists():
        return True
    issued = certificate_of(path)
    return now > issued.not_before + (issued.not_after - issued.not_before) * RENEWED_AT


def _broker_group(otherwise: int) -> int:
    try:
        return grp.getgrnam(BROKER_GROUP).gr_gid
    except KeyError:
        return otherwise


def _load(path: Path, decoder: msgspec.json.Decoder[Document]) -> Document:
    try:
        with path.open("rb") as file:
            # A read of so much at once would take that much memory for a file of any size.
            size_bytes = min(os.fstat(file.fileno()).st_size, RECORD_BYTES_MAX)
            return decoder.decode(file.read(size_bytes))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KeysError(
            "broker_files_unreadable", f"{path} cannot be used: {error}; put it back from a backup"
        ) from None
