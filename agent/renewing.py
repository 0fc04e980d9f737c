"""PURE. When a device asks for its next certificate, and what follows from the answers.

For: `step(renewing, event) -> (renewing, act)`: the table below says what is possible when; time and chance
come with the events. Times of certificates are seconds since 1970, judged (`agent.signed_time`): a clock that
stands too low delays a renewal no further than to the fleet's last word, and what it then misses shows as the
broker's refusal; one that stands too high makes it early, which costs nothing. Waits run on CLOCK_BOOTTIME.
Not for: keys, files and messages (`agent.renewal`).

    resting --due--> asking --granted--> holding --quiet--> proving --accepted--> resting
       ^                |                                      |
       +--- backoff ----+------------------- rejected ---------+

*Due* is two thirds of the certificate's life and, so that ten thousand devices that were enrolled on one
day do not ask at once, a part of a twelfth of it that is each key's own. A connection is the way to ask;
without one it is HTTPS, and only where the certificate has ended or the broker refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from wire.messages import Reason

DUE, SPREAD = 2 / 3, 1 / 12
ANSWER_S_MAX = 120.0
"""How long an answer is waited for; HTTPS ends by itself well before."""
PROVING_S_MAX = 600.0
"""How long new and old certificate take turns before the registry may be asked again."""
WAIT_S, WAIT_S_MAX = 60.0, 3600.0
SELDOM_S = 86400.0
LASTING = frozenset({"revoked", "unknown_device", "expired_too_long", "bad_proof", "wrong_device"})
"""Refusals that only a person lifts; asked again, but seldom."""
ATTEMPTS_EACH = 3
"""Connections in a row that a new certificate gets, and then the old one, in turn."""


class Phase(StrEnum):
    """Where a renewal stands."""

    RESTING = "resting"
    ASKING = "asking"
    HOLDING = "holding"
    """A new certificate is here; no connection was made with it yet, for the sake of the work in flight."""
    PROVING = "proving"


class Act(StrEnum):
    """What is to be done."""

    ASK_BROKER = "ask_broker"
    ASK_REGISTRY = "ask_registry"
    RECONNECT = "reconnect"


class Renewing(Struct, frozen=True, kw_only=True):
    """One device's renewal.

    Attributes:
        not_before_s: of the certificate that was last accepted.
        not_after_s: of it.
        place: the key's own in the spread, [0, 1).
        failures: in a row.
        again_boot_s: nothing is asked before.
        until_boot_s: while asking or proving, when that is given up.
        refused: whether the broker has refused the certificate since the last connection.
        why: why there is no new one, or no connection.
    """

    not_before_s: float
    not_after_s: float
    place: float
    phase: Phase = Phase.RESTING
    failures: int = 0
    again_boot_s: float = 0.0
    until_boot_s: float = 0.0
    refused: bool = False
    why: Reason | None = None

    @property
    def due_s(self) -> float:
        """When the next certificate is asked for."""
        return due_s(self.not_before_s, self.not_after_s, self.place)


# --- events -------------------------------------------------------------------------------------------


class Looked(Struct, frozen=True, kw_only=True):
    """Time passed. `quiet`: no work in flight would suffer from a new connection."""

    now_s: float
    boot_s: float
    connected: bool
    quiet: bool


class Granted(Struct, frozen=True, kw_only=True):
    """A certificate came, was found good, and lies on the disk."""


class Failed(Struct, frozen=True, kw_only=True):
    """The registry refused, did not answer, or its answer is not to be believed. `unit`: chance, [0, 1)."""

    reason: Reason
    boot_s: float
    unit: float


class Accepted(Struct, frozen=True, kw_only=True):
    """The broker let this device in with the new certificate, of this life and this place."""

    not_before_s: float
    not_after_s: float
    place: float
    boot_s: float


class Rejected(Struct, frozen=True, kw_only=True):
    """The broker let this device in with the old certificate and not with the new one."""

    reason: Reason
    boot_s: float
    unit: float


class Connected(Struct, frozen=True, kw_only=True):
    """The broker let this device in, with the certificate that it had."""


class Barred(Struct, frozen=True, kw_only=True):
    """The broker refused this device's certificate."""

    reason: Reason


Event = Looked | Granted | Failed | Accepted | Rejected | Connected | Barred
Result = tuple[Renewing, Act | None]


def step(state: Renewing, event: Event) -> Result:
    """What follows. An event that the phase does not know changes nothing: an answer that came too late."""
    handler = TABLE.get((state.phase, type(event)))
    return (state, None) if handler is None else handler(state, event)


def wait_s(failures: int, code: str, unit: float) -> float:
    """Seconds until the next try after so many failures in a row, the last one of this name.

    From half of it on at random, so that devices that failed together do not come back together.
    """
    ceiling_s = SELDOM_S if code in LASTING else min(WAIT_S_MAX, WAIT_S * 2.0 ** min(failures - 1, 16))
    return ceiling_s * (0.5 + 0.5 * unit)


