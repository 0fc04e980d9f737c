"""The files of this device's identity, and the order in which they change.

For: `STATE/identity/`, mode 0700, every file 0600 and replaced in one fsynced step (`agent.durable`).
Not for: deciding when to ask for what (`agent.renewing`, `agent.enrolling`), or cryptography.

- `identity.pem`: key, certificate, authorities and home that were last accepted. Written by an enrolment that
  is complete, or by a change of `next.pem`'s name.
- `next.pem`: the same of a renewal, which no broker has accepted yet. Accepted, it becomes `identity.pem`,
  else it is removed.
- `renewing.json`: the key that a certificate is asked for; written before it is asked, gone once `next.pem`
  is there.
- `enrolling.json`: token and key, written before they are used; then the registry's answer too. Gone once
  `trust.json` and `identity.pem` are what it leads to.

So at every moment: (1) each file is whole, since each changes in one step; (2) `identity.pem` alone makes a
whole identity, the old or the new one, and nothing takes its place that was not checked against its key;
(3) a certificate that a registry may have issued belongs to a key that is on the disk, so a lost answer is
asked again with the *same* key; (4) an enrolment's answer is on the disk, whole and checked, before the
first of the two files that it changes (`trust.json`, `identity.pem`), and is taken up again, from the
start, by whoever comes next (`agent.enrolling.finish`); until it is, both are the old ones or both become
the new ones.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent import identity
from agent.durable import fsync_dir, write_file
from agent.errors import UNREADABLE, StateError
from agent.identity import Identity
from agent.ports import Keys
from wire.types import Digest

FOLDER = "identity"
CURRENT, NEXT, RENEWING, ENROLLING = "identity.pem", "next.pem", "renewing.json", "enrolling.json"
PENDING_BYTES_MAX = 4 * 1024 * 1024


class PendingKey(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent-pending-key"):
    """A key that a certificate is being asked for."""

    version: int = 1
    seed: bytes
    after: Digest


class PendingEnrolment(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent-enrolling"):
    """An enrolment under way.

    Attributes:
        token: the token's text, which a power cut must not cost.
        seed: the key that the certificate is for.
        answer: the registry's, once it came and was checked; empty before.
    """

    version: int = 1
    token: str
    seed: bytes
    answer: bytes = b""


# Made by the thread that imports this, as in `wire.codec`.
_PENDING_KEY = msgspec.json.Decoder(PendingKey)
_PENDING_ENROLMENT = msgspec.json.Decoder(PendingEnrolment)


class Identities:
    """The folder. One thread at a time changes it; any may read."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER

    def path(self, name: str) -> Path:
        """Where one of the files lies."""
        return self.folder / name

    def read(self, name: str = CURRENT) -> Identity | None:
        """An identity; None where there is no such file.

        Raises:
            StateError: `identity_damaged`, `identity_version`, `identity_unreadable`.
        """
        path = self.path(name)
        data = _bytes(path, identity.FILE_BYTES_MAX)
        return None if data is None else identity.decode(data, str(path))

    def usable(self, name: str) -> Identity | None:
        """The same; None, too, where it cannot be read."""
        with contextlib.suppress(StateError):
            return self.read(name)
        return None

    def save(self, found: Identity, name: str = CURRENT) -> None:
        """Puts an identity in its place.

        Raises:
            OSError: the disk's; what stood there stands.
        """
        self._write(name, identity.encode(found))

    def accept(self) -> None:
        """What no broker had accepted is now who this device is."""
        os.replace(self.path(NEXT), self.path(CURRENT))  # noqa: PTH105 - tests inject crashes into os itself
        fsync_dir(self.folder)

    def forget(self, name: str) -> None:
        """Removes a file, for good."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))  # noqa: PTH108 - as above
            fsync_dir(self.folder)

    # --- keys that are asked for

    def renewing(self, keys: Keys, present: Identity) -> bytes:
        """The key to ask the next certificate for: the one that was asked for already, else a new one, saved.

        Raises:
            OSError: the disk's; then nothing must be asked.
        """
        with contextlib.suppress(StateError, *UNREADABLE):
            data = _bytes(self.path(RENEWING), PENDING_BYTES_MAX)
            pending = _PENDING_KEY.decode(data) if data else None
            if pending is not None and pending.after == present.public and len(pending.seed) == 32:
                return pending.seed
        seed = keys.new_seed()
        self._write(RENEWING, msgspec.json.encode(PendingKey(seed=seed, after=present.public)))
        return seed

    def granted(self, found: Identity) -> None:
        """A renewal brought an identity; it waits to be accepted.

        Raises:
            OSError: the disk's; the key is asked for again.
        """
        self.save(found, NEXT)
        self.forget(RENEWING)

    # --- an enrolment under way

    def enrolling(self) -> PendingEnrolment | None:
        """The enrolment under way; None where there is none that can be read."""
        with contextlib.suppress(StateError, *UNREADABLE):
            data = _bytes(self.path(ENROLLING), PENDING_BYTES_MAX)
            return _PENDING_ENROLMENT.decode(data) if data else None
        return None

    @property
    def complete(self) -> bool:
        """Whether an enrolment waits to be taken up."""
        pending = self.enrolling()
        return pending is not None and bool(pending.answer)

    def enrol(self, keys: Keys, token: str) -> PendingEnrolment:
        """Begins an enrolment, or goes on with the one of the same token.

        Raises:
            OSError: the disk's; then nothing must be asked.
        """
        pending = self.enrolling()
        if pending is None or pending.token != token or len(pending.seed) != 32:
            pending = PendingEnrolment(token=token, seed=keys.new_seed())
            self._write(ENROLLING, msgspec.json.encode(pending))
        return pending

    def answered(self, pending: PendingEnrolment, answer: bytes) -> None:
        """The answer came and is good.

        Raises:
            OSError: the disk's.
        """
        self._write(ENROLLING, msgspec.json.encode(replace(pending, answer=answer)))

    def _write(self, name: str, data: bytes) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            fsync_dir(self.folder.parent)
        write_file(self.path(name), data, private=True)


def _bytes(path: Path, size_bytes_max: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(size_bytes_max + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(
            "identity_unreadable", f"{path} cannot be read: {error}; run this as its owner"
        ) from None
    if len(data) > size_bytes_max:
        raise StateError("identity_damaged", f"{path} is larger than {size_bytes_max} bytes")
    return data
