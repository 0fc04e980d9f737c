"""What the agent asks of the world, as small Protocols.

For: the seams at which tests put an in-memory twin (tests/agent/twins.py) and `agent.app` the real thing
from `agent.adapters`.
Not for: any implementation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from agent.live import LiveFile
from agent.metering import LocalTime
from agent.soak import UnitState
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


class Onlooker(Protocol):
    """Who wants to know when this device spoke to the fleet; called on the runner's thread."""

    def greeted(self) -> None:
        """This device introduced itself on a new connection, or was asked to."""

    def reported(self, models: Iterable[str]) -> None:
        """The state of these models was reported."""


class Clock(Protocol):
    """Time."""

    def boot_s(self) -> float:
        """Seconds since the machine started, sleep included (CLOCK_BOOTTIME); durations use this."""

    def now_text(self) -> str:
        """Wall-clock time as RFC 3339 in UTC: information only."""

    def local(self) -> LocalTime:
        """The time of day where this machine stands, and whether it is known to be right."""


class Randomness(Protocol):
    """Chance."""

    def unit(self) -> float:
        """A number in [0, 1)."""


class Keys(Protocol):
    """Key pairs of Ed25519 (RFC 8032)."""

    def new_seed(self) -> bytes:
        """A private key, 32 bytes."""

    def public_of(self, seed: bytes) -> bytes:
        """Its public key, 32 bytes."""

    def sign(self, seed: bytes, message: bytes) -> bytes:
        """Its signature, 64 bytes."""


class Registry(Protocol):
    """The registry's enrolment over HTTPS."""

    def authorities(self, url: str) -> bytes:
        """Certificates in PEM, from a server that is not checked.

        Raises:
            AgentError, WireError: by name.
        """

    def post(self, url: str, path: str, body: bytes, authorities_pem: str) -> tuple[int, bytes]:
        """Status and body of the answer of a server that one of the authorities vouches for.

        Raises:
            AgentError, WireError: by name.
        """


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


class Units(Protocol):
    """The services of the applications, as systemd sees them."""

    def state(self, model: str) -> UnitState | None:
        """Of the model's unit; None where none is named or nobody can tell."""

    def problem(self, model: str) -> str | None:
        """Why the state of a unit that is named cannot be told; None if it can, or none is named."""

    def activates(self, model: str) -> bool:
        """Whether the application is told of a switch through its unit alone."""


class LiveSource(Protocol):
    """Where applications leave their live figures."""

    @property
    def there(self) -> bool:
        """Whether any could be there."""

    def read(self, models: Iterable[str]) -> dict[str, dict[str, LiveFile]]:
        """The usable files of each model, by name."""


class TrialRunner(Protocol):
    """Trials in a process that ends."""

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        """Measures a candidate.

        Raises:
            AgentError: it did not load, hung, or broke; `lasting` says whether to try again.
        """


class DeltaRunner(Protocol):
    """Deltas applied in a process that ends."""

    def apply(self, base: Path, delta: Path, output: Path, size_bytes: int, cancel: threading.Event) -> None:
        """Writes `output`, of `size_bytes`, from `base` and `delta`; the caller hashes it.

        Raises:
            AgentError: by name; no output then, or one that is not right.
            Cancelled: `cancel` was set.
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