def prefers_new(attempt: int) -> bool:
    """Whether a connection is made with the new certificate; `attempt` counts from 0 since one stood.

    Some with the one and some with the other, in turn, since nobody says which is to blame.
    """
    return attempt // ATTEMPTS_EACH % 2 == 0


# --- the table ----------------------------------------------------------------------------------------


def _rest(state: Renewing, event: Looked) -> Result:
    if event.boot_s < state.again_boot_s:
        return state, None
    asking = replace(state, phase=Phase.ASKING, until_boot_s=event.boot_s + ANSWER_S_MAX)
    if event.connected:
        return (asking, Act.ASK_BROKER) if event.now_s >= state.due_s else (state, None)
    if state.refused or event.now_s >= state.not_after_s:
        return asking, Act.ASK_REGISTRY
    return state, None


def _wait(state: Renewing, event: Looked) -> Result:
    if event.boot_s < state.until_boot_s:
        return state, None
    words = f"the registry did not answer within {ANSWER_S_MAX:.0f} s"
    return _fail(
        state, Failed(reason=Reason(code="no_answer", detail=words), boot_s=event.boot_s, unit=state.place)
    )


def _fail(state: Renewing, event: Failed | Rejected) -> Result:
    failures = state.failures + 1
    again_s = event.boot_s + wait_s(failures, event.reason.code, event.unit)
    after = replace(state, phase=Phase.RESTING, failures=failures, again_boot_s=again_s, why=event.reason)
    return after, None


def _hold(state: Renewing, _event: Granted) -> Result:
    return replace(state, phase=Phase.HOLDING, why=None), None


def _prove(state: Renewing, event: Looked) -> Result:
    if event.quiet or not event.connected or event.now_s >= state.not_after_s:
        until_s = event.boot_s + PROVING_S_MAX
        return replace(state, phase=Phase.PROVING, until_boot_s=until_s), Act.RECONNECT
    return state, None


def _prove_on(state: Renewing, event: Looked) -> Result:
    """No connection with either certificate: where that is for their sake, the registry is asked again."""
    if event.boot_s < state.until_boot_s or event.connected:
        return state, None
    if state.refused or event.now_s >= state.not_after_s:
        until_s = event.boot_s + ANSWER_S_MAX
        return replace(state, phase=Phase.ASKING, until_boot_s=until_s), Act.ASK_REGISTRY
    return state, None


def _lose(state: Renewing, event: Connected) -> Result:
    """A connection, and no new certificate that it could have been made with: its file was lost."""
    return replace(_connect(state, event)[0], phase=Phase.RESTING), None


def _accept(_state: Renewing, event: Accepted) -> Result:
    """The pause is for certificates that live so briefly that the next one is due at once."""
    after = Renewing(
        not_before_s=event.not_before_s, not_after_s=event.not_after_s, place=event.place,
        again_boot_s=event.boot_s + WAIT_S,
    )  # fmt: skip
    return after, None


def _connect(state: Renewing, _event: Connected) -> Result:
    """What the registry refused stays told: that the broker lets one in does not lift it."""
    return replace(state, refused=False, why=None if state.refused else state.why), None


def _bar(state: Renewing, event: Barred) -> Result:
    """What the registry said of it for good says more than the broker can."""
    lasting = state.why is not None and state.why.code in LASTING
    return replace(state, refused=True, why=state.why if lasting else event.reason), None


Handler = Callable[[Renewing, Any], Result]
TABLE: dict[tuple[Phase, type], Handler] = {
    (Phase.RESTING, Looked): _rest,
    (Phase.RESTING, Connected): _connect,
    (Phase.RESTING, Barred): _bar,
    (Phase.RESTING, Accepted): _accept,
    (Phase.RESTING, Rejected): _fail,
    (Phase.ASKING, Looked): _wait,
    (Phase.ASKING, Granted): _hold,
    (Phase.ASKING, Failed): _fail,
    (Phase.ASKING, Connected): _connect,
    (Phase.ASKING, Barred): _bar,
    (Phase.ASKING, Accepted): _accept,
    (Phase.HOLDING, Looked): _prove,
    (Phase.HOLDING, Accepted): _accept,
    (Phase.HOLDING, Rejected): _fail,
    (Phase.HOLDING, Connected): _connect,
    (Phase.HOLDING, Barred): _bar,
    (Phase.PROVING, Looked): _prove_on,
    (Phase.PROVING, Connected): _lose,
    (Phase.PROVING, Barred): _bar,
    (Phase.PROVING, Accepted): _accept,
    (Phase.PROVING, Rejected): _fail,
}


def due_s(not_before_s: float, not_after_s: float, place: float = 0.0) -> float:
    """When a certificate of that life is renewed by the device of that place, seconds since 1970."""
    return not_before_s + (not_after_s - not_before_s) * (DUE + SPREAD * place)
