"""What the agent asks of the world, as small Protocols.

For: the seams at which tests put an in-memory twin (tests/agent/twins.py) and `agent.app` the real thing
from `agent.adapters`.
Not for: any implementation.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from agent.worker.job import TrialJob
from wire.measures import TrialResult


class Transport(Protocol):
    """A connection to the broker that comes and goes by itself. Any thread may call it."""

    @property
    def connected(self) -> bool:
        """Whether messages go out now."""

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        """Hands a message over; False where it was not even queued. Delivery is never certain."""

    def subscribe(self, topics: list[tuple[str, int]]) -> None:
        """Asks for topics with their QoS; retained messages come again on every call."""

    def unsubscribe(self, topics: list[str]) -> None:
        """Asks for these topics no longer."""


class Listener(Protocol):
    """Who is told what the transport hears; called on the transport's thread, must return quickly."""

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will of the connection that is about to be made."""

    def connected(self) -> None:
        """A connection stands; nothing is subscribed on it yet."""

    def disconnected(self, why: str) -> None:
        """The connection is gone; another will be tried."""

    def received(self, topic: str, payload: bytes) -> None:
        """A message came."""


class Clock(Protocol):
    """Time."""

    def boot_s(self) -> float:
        """Seconds since the machine started, sleep included (CLOCK_BOOTTIME); durations use this."""

    def now_text(self) -> str:
        """Wall-clock time as RFC 3339 in UTC: information only."""


class Randomness(Protocol):
    """Chance."""

    def unit(self) -> float:
        """A number in [0, 1)."""


class Disk(Protocol):
    """Space."""

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write where `path` lies."""


class Hooks(Protocol):
    """The application's own commands."""

    def activate(self, model: str, current: Path, cancel: threading.Event) -> None:
        """Tells the application that `current` points to something else; returns when it took it.

        Raises:
            FinalError: `activate_failed` or `activate_timeout`.
            Cancelled: `cancel` was set.
        """

    def healthy(self, model: str, current: Path, cancel: threading.Event) -> str | None:
        """What is wrong with the application, in words; None if it is well or nobody said how to ask.

        Raises:
            Cancelled: `cancel` was set.
        """

    def interval_s(self, model: str) -> float:
        """Seconds between two looks at its health."""


class TrialRunner(Protocol):
    """Trials in a process that ends."""

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        """Measures a candidate.

        Raises:
            AgentError: it did not load, hung, or broke; `lasting` says whether to try again.
        """


class TrialLock(Protocol):
    """One trial at a time on a machine."""

    def hold(self, cancel: threading.Event) -> AbstractContextManager[None]:
        """Waits for the lock.

        Raises:
            Cancelled: `cancel` was set while waiting.
        """


class Supervisor(Protocol):
    """Who started the daemon and watches it."""

    @property
    def within_s(self) -> float:
        """How long `alive` may stay away."""

    def ready(self) -> None:
        """The daemon is at work."""

    def alive(self) -> None:
        """The main loop turns."""

    def status(self, text: str) -> None:
        """One line for people."""

    def stopping(self) -> None:
        """The daemon is going down on purpose."""
