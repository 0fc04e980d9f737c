"""PURE. One model's live figures followed through time: reference, window, and when to tell.

For: `observe()`, which takes what the files say now and returns the state that follows and, when it is time,
the event to report. The reference is the soak's counts, or the first after it until there are enough; the
window is what came since the last report that could say yes or no.
Not for: the arithmetic (`agent.live`), or reverting anything.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from agent.live import (
    Counts,
    LiveFile,
    index_limit,
    latency_quantile_ms,
    latency_ratio,
    stability_index,
)
from wire.messages import LiveMeasured

SEEN_MAX = 256
COUNT_MAX = 2**53 - 1
WINDOW_S_MAX = 366 * 86400.0


class DriftRules(Struct, frozen=True, kw_only=True):
    """When figures differ, and how often that is told.

    Attributes:
        n_min: counts in window and reference, below which nothing is said about drift.
        latency_ratio_max: how much slower is borne.
        index_max: population stability index of the confidence that is borne.
        report_s: between two reports.
        flip_s: the same where the drift flag changes.
    """

    n_min: int = 200
    latency_ratio_max: float = 1.5
    index_max: float = 0.25
    report_s: float = 900.0
    flip_s: float = 300.0


class Seen(Struct, frozen=True, kw_only=True):
    """A file at the last look."""

    epoch: int
    release: str | None
    counts: Counts


class Track(Struct, frozen=True, kw_only=True):
    """What is known of one model.

    Attributes:
        slot: directory name of the release that it is about.
        reference: the counts to compare with.
        closed: whether the reference is complete.
        window: counts since the last report that said something about drift.
        window_s: over which.
        quiet_s: since the last report.
        drift: as it was last told.
        seen: files at the last look, by name; None before the first look of this run of the daemon, which
            cannot know since when their counts are.
    """

    slot: str
    reference: Counts = Counts()
    closed: bool = False
    window: Counts = Counts()
    window_s: float = 0.0
    quiet_s: float = 0.0
    drift: bool | None = None
    seen: dict[str, Seen] | None = None


class Moment(Struct, frozen=True, kw_only=True):
    """One look.

    Attributes:
        slot: directory name of the active release.
        variant: of it.
        soaking: whether its soak is going on.
        elapsed_s: since the last look.
        trial_ms_p95: of its trial here; None is unknown.
        may_tell: whether a report would go out now.
    """

    slot: str
    variant: str
    soaking: bool
    elapsed_s: float
    trial_ms_p95: float | None = None
    may_tell: bool = True


def observe(
    track: Track | None, files: dict[str, LiveFile], moment: Moment, rules: DriftRules
) -> tuple[Track, LiveMeasured | None]:
    """Takes a look in; another release begins a new track, in which old counts do not count."""
    if track is None:
        track = Track(slot=moment.slot)
    elif track.slot != moment.slot:
        track = Track(slot=moment.slot, seen=track.seen)
    if not track.closed and not moment.soaking and track.reference.n >= rules.n_min:
        track = replace(track, closed=True, window_s=0.0)
    new = _new_counts(track, files)
    if track.closed:
        track = replace(track, window=track.window.plus(new))
    else:
        track = replace(track, reference=track.reference.plus(new))
    track = replace(
        track,
        seen=_remembered(track.seen or {}, files),
        window_s=min(track.window_s + moment.elapsed_s, WINDOW_S_MAX),
        quiet_s=track.quiet_s + moment.elapsed_s,
    )
    return _tell(track, moment, rules)


def _new_counts(track: Track, files: dict[str, LiveFile]) -> Counts:
    """What the files counted with this release since the last look."""
    total = Counts()
    if track.seen is None:
        return total
    for name, file in files.items():
        if file.release not in {None, track.slot}:
            continue
        before = track.seen.get(name)
        same = before is not None and (before.epoch, before.release) == (file.epoch, file.release)
        # A count that fell is a lie or a mistake: what it says now is where the next look begins.
        new = file.counts().since(before.counts) if before is not None and same else file.counts()
        total = total.plus(new or Counts())
    return total


def _remembered(seen: dict[str, Seen], files: dict[str, LiveFile]) -> dict[str, Seen]:
    """The files as they are now; those that are gone are kept a while, for they may come back."""
    now = {
        name: Seen(epoch=file.epoch, release=file.release, counts=file.counts())
        for name, file in files.items()
    }
    gone = {name: file for name, file in seen.items() if name not in now}
    kept = list({**gone, **now}.items())
    return dict(kept[-SEEN_MAX:])


# --- telling ----------------------------------------------------------------------------------------


def _tell(track: Track, moment: Moment, rules: DriftRules) -> tuple[Track, LiveMeasured | None]:
    shown = track.window if track.closed else track.reference
    if not moment.may_tell or track.quiet_s < min(rules.report_s, rules.flip_s) or not shown.n:
        return track, None
    told = measured(track, moment, rules)
    flips = told.drift is not None and told.drift != bool(track.drift)
    if track.quiet_s < (rules.flip_s if flips else rules.report_s):
        return track, None
    track = replace(track, quiet_s=0.0, drift=track.drift if told.drift is None else told.drift)
    if told.drift is not None:
        track = replace(track, window=Counts(), window_s=0.0)
    return track, told


def measured(track: Track, moment: Moment, rules: DriftRules) -> LiveMeasured:
    """The figures of the window, or of the reference while that is not complete."""
    shown = track.window if track.closed else track.reference
    p95 = latency_quantile_ms(shown, 0.95)
    ratio, index, drifted, known = _compared(track, rules)
    return LiveMeasured(
        variant=moment.variant,
        window_s=track.window_s,
        latency_n=min(shown.latency_n, COUNT_MAX),
        latency_ms_p50=latency_quantile_ms(shown, 0.5),
        latency_ms_p95=p95,
        confidence_n=min(shown.confidence_n, COUNT_MAX),
        confidence_mean=shown.confidence_mean(),
        drift=bool(drifted) if known else None,
        drifted=drifted,
        latency_ratio=ratio,
        latency_ratio_to_trial=p95 / moment.trial_ms_p95 if p95 and moment.trial_ms_p95 else None,
        confidence_psi=index,
        reference_n=min(track.reference.n, COUNT_MAX),
    )


Kind = Literal["latency", "confidence"]


def _compared(track: Track, rules: DriftRules) -> tuple[float | None, float | None, tuple[Kind, ...], bool]:
    """Ratio of latency, index of confidence, what of them drifts, and whether either could be told."""
    window, reference = track.window, track.reference
    ratio = index = None
    drifted: list[Kind] = []
    if min(window.latency_n, reference.latency_n) >= rules.n_min:
        ratio = latency_ratio(window, reference)
        if ratio is not None and ratio > rules.latency_ratio_max:
            drifted.append("latency")
    n, m = window.confidence_n, reference.confidence_n
    if min(n, m) >= rules.n_min:
        index, groups = stability_index(window.confidence, reference.confidence)
        if index > index_limit(n, m, groups, rules.index_max):
            drifted.append("confidence")
    return ratio, index, tuple(drifted), ratio is not None or index is not None
