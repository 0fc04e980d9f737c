"""What the running agent notes for `shallop-agent status`: connection, next tries, when trials ended.

For: a small file, `status.json`, beside the journal, written only when something in it changes, and its one
way of being read. The journal holds what must last; this holds what only a living agent knows, so it is
written without fsync, lost without harm, and believed only as far as the reader can check it: the lock tells
whether that agent lives, and the boot id whether its times are of this start of the machine.
Not for: deciding anything, or showing it (`agent.status_view`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.durable import write_file
from agent.errors import UNREADABLE
from agent.ports import Clock
from wire.messages import Reason
from wire.types import ModelName

log = logging.getLogger(__name__)

FILE, FILE_BYTES_MAX = "status.json", 256 * 1024
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Retry(Struct, frozen=True, kw_only=True):
    """A piece of work that waits.

    Attributes:
        at_boot_s: CLOCK_BOOTTIME at which it begins.
        reason: why the last try ended.
    """

    at_boot_s: float
    reason: Reason | None = None


class IdentityNote(Struct, frozen=True, kw_only=True):
    """How the device's certificate stands.

    Attributes:
        phase: of its renewal.
        ends_at: when it ends.
        due_at: when the next one is asked for.
        failures: to get that one, in a row.
        why: why there is no newer one, or why the broker refuses this one.
    """

    phase: str
    ends_at: str
    due_at: str
    failures: int = 0
    why: Reason | None = None


class Noted(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent-status"):
    """What an agent knew when it last changed.

    Attributes:
        pid: of the agent that wrote it.
        boot_id: of the machine's start at which it was written.
        started_at: when that agent began.
        connected: whether it had a connection to the broker; None before the first try ended.
        since: of that.
        seen_at: when the broker was last heard, while not connected now; empty where never.
        detail: why it is not connected.
        retries: by model.
        trialed_at: by model, when its last trial ended.
        identity: of a device that is enrolled.
    """

    version: int = 1
    pid: int
    boot_id: str = ""
    started_at: str = ""
    connected: bool | None = None
    since: str = ""
    seen_at: str = ""
    detail: str = ""
    retries: dict[ModelName, Retry] = {}
    trialed_at: dict[ModelName, str] = {}
    identity: IdentityNote | None = None


# Made by the thread that imports this, as in `wire.codec`.
_NOTED = msgspec.json.Decoder(Noted)


def boot_id() -> str:
    """Changes with every start of the machine; empty where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def read(state_dir: Path) -> Noted | None:
    """What the last agent here noted; None where there is nothing that can be read."""
    try:
        with (state_dir / FILE).open("rb") as file:
            return _NOTED.decode(file.read(FILE_BYTES_MAX))
    except (OSError, *UNREADABLE):
        return None


class Board:
    """The notes of one agent; for the runner's thread."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self._path, self._clock = state_dir / FILE, clock
        before = read(state_dir)
        self._noted = Noted(
            pid=os.getpid(),
            boot_id=boot_id(),
            started_at=clock.now_text(),
            seen_at=_seen(before),
            trialed_at=before.trialed_at if before else {},
        )
        self._write()

    def connection(self, *, up: bool, detail: str = "") -> None:
        """The connection came or went."""
        noted, now = self._noted, self._clock.now_text()
        if noted.connected is up:
            if not up and detail not in {"", noted.detail}:
                self._note(replace(noted, detail=detail))
            return
        seen = now if noted.connected else noted.seen_at
        self._note(replace(noted, connected=up, since=now, seen_at="" if up else seen, detail=detail))

    def identity(self, note: IdentityNote) -> None:
        """The device's certificate, or its renewal, changed."""
        if note != self._noted.identity:
            self._note(replace(self._noted, identity=note))

    def waiting(self, model: str, after_s: float, reason: Reason | None) -> None:
        """The model's work begins again after a while."""
        retry = Retry(at_boot_s=round(self._clock.boot_s() + after_s, 1), reason=reason)
        self._note(replace(self._noted, retries={**self._noted.retries, model: retry}))

    def working(self, model: str) -> None:
        """The model's work does not wait for anything."""
        left = {name: retry for name, retry in self._noted.retries.items() if name != model}
        if len(left) != len(self._noted.retries):
            self._note(replace(self._noted, retries=left))

    def trialed(self, model: str) -> None:
        """A trial of the model has just ended."""
        at = self._clock.now_text()
        self._note(replace(self._noted, trialed_at={**self._noted.trialed_at, model: at}))

    def _note(self, noted: Noted) -> None:
        self._noted = noted
        self._write()

    def _write(self) -> None:
        # A full disk must not keep the agent from its work; the reader finds the older file.
        with contextlib.suppress(OSError):
            write_file(self._path, msgspec.json.encode(self._noted), durable=False)


def _seen(before: Noted | None) -> str:
    return "" if before is None else seen_at(before)


def seen_at(noted: Noted) -> str:
    """When the broker was last known to be there.

    Of an agent that was killed while it was connected, nothing later is known than when that began.
    """
    return noted.since if noted.connected else noted.seen_at


def why_not(noted: Noted | None, *, alive: bool) -> str:
    """Why there is no connection now, as far as the notes tell."""
    if noted is None or (alive and noted.connected):
        return ""
    if alive and noted.connected is None:
        return "no connection since the agent started"
    return "the agent ended without a word" if noted.connected else noted.detail


def retry_in(alive: Noted | None, model: str, now_boot_s: float) -> tuple[float, Reason | None] | None:
    """Seconds until the model's next try, and why it waits; None where no living agent waits for it."""
    retry = alive.retries.get(model) if alive is not None else None
    return None if retry is None else (retry.at_boot_s - now_boot_s, retry.reason)
