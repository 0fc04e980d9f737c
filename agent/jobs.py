"""The work of each phase: what `agent.lifecycle` asks for, done, with its outcome as an event.

For: admitting, fetching, verifying, trialing, switching, soaking and reverting, each idempotent, on a
lane's thread and from an immutable snapshot of the deployment.
Not for: deciding what follows (`agent.lifecycle`) or owning state (`agent.runner`).
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.bringing import Bringing, Wanted
from agent.deployment import Admitted, Deployment, Done, Event, Failed, Progressed, Standing, Trialed, Work
from agent.errors import (
    AgentError,
    Cancelled,
    FinalError,
    NotYetError,
    RetryError,
    disk_error,
    reason_of,
)
from agent.fetching import Errand, Fetcher, Sources
from agent.hardware import EXTRA_OF, compatible
from agent.installed import damage
from agent.judging import judged, require_fair
from agent.mending import Mender
from agent.ports import Clock, Hooks, Randomness, TrialLock, TrialRunner
from agent.slots import Slots, file_sha256, write_content
from agent.soaking import Soaking
from agent.trials import Paths, job_for, preferred
from agent.worker.job import TrialSettings
from wire.bundle import File, Manifest, Variant
from wire.errors import ShallopError
from wire.messages import DesiredModel, Hardware, Phase, Reason, RuntimeInfo, Slot

if TYPE_CHECKING:
    from agent.rebuilding import Rebuilder

log = logging.getLogger(__name__)

Emit = Callable[[Event], None]


class Machine(Struct, frozen=True, kw_only=True):
    """What this device can run."""

    hardware: Hardware
    runtimes: tuple[RuntimeInfo, ...] = ()


class Jobs:
    """The seven pieces of work."""

    def __init__(  # noqa: PLR0913 - it is built once, in agent.app, and each is a port
        self,
        *,
        fetcher: Fetcher,
        sources: Sources,
        slots: Slots,
        models_dir: Path,
        shards_dir: Path,
        machine: Machine,
        trial_runner: TrialRunner,
        trial_lock: TrialLock,
        trial_settings: TrialSettings,
        hooks: Hooks,
        clock: Clock,
        random: Randomness,
        soaking: Soaking,
        rebuilder: Callable[[], Rebuilder] | None = None,
        require_not_barred: Callable[[str], None],
        require_ready: Callable[[], None] | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._bringing = Bringing(
            fetcher=fetcher, sources=sources, rebuilder=rebuilder, clock=clock, where=models_dir
        )
        self._sources = sources
        self._slots = slots
        self._models_dir = models_dir
        self._shards_dir = shards_dir
        self._machine = machine
        self._trial_runner = trial_runner
        self._trial_lock = trial_lock
        self._trial_settings = trial_settings
        self._hooks = hooks
        self._clock = clock
        self._random = random
        self._soaking = soaking
        self._mender = Mender(fetcher, sources, slots, models_dir, hooks, require_not_barred)
        self._require_not_barred = require_not_barred
        self._require_ready = require_ready
        self._pieces: dict[Phase, Callable[[Deployment, Work, threading.Event, Emit], Event]] = {
            Phase.ADMITTING: self._admit,
            Phase.FETCHING: self._fetch,
            Phase.VERIFYING: self._verify,
            Phase.TRIALING: self._trial,
            Phase.SWITCHING: self._switch,
            Phase.SOAKING: self._soak,
            Phase.REVERTING: self._revert,
        }

    def run(self, d: Deployment, work: Work, cancel: threading.Event, emit: Emit) -> None:
        """Does a piece of work and emits its outcome; one that was called off has none."""
        try:
            outcome = self._pieces[work.phase](d, work, cancel, emit)
        except Cancelled:
            return
        except NotYetError as error:
            outcome = self._not_yet(d, work, error)
        except ShallopError as error:
            outcome = self._failed(work, reason_of(error))
        except OSError as error:
            outcome = self._failed(work, reason_of(disk_error("to the disk", error)))
        except Exception as error:
            # A mistake of ours must end as a named outcome too, never as a state without one.
            log.exception("%s of %s broke", work.phase, d.model)
            detail = f"{type(error).__name__}: {error}"[:500]
            outcome = self._failed(work, Reason(code="internal_error", detail=detail))
        if not cancel.is_set():
            emit(outcome)

    def _failed(self, work: Work, reason: Reason) -> Failed:
        log.warning("%s failed: %s: %s", work.phase, reason.code, reason.detail)
        return Failed(serial=work.serial, reason=reason, jitter=self._random.unit())

    def _not_yet(self, d: Deployment, work: Work, error: NotYetError) -> Failed:
        reason = reason_of(error)
        # It may be looked at all day long: one line for each cause that it waits for, and at each start.
        if d.reason is None or d.reason.code != reason.code or d.boots > 0:
            log.info("%s waits: %s: %s", d.model, reason.code, reason.detail)
        return Failed(
            serial=work.serial, reason=reason, jitter=self._random.unit(), not_yet=True,
            again_s_max=error.again_s_max,
        )  # fmt: skip

    def tidy(self, d: Deployment) -> None:
        """Removes the release directories that this deployment does not need."""
        if d.phase is Phase.IDLE:
            self._bringing.forget(d.model)
        for name in self._slots.prune(d.model, d.kept):
            log.info("removed %s of %s", name, d.model)

    def look(self, d: Deployment, cancel: threading.Event, emit: Emit) -> None:
        """Looks at what is installed, mends it, and emits what was found, if anything was."""
        try:
            found = self._mender.look(d, cancel)
        except Cancelled:
            return
        if found is not None and not cancel.is_set():
            emit(found)

    # --- before the switch

    def _admit(self, d: Deployment, work: Work, cancel: threading.Event, emit: Emit) -> Event:
        # The order may be older than the bar: one that was waiting, or what damage made this device leave.
        self._require_not_barred(_desired(d).digest)
        if _desired(d).mode == "deploy":
            self._soaking.admit(d.model)
        _, manifest = self._manifest(d, work, cancel, emit)
        wanted = _desired(d)
        if any(index >= len(manifest.validation) for index in wanted.shards):
            raise FinalError("no_shard", "the order names a validation shard that the release does not have")
        allowed = wanted.variants or preferred(manifest)
        refused = []
        for name in allowed:
            why = self._unfit(manifest.variant(name))
            if why is not None:
                refused.append((name, why))
        # Last, so that an order which can never be met is refused at once and not after a night's wait.
        if self._require_ready is not None and len(refused) < len(allowed):
            self._require_ready()
        return Admitted(serial=work.serial, variants=allowed, refused=tuple(refused))

    def _unfit(self, variant: Variant | None) -> Reason | None:
        """Why this machine cannot run a variant; None if it can."""
        if variant is None:
            return Reason(code="no_variant", detail="the release has no such variant")
        if variant.runtime not in {runtime.name for runtime in self._machine.runtimes}:
            return Reason(code="incompatible", detail=_not_installed(variant.runtime))
        why = compatible(variant.requires, self._machine.hardware)
        return Reason(code="incompatible", detail=why) if why else None

    def _manifest(
        self, d: Deployment, work: Work, cancel: threading.Event, emit: Emit
    ) -> tuple[bytes, Manifest]:
        def progress(missing: tuple[str, ...], stored: bool) -> None:
            emit(Progressed(serial=work.serial, missing=missing, stored=stored))

        return self._fetcher.manifest(d.model, _desired(d).digest, cancel, progress)

    def _files(self, d: Deployment, manifest: Manifest) -> tuple[Slot, tuple[File, ...], tuple[File, ...]]:
        """The candidate, its files and the shards of its trial."""
        slot = d.candidate
        variant = manifest.variant(slot.variant) if slot else None
        if slot is None or variant is None:
            raise FinalError("no_variant", "there is no variant left to try")
        indices = _desired(d).shards or range(len(manifest.validation))
        return slot, variant.files, tuple(manifest.validation[index].file for index in indices)

    def _fetch(self, d: Deployment, work: Work, cancel: threading.Event, emit: Emit) -> Event:
        def progress(missing: tuple[str, ...], stored: bool) -> None:
            emit(Progressed(serial=work.serial, missing=missing, stored=stored))

        _, manifest = self._manifest(d, work, cancel, emit)
        slot, files, shards = self._files(d, manifest)
        self.tidy(d)
        placed = {file.sha256 for file in files if self._slots.directory(d.model, slot).exists()}
        placed |= {shard.sha256 for shard in shards if (self._shards_dir / shard.sha256).exists()}
        wanted = Wanted(files=files, shards=shards, standing=frozenset(placed))
        fetched = self._bringing.bring(d.model, _desired(d), wanted, Errand(cancel, progress))
        return Done(serial=work.serial, fetched=fetched)

    def _verify(self, d: Deployment, work: Work, cancel: threading.Event, emit: Emit) -> Event:
        data, manifest = self._manifest(d, work, cancel, emit)
        slot, _, shards = self._files(d, manifest)
        self._sources.refresh()
        self._slots.assemble(d.model, slot, (data, manifest), self._sources.read, self._sources.built)
        for shard in shards:
            self._build_shard(shard)
        return Done(serial=work.serial)

    def _build_shard(self, shard: File) -> None:
        final = self._shards_dir / shard.sha256
        if final.exists() and file_sha256(final) == shard.sha256:
            return
        self._shards_dir.mkdir(parents=True, exist_ok=True)
        part = final.with_name(final.name + ".part")
        write_content(part, shard, self._sources.read)
        part.replace(final)

    def _trial(self, d: Deployment, work: Work, cancel: threading.Event, emit: Emit) -> Event:
        _, manifest = self._manifest(d, work, cancel, emit)
        slot, _, shards = self._files(d, manifest)
        variant = manifest.variant(slot.variant)
        if variant is None:
            raise FinalError("no_variant", f"the manifest has no variant {slot.variant}")
        paths = Paths(
            candidate=self._slots.directory(d.model, slot),
            incumbent=self._slots.directory(d.model, d.active) if d.active else None,
            shards=self._shards_dir,
        )
        self._check(paths.candidate, slot, shards)
        incumbent = self._slots.info(d.model, paths.incumbent.name) if paths.incumbent else None
        wanted = _desired(d)
        job = job_for(manifest, variant, wanted.digest, wanted.shards, paths, incumbent, self._trial_settings)
        with self._trial_lock.hold(cancel):
            result = self._trial_runner.run(job, cancel)
        summary = judged(result, manifest, variant)
        if wanted.mode == "deploy":
            require_fair(summary)
        return Trialed(serial=work.serial, trial=summary)

    def _check(self, candidate: Path, slot: Slot, shards: tuple[File, ...] = ()) -> None:
        """What was put together may not be what is there now: a restart or years may lie between.

        Raises:
            RetryError: `slot_damaged`: it has to be put together again.
        """
        hurt = damage(candidate, slot)
        try:
            gone = [s.path for s in shards if file_sha256(self._shards_dir / s.sha256) != s.sha256]
        except OSError as error:
            gone = [str(error)]
        if hurt or gone:
            raise RetryError("slot_damaged", f"what was put together did not last: {hurt or gone[0]}")

    # --- from the switch on

    def _switch(self, d: Deployment, work: Work, cancel: threading.Event, _emit: Emit) -> Event:
        candidate, restore = d.candidate, d.restore or Standing()
        if candidate is None:
            raise FinalError("no_variant", "there is no candidate to switch to")
        self._require_not_barred(candidate.digest)
        hurt = damage(self._slots.directory(d.model, candidate), candidate)
        if hurt:
            raise FinalError("release_damaged", f"the candidate is not switched to: {hurt}")
        if work.undo:
            self._activate(d, restore.active, restore.previous)
        baseline = self._soaking.baseline(d.model)
        self._activate(d, candidate, restore.active)
        self._hooks.activate(d.model, self._current(d.model), cancel)
        return Done(serial=work.serial, baseline=baseline)

    def _activate(self, d: Deployment, active: Slot | None, previous: Slot | None) -> None:
        """A symlink needs a block now and then; on a full disk the candidate's blobs make way for it."""
        try:
            self._slots.activate(d.model, active, previous)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT} or d.desired is None:
                raise
            manifest = self._fetcher.held_manifest(d.model, d.desired.digest)
            files = manifest.all_files() if manifest else ()
            self._sources.discard(chunk.sha256 for file in files for chunk in file.chunks)
            self._slots.activate(d.model, active, previous)

    def _current(self, model: str) -> Path:
        return self._models_dir / model / "current"

    def _soak(self, d: Deployment, work: Work, cancel: threading.Event, _emit: Emit) -> Event:
        return self._soaking.run(d, work, cancel)

    def _revert(self, d: Deployment, work: Work, cancel: threading.Event, _emit: Emit) -> Event:
        restore, untold = d.restore or Standing(), None
        self._activate(d, restore.active, restore.previous)
        if restore.active is not None:
            try:
                self._hooks.activate(d.model, self._current(d.model), cancel)
            except AgentError as error:
                # The last good release stands; that its application does not answer is told, and no
                # reason to leave it again.
                log.error("%s went back, and its hook failed: %s", d.model, error)  # noqa: TRY400
                untold = str(error.args[0])
        return Done(serial=work.serial, untold=untold)


def _desired(d: Deployment) -> DesiredModel:
    if d.desired is None:
        raise FinalError("no_order", "there is no order in flight")
    return d.desired


def _not_installed(runtime: str) -> str:
    """PURE. What this device lacks for a variant, and what brings it if Shallop knows that runtime."""
    lacks = f"{runtime} is not installed here"
    if runtime not in EXTRA_OF:
        return lacks
    return f"{lacks}; pip install 'shallop[{EXTRA_OF[runtime]}]' for the Python that runs trials"
