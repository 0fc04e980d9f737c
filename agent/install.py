"""Who this installation is, and the counters of what it sends.

For: a random id per state directory and numbers that never go back, across restarts and power cuts.
Not for: the device's name (`agent.config`), or reports, whose numbers leave none out (`agent.outbox`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.durable import write_file
from agent.errors import UNREADABLE, StateError
from wire.chunks import digest
from wire.types import Count, Digest, InstallId

RESERVED = 1000
"""Message numbers taken at once, so that not every message costs an fsync; a restart skips the rest."""


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
    saved = _SAVED.decode(data)
    if saved.version != 1 and _encode(saved) != data:
        raise msgspec.DecodeError("its checksum does not match its content")
    return saved


class Install:
    """The counters of one state directory. Any thread may call it.

    Raises:
        StateError: `install_damaged`: the file is there and cannot be read; giving the directory a new
            identity silently would let two histories pass for one device.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "install.json"
        self._lock = threading.Lock()
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            self._saved = _Saved(install_id=os.urandom(16).hex())
            self._write()
        else:
            try:
                self._saved = _decode(data)
            except UNREADABLE as error:
                raise StateError(
                    "install_damaged",
                    f"{self._path} cannot be read ({error}); remove it to give this device a new install id",
                ) from None
        self._next = self._saved.reserved + 1

    def _write(self) -> None:
        write_file(self._path, _encode(self._saved))

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
    try:
        return msgspec.json.decode((state_dir / "install.json").read_bytes(), type=_Saved).install_id
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
