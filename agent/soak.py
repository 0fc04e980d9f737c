"""PURE. Whether a release that was just switched to may stay: looks in, one word out.

For: folding what is seen during a soak (the application's health, its systemd unit, throttling, its own
latency) to go on, good, or failed with a reason. The guards are a table, and the first that trips names
the reason. What was wrong before the switch already is no release's fault and trips nothing.
Not for: looking (`agent.soaking` and the adapters), or what a failure leads to (`agent.lifecycle`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from wire.messages import Reason

DETAIL_CHARS_MAX = 1500
GONE = frozenset({"inactive", "deactivating"})
UNSETTLED = frozenset({"activating", *GONE})


class UnitState(Struct, frozen=True, kw_only=True):
    """A systemd unit at one moment, in systemd's own words (systemd.unit(5), org.freedesktop.systemd1(5)).

    Attributes:
        active: `ActiveState`: active, reloading, inactive, failed, activating, deactivating ...
        result: `Result` of its last end: success, exit-code, signal, oom-kill, start-limit-hit ...
        restarts: `NRestarts`: automatic restarts since somebody started it, who sets it to 0; None on a
            systemd before 235, which does not count.
        invocation: `InvocationID`: another with every start.
    """

    active: str
    result: str = ""
    restarts: int | None = None
    invocation: str = ""


class Baseline(Struct, frozen=True, kw_only=True):
    """What was so before the switch; it is journaled, so that a restart of the daemon forgives nothing.

    Attributes:
        boot: the kernel's id of this start of the machine, as `/proc/sys/kernel/random/boot_id` has it.
        flags: throttling flags that were raised; None where nothing could tell.
        unit: the application's unit; None where none is named or nobody could tell.
    """

    boot: str = ""
    flags: tuple[str, ...] | None = None
    unit: UnitState | None = None


class Rules(Struct, frozen=True, kw_only=True):
    """What a soak bears.

    Attributes:
        health_failures_max: failed looks in a row that end it; so many looks at a stopped unit, too.
        restarts_max: automatic restarts of the unit that are still borne.
        throttling: whether a throttling flag that rises ends it.
        latency_ms_p95_max: of the application's own figures; None: they end nothing.
        latency_n_min: of its figures, below which they say nothing.
    """

    health_failures_max: int = 3
    restarts_max: int = 2
    throttling: bool = True
    latency_ms_p95_max: float | None = None
    latency_n_min: int = 200


class Look(Struct, frozen=True, kw_only=True):
    """What is seen at one moment; None is unknown.

    Attributes:
        left_s: of the ordered time, at or below 0 when it is over.
        ill: what the health hook says is wrong.
        unit: the application's unit.
        flags: throttling flags that are raised.
        latency_ms_p95: that the application measured with this release.
        latency_n: of how many inferences.
    """

    left_s: float
    ill: str | None = None
    unit: UnitState | None = None
    flags: tuple[str, ...] | None = None
    latency_ms_p95: float | None = None
    latency_n: int = 0


class Watch(Struct, frozen=True, kw_only=True):
    """The fold's state.

    Attributes:
        baseline: before the switch.
        ill: failed looks in a row.
        gone: looks in a row at a unit that ran before the switch and does not run now.
        restarts: automatic restarts since the switch.
        counted: `NRestarts` of the last look that had one.
        result: how the unit last ended, as far as a look fell between an end and the next start, which
            sets it to success again.
    """

    baseline: Baseline = Baseline()
    ill: int = 0
    gone: int = 0
    restarts: int = 0
    counted: int | None = None
    result: str = ""


class Verdict(Struct, frozen=True, kw_only=True):
    """What a look comes to."""

    word: Literal["go_on", "good", "failed"]
    reason: Reason | None = None


def resumed(baseline: Baseline, now: Baseline) -> Baseline:
    """The baseline of a soak that goes on after the daemon started again.

    Where the machine started meanwhile, its flags and systemd's counts began anew: a weak supply raises
    under-voltage at every start, which is no release's fault, and restarts are counted from nothing.
    """
    if baseline.boot == now.boot:
        return baseline
    unit = None if baseline.unit is None else replace(baseline.unit, restarts=0)
    return replace(baseline, boot=now.boot, flags=now.flags, unit=unit)


def begin(baseline: Baseline) -> Watch:
    """The state before the first look."""
    return Watch(baseline=baseline, counted=baseline.unit.restarts if baseline.unit else None)


def look(watch: Watch, seen: Look, rules: Rules) -> tuple[Watch, Verdict]:
    """Takes one look in.

    Returns:
        The state that follows, and whether the soak goes on, is over and good, or failed. Good needs the
        time to be over and nothing wrong at this very moment, however little.
    """
    watch = _counted(watch, seen)
    for code, tripped in GUARDS:
        why = tripped(watch, seen, rules)
        if why is not None:
            reason = Reason(code=code, detail=why[:DETAIL_CHARS_MAX])
            return watch, Verdict(word="failed", reason=reason)
    over = seen.left_s <= 0 and not watch.ill and not _unsettled(watch, seen)
    return watch, Verdict(word="good" if over else "go_on")


def _counted(watch: Watch, seen: Look) -> Watch:
    unit = seen.unit
    restarts, counted = watch.restarts, watch.counted
    if unit is not None and unit.restarts is not None:
        known = unit.restarts if counted is None else counted
        # A count below the last one began anew: somebody, our hook for one, started the unit by hand.
        restarts += unit.restarts - (known if known <= unit.restarts else 0)
        counted = unit.restarts
    return replace(
        watch,
        ill=watch.ill + 1 if seen.ill else 0,
        gone=watch.gone + 1 if _gone(watch, unit) else 0,
        restarts=restarts,
        counted=counted,
        result=watch.result if unit is None or unit.result in {"", "success"} else unit.result,
    )


def _gone(watch: Watch, unit: UnitState | None) -> bool:
    before = watch.baseline.unit
    return unit is not None and before is not None and before.active == "active" and unit.active in GONE


def _unsettled(watch: Watch, seen: Look) -> bool:
    """Whether the unit is between two states; one that did not run before need not run now."""
    unit, before = seen.unit, watch.baseline.unit
    if unit is None or unit.active not in UNSETTLED:
        return False
    return unit.active == "activating" or (before is not None and before.active == "active")


# --- the guards -------------------------------------------------------------------------------------


def _crash_loop(watch: Watch, seen: Look, rules: Rules) -> str | None:
    unit, before = seen.unit, watch.baseline.unit
    if unit is None:
        return None
    if watch.restarts > rules.restarts_max:
        return (
            f"the application's unit was restarted {watch.restarts} times since the switch,"
            f" {rules.restarts_max} are borne; how it ended: {watch.result or 'unknown'}"
        )
    failed_before = before is not None and before.active == "failed" and before.invocation == unit.invocation
    if unit.active == "failed" and not failed_before:
        return f"the application's unit failed: {watch.result or 'unknown'}"
    return None


def _stopped(watch: Watch, seen: Look, rules: Rules) -> str | None:
    if seen.unit is None or watch.gone < rules.health_failures_max:
        return None
    return (
        f"the application's unit ran before the switch and is {seen.unit.active} now,"
        f" at {watch.gone} looks in a row"
    )


def _unhealthy(watch: Watch, seen: Look, rules: Rules) -> str | None:
    if watch.ill < rules.health_failures_max:
        return None
    return f"the application is not well, at {watch.ill} looks in a row: {seen.ill}"


def _throttled(watch: Watch, seen: Look, rules: Rules) -> str | None:
    if not rules.throttling or seen.flags is None or watch.baseline.flags is None:
        return None
    risen = sorted(set(seen.flags) - set(watch.baseline.flags))
    return f"the machine is held back since the switch: {', '.join(risen)}" if risen else None


def _slow(_watch: Watch, seen: Look, rules: Rules) -> str | None:
    limit, measured = rules.latency_ms_p95_max, seen.latency_ms_p95
    if limit is None or measured is None or seen.latency_n < rules.latency_n_min or measured <= limit:
        return None
    return (
        f"the application's own latency p95 is {measured:.4g} ms of {seen.latency_n} inferences,"
        f" {limit:.4g} ms are borne"
    )


Guard = Callable[[Watch, Look, Rules], str | None]

GUARDS: tuple[tuple[str, Guard], ...] = (
    ("unit_crash_loop", _crash_loop),
    ("unit_stopped", _stopped),
    ("health_failed", _unhealthy),
    ("throttled", _throttled),
    ("live_latency_above_limit", _slow),
)
"""Reason and guard; a crash loop comes before the ill health that it causes."""
