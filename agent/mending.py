"""Looking at what is installed, and putting damaged releases together again from their chunks.

For: one look at a device at rest: the active release and the one before it, each hashed; what is damaged is
rebuilt in place from what lies here, and from the broker where nothing better can be done meanwhile.
Not for: what follows where it cannot be mended (`agent.repair`), or releases in flight: those begin again
with their chunks (`agent.jobs`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from agent import downlink
from agent.admission import room_needed
from agent.deployment import Damaged, Deployment, Hurt
from agent.errors import AgentError, RetryError
from agent.fetching import Errand, Fetcher, Sources
from agent.installed import damage
from agent.ports import Hooks
from agent.slots import Slots
from wire.bundle import Chunk, File, Manifest
from wire.errors import ShallopError, TrustError
from wire.messages import Slot

log = logging.getLogger(__name__)


class Mender:
    """Looks and mends; on a lane's thread."""

    def __init__(
        self, fetcher: Fetcher, sources: Sources, slots: Slots, models_dir: Path, hooks: Hooks,
        require_not_barred: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._fetcher = fetcher
        self._sources = sources
        self._slots = slots
        self._models_dir = models_dir
        self._hooks = hooks
        self._require_not_barred = require_not_barred

    def look(self, d: Deployment, cancel: threading.Event) -> Damaged | None:
        """What was found damaged, and whether it is mended now; None where all is whole.

        The active release is fetched anew only where there is no whole one to go back to meanwhile: a device
        has a working model first, and the newest one second. A barred release is fetched only where there
        is no other: its publisher calls it bad, and a damaged model is worse.

        Raises:
            Cancelled: `cancel` was set: an order came.
        """
        hurt_active, hurt_previous = self._damage(d, d.active), self._damage(d, d.previous)
        found: list[Hurt] = []
        if d.active is not None and hurt_active is not None:
            if d.previous is not None and hurt_previous is not None and self._better(d.previous, d.active):
                found.append(self._mended(d, d.previous, hurt_previous, cancel, fetch=True))
                hurt_previous = None if found[0].repaired else hurt_previous
            way_back = d.previous is not None and hurt_previous is None
            fetch = not way_back or (d.previous is not None and self._better(d.active, d.previous))
            found.append(self._mended(d, d.active, hurt_active, cancel, fetch=fetch))
            if found[-1].repaired:
                self._tell(d.model, cancel)
            if way_back or len(found) > 1:
                return Damaged(hurts=tuple(found))
        if d.previous is not None and hurt_previous is not None:
            fetch = not self._barred(d.previous)
            found.append(self._mended(d, d.previous, hurt_previous, cancel, fetch=fetch))
        return Damaged(hurts=tuple(found)) if found else None

    def _better(self, one: Slot, other: Slot) -> bool:
        return self._barred(other) and not self._barred(one)

    def _barred(self, slot: Slot) -> bool:
        try:
            self._require_not_barred(slot.digest)
        except TrustError:
            return True
        return False

    def _damage(self, d: Deployment, slot: Slot | None) -> str | None:
        return None if slot is None else damage(self._slots.directory(d.model, slot), slot)

    def _mended(self, d: Deployment, slot: Slot, words: str, cancel: threading.Event, *, fetch: bool) -> Hurt:
        log.error("%s: release %s is damaged: %s", d.model, slot.release, words)
        try:
            self._mend(d.model, slot, cancel, fetch=fetch)
        except (ShallopError, OSError) as error:
            log.error("%s: release %s cannot be mended: %s", d.model, slot.release, error)  # noqa: TRY400
            return Hurt(slot=slot, detail=f"{words}; it cannot be mended now: {error}"[:1000])
        log.info("%s: release %s is mended", d.model, slot.release)
        return Hurt(slot=slot, detail=words[:1000], repaired=True)

    def _mend(self, model: str, slot: Slot, cancel: threading.Event, *, fetch: bool) -> None:
        """Puts the release together again, beside itself, and exchanges the two in one step.

        Raises:
            RetryError: chunks are missing.
            ShallopError: the release cannot be had, or is not believed.
        """
        if slot.adopted:
            raise RetryError("adopted", "an adopted file has no chunks anywhere")
        data, manifest = self._manifest(model, slot, cancel, fetch=fetch)
        variant = manifest.variant(slot.variant)
        files = variant.files if variant else ()
        self._sources.refresh()
        lacking = self._fetcher.lacking(files)
        if lacking and not fetch:
            raise RetryError("chunks_missing", f"{len(lacking)} chunks are not on this disk")
        self._bring(files, lacking, cancel)
        self._slots.assemble(model, slot, (data, manifest), self._sources.read, self._sources.built)

    def _manifest(
        self, model: str, slot: Slot, cancel: threading.Event, *, fetch: bool
    ) -> tuple[bytes, Manifest]:
        data = self._slots.manifest_bytes(model, slot)
        if data is not None:
            return data, downlink.manifest(data, model)
        if not fetch:
            raise RetryError("release_missing", "the manifest is not on this disk")
        return self._fetcher.manifest(model, slot.digest, cancel, lambda _missing, _stored: None)

    def _bring(self, files: tuple[File, ...], lacking: tuple[Chunk, ...], cancel: threading.Event) -> None:
        self._fetcher.admit(self._models_dir, room_needed(lacking, files))
        if lacking:
            self._fetcher.chunks(lacking, Errand(cancel, lambda _missing, _stored: None))

    def _tell(self, model: str, cancel: threading.Event) -> None:
        """The application may hold what was damaged."""
        try:
            self._hooks.activate(model, self._models_dir / model / "current", cancel)
        except AgentError as error:
            log.error("%s is mended, and its hook failed: %s", model, error)  # noqa: TRY400
