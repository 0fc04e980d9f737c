"""Follows the applications' live figures while the daemon runs.

For: looking at the directory in a rhythm, on a thread of its own, so that a file system that does not answer
holds nothing else up; keeping each model's reference through restarts; handing events to the runner.
Not for: what the figures mean (`agent.drift`), or how they are read (`agent.adapters.live_files`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.deployment import Deployment, Notice
from agent.drift import DriftRules, Moment, Track, observe
from agent.durable import write_file
from agent.errors import UNREADABLE
from agent.lanes import Lane
from agent.live import LiveFile, latency_quantile_ms
from agent.ports import Clock, LiveSource
from agent.slots import directory_name
from wire.messages import MODELS_MAX, Phase

log = logging.getLogger(__name__)

TRACKS_BYTES_MAX = 4 * 1024 * 1024


class Loop(Protocol):
    """What the watch needs of the runner."""

    @property
    def models(self) -> dict[str, Deployment]:
        """Every model's deployment; for the loop's own thread."""

    def post(self, item: Callable[[], object]) -> None:
        """Does something on the loop's thread."""

    def after(self, delay_s: float, item: Callable[[], object]) -> None:
        """Does something later; for the loop's own thread."""

    def notice(self, model: str | None, notice: Notice) -> None:
        """Reports something; for the loop's own thread."""


class _Saved(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent-live"):
    version: int = 1
    tracks: dict[str, Track] = {}


# Made by the thread that imports this, as in `wire.codec`.
_SAVED = msgspec.json.Decoder(_Saved)


class LiveWatch:
    """All models of one device."""

    def __init__(
        self, *, source: LiveSource, path: Path, clock: Clock, rules: DriftRules, look_s: float
    ) -> None:
        self._source = source
        self._path = path
        self._clock = clock
        self._rules = rules
        self._look_s = look_s
        self._loop: Loop | None = None
        self._lane = Lane("live")
        self._busy = False
        self._looked_s: float | None = None
        self._lock = threading.Lock()
        self._tracks = _load(path)
        self._saved = dict(self._tracks)

    def start(self, loop: Loop, connected: Callable[[], bool]) -> None:
        """Looks every `look_s` from now on; events go out only while there is a connection."""
        self._loop = loop

        def look() -> None:
            self.due(loop.models, connected=connected())
            loop.after(self._look_s, look)

        loop.post(look)

    def due(self, models: Mapping[str, Deployment], *, connected: bool) -> None:
        """Looks, on the watch's own thread, unless the last look is still going on."""
        if self._busy or not models or not self._source.there:
            return
        now_s = self._clock.boot_s()
        elapsed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        moments = {name: _moment(d, elapsed_s, connected) for name, d in models.items()}
        known = {name: (moment, models[name]) for name, moment in moments.items() if moment is not None}
        self._busy = True
        self._lane.append(lambda _cancel: self._look(known))

    def _look(self, known: dict[str, tuple[Moment, Deployment]]) -> None:
        try:
            files = self._source.read(known)
            for model, (moment, d) in known.items():
                self._observe(model, files.get(model, {}), moment, d)
            self._save()
        finally:
            self._busy = False

    def _observe(self, model: str, files: dict[str, LiveFile], moment: Moment, d: Deployment) -> None:
        with self._lock:
            track, event = observe(self._tracks.get(model), files, moment, self._rules)
            self._tracks[model] = track
        loop, active = self._loop, d.active
        if event is None or active is None or loop is None:
            return
        if event.drift:
            log.warning("%s drifts in %s", model, " and ".join(event.drifted))
        notice = Notice(order=active.order, digest=active.digest, event=event)
        loop.post(lambda: loop.notice(model, notice))

    def latency(self, model: str, slot: str) -> tuple[float | None, int]:
        """What the application measured in that release's soak: 95th percentile in ms, and of how many."""
        with self._lock:
            track = self._tracks.get(model)
        if track is None or track.slot != slot:
            return None, 0
        return latency_quantile_ms(track.reference, 0.95), track.reference.latency_n

    def _save(self) -> None:
        """What a restart needs, when it changed for good; a lost file costs a new reference."""
        lasting = {name: replace(track, seen=None, quiet_s=0.0) for name, track in self._tracks.items()}
        if {name: (t.slot, t.closed, t.drift) for name, t in lasting.items()} == {
            name: (t.slot, t.closed, t.drift) for name, t in self._saved.items()
        }:
            return
        self._saved = lasting
        try:
            write_file(self._path, msgspec.json.encode(_Saved(tracks=lasting)), durable=False)
        except OSError as error:
            log.warning("the reference of live figures is not saved: %s", error)

    def close(self, wait_s: float) -> bool:
        """Ends the thread; whether it did in time."""
        return self._lane.close(wait_s)


def _moment(d: Deployment, elapsed_s: float, connected: bool) -> Moment | None:
    if d.active is None or d.phase in {Phase.SWITCHING, Phase.REVERTING}:
        return None
    result = None if d.trial is None else d.trial.result
    mine = result is not None and result.variant == d.active.variant and d.order == d.active.order
    return Moment(
        slot=directory_name(d.active),
        variant=d.active.variant,
        soaking=d.phase is Phase.SOAKING,
        elapsed_s=elapsed_s,
        trial_ms_p95=result.latency.ms_p95 if mine and result is not None and result.latency else None,
        may_tell=connected,
    )


def _load(path: Path) -> dict[str, Track]:
    """The saved tracks; none where there are none that can be used, which costs a new reference."""
    try:
        with path.open("rb") as file:
            # One that was cut here is no JSON any more.
            saved = _SAVED.decode(file.read(TRACKS_BYTES_MAX))
    except FileNotFoundError:
        return {}
    except (OSError, *UNREADABLE) as error:
        log.warning("%s cannot be used, references begin anew: %s", path, error)
        return {}
    return dict(list(saved.tracks.items())[:MODELS_MAX]) if saved.version == 1 else {}
