"""Who this installation is, and the counters of what it sends.

For: a random id per state directory and numbers that never go back, across restarts, power cuts and damage.
Not for: the device's name (`agent.config`), or reports, whose numbers leave none out (`agent.outbox`).

`install.json` is replaced at each connection, and what it was stays as `install.1`. Damaged, it is mended
from that copy: the same id, and numbers far enough beyond those of the copy. Where neither can be used this
is a new installation under the same device id, and the old one's reports are dropped, not sent: the registry
keys on id and number, and takes two ids that alternate for two machines.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.durable import fsync_dir, write_file
from agent.errors import UNREADABLE, StateError
from wire.chunks import digest
from wire.types import Count, Digest, InstallId

log = logging.getLogger(__name__)

RESERVED = 1000
"""Message numbers taken at once, so that not every message costs an fsync; a restart skips the rest."""
SKIPPED = 2 * RESERVED
"""Numbers left out after damage: the copy is one save behind, and a save takes no more than half of them."""
FILE_NAME, COPY_NAME, REPORTS = "install.json", "install.1", "reports"
FILE_BYTES_MAX = 64 * 1024
VERSION = 2
"""Version 1 had no checksum, and is still read; the two differ in more than one bit."""


class _Saved(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent-install"):
    version: int = VERSION
    install_id: InstallId
    connections: Count = 0
    reserved: Count = 0
    sha256: Digest | None = None


_SAVED = msgspec.json.Decoder(_Saved)


def _encode(saved: _Saved) -> bytes:
    plain = replace(saved, version=VERSION, sha256=None)
    return msgspec.json.encode(replace(plain, sha256=digest(msgspec.json.encode(plain))))


def _decode(data: bytes) -> _Saved:
    """What a file says.

    Raises:
        StateError: `install_damaged`, or `install_version` where a newer program wrote it.
    """
    try:
        saved = _SAVED.decode(data)
    except UNREADABLE as error:
        raise StateError("install_damaged", str(error)) from None
    ours = _SAVED.decode(_encode(saved))
    # A version above ours with our checksum is a damaged digit.
    if saved.version > VERSION and saved.sha256 != ours.sha256:
        text = f"{FILE_NAME} has version {saved.version}, this program reads {VERSION}; install the newer one"
        raise StateError("install_version", text)
    if saved.version != 1 and _encode(saved) != data:
        raise StateError("install_damaged", "its checksum does not match its content")
    return saved


def _read(path: Path) -> _Saved | None:
    """What a file says; None where there is none.

    Raises:
        StateError: `install_damaged`, also of a disk that cannot read it; `install_version`.
        OSError: another reason for which it cannot be read, such as its owner.
    """
    try:
        with path.open("rb") as file:
            return _decode(file.read(FILE_BYTES_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in {errno.EIO, errno.EUCLEAN}:
            raise
        raise StateError("install_damaged", str(error)) from None


class Install:
    """The counters of one state directory. Any thread may call it.

    Raises:
        StateError: `install_version`.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path, self._copy = state_dir / FILE_NAME, state_dir / COPY_NAME
        self._lock = threading.Lock()
        try:
            saved = _read(self._path)
        except StateError as error:
            if error.code != "install_damaged":
                raise
            saved = self._mended(str(error.args[0]))
        self._saved = self._begun() if saved is None else saved
        self._next = self._saved.reserved + 1

    def _mended(self, damage: str) -> _Saved | None:
        """What the copy says, and beyond; None where it cannot be used. The damaged file takes no place."""
        try:
            copy = _read(self._copy)
        except StateError as error:
            if error.code != "install_damaged":
                raise
            damage, copy = f"{damage}; of {COPY_NAME}: {error.args[0]}", None
        log.error("%s is damaged: %s", self._path, damage)
        if copy is None:
            return None
        far = replace(copy, connections=copy.connections + SKIPPED, reserved=copy.reserved + SKIPPED)
        write_file(self._path, _encode(far))
        log.error("it is mended from its copy; the numbers go on at %d", far.reserved + 1)
        return far

    def _begun(self) -> _Saved:
        """A new installation; one before it left reports, perhaps, which would speak with its id."""
        reports = self._path.parent / REPORTS
        if reports.is_dir():
            left = list(reports.iterdir())
            for path in left:
                path.unlink()
            fsync_dir(reports)
            log.error(
                "this is a new installation; %d files of reports of the one before are dropped", len(left)
            )
        # A copy of the one before must not mend this one.
        self._copy.unlink(missing_ok=True)
        saved = _Saved(install_id=os.urandom(16).hex())
        write_file(self._path, _encode(saved))
        return saved

    def _write(self) -> None:
        write_file(self._path, _encode(self._saved), copy=self._copy)

    @property
    def install_id(self) -> str:
        """Random, made with the state directory."""
        return self._saved.install_id

    @property
    def connections(self) -> int:
        """The connection counter as it is."""
        return self._saved.connections

    @property
    def reserved(self) -> int:
        """No message number above this one was given out yet."""
        return self._saved.reserved

    def connect(self, above: int = 0) -> int:
        """The number of a new connection, above every earlier one and above `above`.

        A full disk does not keep the device offline: the number then rises in memory alone.
        """
        with self._lock:
            number = max(self._saved.connections, above) + 1
            self._saved = replace(self._saved, connections=number)
            with contextlib.suppress(OSError):
                self._write()
            return number

    def number(self) -> int:
        """The next message number.

        A full disk does not keep the device silent: the numbers then rise in memory alone, and are given
        again after a restart on a disk that is still full.
        """
        with self._lock:
            if self._next > self._saved.reserved:
                before = self._saved
                self._saved = replace(before, reserved=self._next + RESERVED)
                try:
                    self._write()
                except OSError:
                    self._saved = before
            number = self._next
            self._next += 1
            return number


def saved_install_id(state_dir: Path) -> str | None:
    """The id of a state directory without opening it; None where there is none that can be read."""
    for name in (FILE_NAME, COPY_NAME):
        with contextlib.suppress(StateError, OSError):
            saved = _read(state_dir / name)
            return saved.install_id if saved else None
    return None
