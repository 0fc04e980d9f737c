"""Tells the broker who is shut out and who may come again: what was written down, until it is in force.

For: revocations of whole devices, certificates that a newer enrolment replaced, and devices that are back; at
once where somebody waits for it, and again and again by a thread of its own, also after a restart.
Not for: deciding any of it (`fleet.enrolling` writes it down first), or the files of the broker (a `Gate`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from msgspec import Struct

from fleet.ports import Clock, CutOff, Gate, Store, Tx

_LOG = logging.getLogger("shallop.fleet.doorman")

RETRY_S_MIN, RETRY_S_MAX = 5.0, 60.0
LOOK_S = 60.0
"""How often the database is looked at: another registry on it may have written something down."""
STOP_S_MAX = 15.0


class Errand(Struct, frozen=True, kw_only=True):
    """What the broker is not known to do yet about one device.

    Attributes:
        serials: of all its revoked certificates that the broker was not told of.
        living: those of them that have not ended; when they do, by serial number.
        welcome: whether the device itself may come.
        lifted: whether it may come again after it was revoked.
    """

    device: str
    serials: tuple[str, ...]
    living: dict[int, float]
    welcome: bool
    lifted: bool


class Doorman:
    """Runs errands to the broker; one at a time, whoever asks."""

    def __init__(self, store: Store, clock: Clock, gate: Gate) -> None:
        self._store, self._clock, self._gate = store, clock, gate
        self._one_at_a_time = threading.Lock()
        self._something, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="doorman", daemon=True)

    def start(self) -> None:
        """Begins with what a former life of the registry left."""
        self._something.set()
        self._thread.start()

    def stop(self) -> None:
        """Ends after the errand that it is on."""
        self._stopping = True
        self._something.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S_MAX)

    def see_to_within(self, device: str, seconds: float) -> None:
        """The same as `see_to`, but no longer waited for than that; it goes on."""
        if self._is_due(device):
            errand = threading.Thread(target=self.see_to, args=(device,), name="errand", daemon=True)
            errand.start()
            errand.join(seconds)

    def _is_due(self, device: str) -> bool:
        """Without waiting for an errand that somebody else is on."""
        with self._store.begin() as tx:
            return any(errand.device == device for errand in pending(tx, self._clock.now()))

    def see_to(self, device: str) -> CutOff:
        """What is to be done about one device, now; what could not be is tried again by the thread.

        It may take as long as `fleet.ports.Gate` says, and raises nothing.
        """
        try:
            done = self._errands(device)
        except Exception as error:  # noqa: BLE001 - it is written down, and the thread tries again
            _LOG.exception("the broker could not be told of %s", device)
            done = [CutOff(in_force=False, detail=str(error))]
        failed = next((one for one in done if not one.in_force), None)
        if failed is not None:
            self._something.set()
        return failed or CutOff(in_force=True, detail=done[0].detail if done else "the broker knows")

    def see_to_all(self) -> bool:
        """Everything that is to be done; whether all of it is in force.

        Raises:
            ShallopError: the broker's files or the database cannot be used.
        """
        return all(one.in_force for one in self._errands(None))

    def _errands(self, device: str | None) -> list[CutOff]:
        with self._one_at_a_time:
            with self._store.begin() as tx:
                errands = [e for e in pending(tx, self._clock.now()) if device in {None, e.device}]
            return [self._run_errand(errand) for errand in errands]

    def _run_errand(self, errand: Errand) -> CutOff:
        done = CutOff(in_force=True, detail="it has no certificate that lives")
        if errand.living or not errand.welcome:
            done = self._gate.cut_off(errand.device, errand.living)
        if errand.welcome and not self._gate.let_in(errand.device):
            done = CutOff(in_force=False, detail="the broker has not read yet that it may come again")
        if done.in_force:
            with self._store.begin() as tx:
                tx.cut(errand.serials, errand.device, self._clock.now())
                if errand.lifted:
                    tx.drop_lifted(errand.device)
            _LOG.info("the broker knows about %s: %s", errand.device, done.detail)
        return done

    def _run(self) -> None:
        retry_s = RETRY_S_MIN
        while not self._stopping:
            self._something.clear()
            try:
                done = self.see_to_all()
            except Exception:  # noqa: BLE001 - the thread must live on; the failure is logged whole
                _LOG.exception("the broker could not be told who is shut out; it is tried again")
                done = False
            retry_s = RETRY_S_MIN if done else min(2 * retry_s, RETRY_S_MAX)
            # Somebody who asks meanwhile does not hurry a broker that did not answer just now.
            if not done:
                self._pause(retry_s)
            else:
                self._something.wait(LOOK_S)

    def _pause(self, seconds: float) -> None:
        until = threading.Event()
        for _ in range(int(seconds * 2)):
            if self._stopping:
                return
            until.wait(0.5)


def pending(tx: Tx, now: float) -> Iterator[Errand]:
    """Errands that the database knows of, by device."""
    uncut = [held for held in tx.revoked_certificates() if held.cut_at is None]
    revocations, lifted = tx.revocations(), tx.lifted()
    shut_out = {name for name, row in revocations.items() if row.cut_at is None}
    for device in sorted(shut_out | lifted | {held.device for held in uncut}):
        ours = [held for held in uncut if held.device == device]
        yield Errand(
            device=device,
            serials=tuple(held.serial for held in ours),
            living={int(held.serial, 16): held.not_after for held in ours if held.not_after > now},
            welcome=device not in revocations,
            lifted=device in lifted,
        )
