"""The loop that owns all state: persist, report, work, event.

For: taking events one at a time, letting `agent.lifecycle` decide, saving before anything is done, and
keeping time. Everything here runs on one thread; others only put something into its queue.
Not for: deciding (`agent.lifecycle`), the work itself (`agent.jobs`), or talking MQTT.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import queue
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from agent import recovery
from agent.deployment import (
    Booted,
    Bounds,
    Cancelled,
    Damaged,
    DeadlinePassed,
    Deployment,
    Event,
    Notice,
    Ticked,
    Work,
)
from agent.errors import DISK_ERRNOS, LifecycleError, StateError
from agent.jobs import Jobs
from agent.journal import JournalFile
from agent.lanes import Lane
from agent.lifecycle import step
from agent.outbox import Outbox
from agent.ports import Clock, Supervisor
from agent.slots import Slots
from agent.statusing import Board
from agent.store import BlobStore
from agent.uplink import Uplink
from wire.messages import MODELS_MAX, OrderRefused, Phase, Reason

log = logging.getLogger(__name__)

Item = Callable[[], object]


class Pace(Struct, frozen=True, kw_only=True):
    """How often the loop does what it does by itself.

    Attributes:
        tick_s: between two looks at the deadlines of work in flight.
        idle_s: longest sleep with nothing in flight.
        save_s: between two saves of time that passed.
        scrub_s: between two looks at what is installed.
        mend_s: until the next look after one whose damage could not be mended.
        save_retry_s: until an event is tried again that could not be saved.
        resend_s: until reports that nobody acknowledged are sent again.
        reports_unacknowledged_max: sent and not acknowledged at once.
        stop_s: how long lanes may take to end.
    """

    tick_s: float = 1.0
    idle_s: float = 10.0
    save_s: float = 60.0
    scrub_s: float = 86400.0
    mend_s: float = 3600.0
    save_retry_s: float = 5.0
    resend_s: float = 60.0
    reports_unacknowledged_max: int = 100
    stop_s: float = 1.5


class Runner:
    """One device. `run()` until `stop()`; `post()` from any thread."""

    def __init__(  # noqa: PLR0913 - it is built once, in agent.app
        self,
        *,
        journal: JournalFile,
        slots: Slots,
        store: BlobStore,
        shards_dir: Path,
        outbox: Outbox,
        uplink: Uplink,
        jobs: Jobs,
        clock: Clock,
        supervisor: Supervisor,
        bounds: Bounds,
        pace: Pace = Pace(),  # noqa: B008 - frozen
        board: Board | None = None,
    ) -> None:
        self._journal = journal
        self._slots = slots
        self._store = store
        self._shards_dir = shards_dir
        self._outbox = outbox
        self._uplink = uplink
        self._jobs = jobs
        self._clock = clock
        self._supervisor = supervisor
        self._bounds = bounds
        self._pace = pace
        self._board = board
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Item]] = []
        self._timer_ids = itertools.count()
        self._lanes: dict[str, Lane] = {}
        self._state = recovery.load(journal, slots)
        self._models: dict[str, Deployment] = dict(self._state.models)
        self._ticked_s: dict[str, float] = {}
        self._late_s: dict[str, float] = {}
        self._to_mend: set[str] = set()
        self._saved_s = clock.boot_s()
        self._sent_up_to = 0
        self._resend_at_s = 0.0
        self._stopping = False

    # --- what other threads and modules may ask

    def post(self, item: Item) -> None:
        """Puts something into the loop's queue; any thread."""
        self._queue.put(item)

    def stop(self) -> None:
        """Ends the loop after what is being handled now; any thread, signal handlers too."""
        self._stopping = True
        self._queue.put(lambda: None)

    @property
    def models(self) -> dict[str, Deployment]:
        """Every model's deployment; for the loop's own thread."""
        return self._models

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that the last believed desired document named."""
        return self._state.groups

    def set_groups(self, groups: tuple[str, ...]) -> None:
        """Remembers the groups of a believed desired document."""
        if groups != self._state.groups:
            self._state = replace(self._state, groups=groups)
            self._save(self._models)

    # --- the loop

    def run(self) -> None:
        """Boots every model into its saved phase, then handles events until `stop()`."""
        self._boot()
        self._supervisor.status(_summary(self._models))
        self._supervisor.ready()
        while not self._stopping:
            try:
                item = self._queue.get(timeout=self._sleep_s())
            except queue.Empty:
                pass
            else:
                self._guarded(item)
            self._guarded(self._due)
        self._close()

    def _guarded(self, item: Item) -> None:
        try:
            item()
        except Exception as error:
            # The loop outlives its own mistakes; the state it holds is the last that was saved.
            if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
                log.error("the disk refused what an event needs: %s", error)  # noqa: TRY400 - it says all
            else:
                log.exception("an event could not be handled")

    def _boot(self) -> None:
        for model in list(self._models):
            for act in (self._reconcile, self._reenter, self._flush, self._tidy_model):
                self._guarded(functools.partial(act, model))
        self._guarded(self._tidy_content)
        self._scrub()

    def _scrub(self) -> None:
        """Looks at everything installed, at the start and then now and again."""
        self.after(self._pace.scrub_s, self._scrub)
        for model in list(self._models):
            self._look(model)

    def _look(self, model: str) -> None:
        """On the model's lane, where an order that comes calls it off."""
        d = self._models[model]
        if d.phase is not Phase.IDLE or d.active is None:
            return
        self._guarded(functools.partial(self._reconcile, model))

        def emit(event: Event) -> None:
            self.post(lambda: self._looked(model, event))

        lane = self._lanes.setdefault(model, Lane(model))
        lane.submit(lambda cancel: self._jobs.look(d, cancel, emit))

    def _looked(self, model: str, event: Event) -> None:
        self.apply(model, event)
        if isinstance(event, Damaged) and all(hurt.repaired for hurt in event.hurts):
            self._tidy_content()
        elif model not in self._to_mend:
            # One chain of looks for each model: the daily look finds the same damage again.
            self._to_mend.add(model)
            self.after(self._pace.mend_s, lambda: self._look_again(model))

    def _look_again(self, model: str) -> None:
        self._to_mend.discard(model)
        self._look(model)

    def _tidy_model(self, model: str) -> None:
        """A crash may have come between the end of an order and the removal of what it left."""
        d = self._models[model]
        if d.phase is Phase.IDLE:
            self._lanes.setdefault(model, Lane(model)).append(lambda _cancel: self._jobs.tidy(d))

    def _reenter(self, model: str) -> None:
        self.apply(model, Booted())

    def _reconcile(self, model: str) -> None:
        """`current` says what the journal says, whatever a crash or a hand left there."""
        d = self._models[model]
        restored = d.restore.previous if d.phase is Phase.REVERTING and d.restore else d.previous
        try:
            self._slots.activate(model, d.current, restored)
        except StateError as error:
            log.error("%s: %s", model, error)  # noqa: TRY400 - the look that follows says what becomes of it

    def _sleep_s(self) -> float:
        now_s = self._clock.boot_s()
        sleep_s = self._pace.tick_s if self._in_flight() else self._pace.idle_s
        sleep_s = min(sleep_s, self._supervisor.within_s)
        if self._timers:
            sleep_s = min(sleep_s, self._timers[0][0] - now_s)
        return max(0.0, sleep_s)

    def _in_flight(self) -> list[str]:
        return [model for model, d in self._models.items() if d.phase is not Phase.IDLE]

    def _due(self) -> None:
        now_s = self._clock.boot_s()
        while self._timers and self._timers[0][0] <= now_s:
            self._guarded(heapq.heappop(self._timers)[2])
        for model in self._in_flight():
            if now_s - self._ticked_s.get(model, now_s) >= self._pace.tick_s:
                self._tick(model)
                if self._models[model].left_s <= 0 and now_s >= self._late_s.get(model, now_s):
                    self.apply(model, DeadlinePassed())
        if self._in_flight() and now_s - self._saved_s >= self._pace.save_s:
            # A full disk must not keep the watchdog from being fed; the next try is as far away as this one.
            self._saved_s = now_s
            self._guarded(lambda: self._save(self._models))
        if now_s >= self._resend_at_s:
            self._resend_at_s = now_s + self._pace.resend_s
            self._sent_up_to = 0
            for model in [name for name, d in self._models.items() if d.notices]:
                self._guarded(functools.partial(self._flush, model))
            self.send_reports()
        self._supervisor.alive()

    def after(self, delay_s: float, item: Item) -> None:
        """Does something later, on the loop's thread."""
        heapq.heappush(self._timers, (self._clock.boot_s() + delay_s, next(self._timer_ids), item))

    # --- events

    def apply(self, model: str, event: Event) -> tuple[Notice, ...] | None:
        """Lets an event happen: decide, persist, report, work.

        Returns:
            What it gave rise to report; None where it could not be saved and has yet to happen.
        """
        before = self._models.get(model)
        if before is None:
            crowded = self._crowded(model)
            if crowded is not None:
                self.notice(model, crowded)
                return (crowded,)
            before = Deployment(model=model)
        elif before.phase is not Phase.IDLE:
            before = self._tick(model)
        try:
            after, work = step(before, event, self._bounds)
        except LifecycleError as error:
            log.error("%s: %s", model, error)  # noqa: TRY400 - the message says all
            return ()
        if after == before and work is None:
            return ()
        try:
            self._save({**self._models, model: after})
        except OSError as error:
            log.error("cannot save, %s waits: %s", type(event).__name__, error)  # noqa: TRY400
            self._later(before, event)
            return None
        self._models[model] = after
        noticed = tuple(notice for notice in after.notices if notice not in before.notices)
        # What cannot be told now stays in the journal; it never holds the work up.
        self._guarded(functools.partial(self._flush, model))
        self._guarded(lambda: self._uplink.send_reported(self._models))
        if self._board is not None and after.trial is not None and after.trial is not before.trial:
            self._board.trialed(model)
        self._begin(model, before, after, work)
        return noticed

    def _crowded(self, model: str) -> Notice | None:
        """Why no model more can be carried; one that nothing was ever installed of gives way to it.

        Else whoever once held an order key could fill the table for ever with names that mean nothing.
        """
        if len(self._models) < MODELS_MAX:
            return None
        for name, d in self._models.items():
            if d.phase is Phase.IDLE and d.active is None and d.previous is None and not d.notices:
                del self._models[name]
                lane = self._lanes.pop(name, None)
                if lane is not None:
                    lane.end()
                return None
        detail = f"this agent carries {MODELS_MAX} models at most, and has them"
        log.error("%s is refused: %s", model, detail)
        return Notice(event=OrderRefused(reason=Reason(code="too_many_models", detail=detail)))

    def _later(self, d: Deployment, event: Event) -> None:
        """Tries an event again that could not be saved, as long as it is about what it was about."""
        model, orders = d.model, _orders(d)
        if isinstance(event, DeadlinePassed):
            # The clock finds it again; a timer for each time it did would end the orders that follow.
            self._late_s[model] = self._clock.boot_s() + self._pace.save_retry_s
            return

        def again() -> None:
            known = self._models.get(model)
            if not isinstance(event, Cancelled) or (known is not None and orders == _orders(known)):
                self.apply(model, event)

        self.after(self._pace.save_retry_s, again)

    def _tick(self, model: str) -> Deployment:
        now_s = self._clock.boot_s()
        elapsed_s = now_s - self._ticked_s.get(model, now_s)
        self._ticked_s[model] = now_s
        if elapsed_s > 0:
            self._models[model], _ = step(self._models[model], Ticked(elapsed_s=elapsed_s), self._bounds)
        return self._models[model]

    def _save(self, models: dict[str, Deployment]) -> None:
        self._journal.save(replace(self._state, models=models))
        self._saved_s = self._clock.boot_s()

    def _flush(self, model: str) -> None:
        """Journaled notices become reports in the outbox."""
        d = self._models[model]
        for notice in d.notices:
            self._outbox.add(self._uplink.report(self._outbox.next_number(), model, notice))
        self._models[model] = replace(d, notices=())
        self.send_reports()

    def notice(self, model: str | None, notice: Notice) -> None:
        """Reports something that is no change of a deployment."""
        self._outbox.add(self._uplink.report(self._outbox.next_number(), model, notice))
        self.send_reports()

    # --- work

    def _begin(self, model: str, before: Deployment, after: Deployment, work: Work | None) -> None:
        lane = self._lanes.setdefault(model, Lane(model))
        if self._board is not None and work is not None and work.after_s > 0:
            self._board.waiting(model, work.after_s, after.reason)
        elif self._board is not None and after.serial != before.serial:
            self._board.working(model)
        if after.serial != before.serial and work is None:
            lane.cancel()
        if after.phase is not before.phase or after.order != before.order:
            log.info("%s: %s (order %d)%s", model, after.phase, after.order, _why(after))
            self._supervisor.status(_summary(self._models))
        if after.phase is Phase.IDLE:
            self._ticked_s.pop(model, None)
            if before.phase is not Phase.IDLE:
                lane.append(lambda _cancel: self._jobs.tidy(after))
                self._tidy_content()
            return
        self._ticked_s.setdefault(model, self._clock.boot_s())
        if work is None:
            return
        if work.after_s > 0:
            lane.cancel()
            self.after(work.after_s, lambda: self._start(model, work))
        else:
            self._start(model, work)

    def _start(self, model: str, work: Work) -> None:
        d = self._models[model]
        if d.serial != work.serial:
            return

        def emit(event: Event) -> None:
            self.post(lambda: self._outcome(model, event))

        try:
            self._lanes[model].submit(lambda cancel: self._jobs.run(d, work, cancel, emit))
        except RuntimeError as error:
            log.error("%s: %s waits for a thread: %s", model, work.phase, error)  # noqa: TRY400
            self.after(self._pace.save_retry_s, lambda: self._start(model, work))

    def _outcome(self, model: str, event: Event) -> None:
        self.apply(model, event)

    def _tidy_content(self) -> None:
        """Blobs and shards are for work in flight; installed releases hold their own files."""
        if self._in_flight():
            return
        self._store.prune(())
        if self._shards_dir.is_dir():
            for path in self._shards_dir.iterdir():
                path.unlink(missing_ok=True)

    # --- reports

    def send_reports(self) -> None:
        """Sends what is not acknowledged and was not sent on this connection yet."""
        if not self._uplink.connected:
            return
        for report in self._outbox.pending(self._pace.reports_unacknowledged_max):
            if report.number > self._sent_up_to and self._uplink.send_report(report):
                self._sent_up_to = report.number

    def acknowledged(self, number: int) -> None:
        """The registry has the reports up to `number`."""
        if self._outbox.acknowledge(number):
            self.send_reports()

    def begin_connection(self) -> None:
        """A new connection: everything not acknowledged is sent again."""
        self._sent_up_to = 0
        self._resend_at_s = self._clock.boot_s() + self._pace.resend_s
        self.send_reports()

    def _close(self) -> None:
        self._guarded(lambda: self._save(self._models))
        for lane in self._lanes.values():
            lane.cancel()
        for lane in self._lanes.values():
            if not lane.close(self._pace.stop_s):
                log.warning("a piece of work did not end in time; it is taken up again at the next start")


def _orders(d: Deployment) -> tuple[int, int | None]:
    """The order that was taken up last, and the one that waits: a document that came since changes one."""
    return d.order, d.waiting.desired.order if d.waiting else None


def _summary(models: dict[str, Deployment]) -> str:
    """One line for `systemctl status`."""
    said = (
        f"{m} {d.active.release if d.active else 'without a release'}, {d.phase}" for m, d in models.items()
    )
    return "; ".join(said) or "no models yet"


def _why(d: Deployment) -> str:
    words = [str(d.outcome)] if d.outcome else []
    if d.reason:
        words.append(f"{d.reason.code}: {d.reason.detail}")
    return f": {', '.join(words)}" if words else ""


def refusal_in(notices: tuple[Notice, ...] | None) -> OrderRefused | None:
    """The refusal among what an event gave rise to, if it was refused."""
    return next((n.event for n in notices or () if isinstance(n.event, OrderRefused)), None)
