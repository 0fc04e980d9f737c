"""The broker's door: a device that was revoked is refused, and thrown out at once.

For: the port `Gate` on the broker's files and short visits to the broker; the renewal of the certificates of
broker and registry; and finding out whether the broker does what its files say.
Not for: who is revoked (`fleet.enrolment`), nor for keeping a device from obeying or being believed: that is
the registry's, which signs nothing for it and reads nothing of it.

The order, and why (tried with Mosquitto 2.0.11; docs/broker.md):

1. The record, the access list and last the list of revoked certificates are written. Systemd sees the change
   and reloads the broker, some tenths of a second later.
2. Until that has happened the registry connects under the device's name, again and again: the broker takes
   one session of a name, so the device's ends at each time, with its subscriptions and its queue. Its
   certificate still opens the door, so it comes back, until the broker has read the list.
3. Whether it has, the canary says: a certificate that the new list is the first to name. When it is refused
   *as revoked*, the list is in force, and the device cannot come back any more.
4. It may have come back just before. So it is thrown out once more, and only then is it cut off.

A broker that cannot be reached, or that nobody reloads, stays at step 2: the thread goes on, and says so.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fleet.adapters.authority import DAY_S, Authority
from fleet.adapters.broker_files import RENEWED_AT, SERVER_LIFE_S, BrokerFiles, due
from fleet.adapters.broker_tls import Answer, Knock, client_context, context_as, knock
from fleet.broker_rules import CA, PROBE
from fleet.keys import KeysError
from fleet.ports import Clock, CutOff
from fleet.restored import Refusals
from wire.errors import ShallopError

_LOG = logging.getLogger("shallop.fleet.gate")

SETTLE_S_MAX = 10.0
"""How long a person waits to hear that a device is cut off."""
AGAIN_S = 0.2
LISTEN_S = 0.5
PAUSE_S_MAX = 30.0
LOOK_EVERY_S = 3600.0
STOP_S_MAX = 15.0

Address = tuple[str, int]


class BrokerGate:
    """The door of one broker.

    Args:
        files: what the broker reads.
        authority: signs lists and the certificates by which a device is thrown out, until `follow`.
        address: host and port of the broker.
        clock: the registry's.
        reload: makes the broker read its files, where systemd does not.
    """

    def __init__(
        self,
        files: BrokerFiles,
        authority: Authority,
        address: Address,
        clock: Clock,
        *,
        reload: Callable[[], object] = lambda: None,
    ) -> None:
        self._files, self._authority, self._address, self._clock = files, authority, address, clock
        self._reload = reload
        # No file of the broker's is written by an authority that another one follows meanwhile.
        self._writing = threading.Lock()
        self._look_soon = False
        self._waiting: dict[str, int] = {}
        self._asked = itertools.count()
        self._settling = threading.Lock()
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._unsettled: str | None = None
        self._seen: str | None = None

    @property
    def trouble(self) -> str | None:
        """What is wrong at the door, in words; None if nothing is known to be."""
        return self._unsettled or self._seen

    # --- the port -------------------------------------------------------------------------------------

    def cut_off(self, device: str, serials: Mapping[int, float]) -> CutOff:
        """Refuses a device and throws it out; returns when that is so, or SETTLE_S_MAX are over.

        Raises:
            KeysError: the files cannot be written; the broker has read nothing new.
        """
        self._refuse(device, serials)
        settled = self.settle(SETTLE_S_MAX)
        self._wake.set()
        if settled:
            return CutOff(in_force=True, detail="the broker refuses it, and its session is ended")
        return CutOff(in_force=False, detail=self.trouble or "the broker has not read its files yet")

    def _refuse(self, device: str, serials: Mapping[int, float]) -> None:
        with self._writing:
            if not self._files.refuse(device, serials, self._authority, self._clock.now()):
                self._files.show_again()
        self._reload()
        self._wait_for([device])

    def _wait_for(self, devices: Iterable[str]) -> None:
        """These are to be thrown out, also where an earlier list of theirs is just coming into force."""
        for device in devices:
            self._waiting[device] = next(self._asked)

    def let_in(self, device: str) -> bool:
        """A device may come again, by a new certificate; whether the broker knows already.

        Raises:
            KeysError: the files cannot be written.
        """
        self._waiting.pop(device, None)
        with self._writing:
            if not self._files.allow(device, self._authority, self._clock.now()):
                self._files.show_again()
        self._reload()
        return self.settle(SETTLE_S_MAX)

    def settle(self, wait_s: float) -> bool:
        """Throws out who waits for it until the list is in force, and then once more; whether it is."""
        until = time.monotonic() + wait_s
        with self._settling:
            while True:
                these = dict(self._waiting)
                thrown = [self._throw_out(device) for device in these]
                if all(thrown) and self._in_force() and all(map(self._throw_out, these)):
                    for device, asked in these.items():
                        if self._waiting.get(device) == asked:
                            self._waiting.pop(device, None)
                    self._unsettled = None
                    return True
                if time.monotonic() > until or self._stopping:
                    return False
                time.sleep(AGAIN_S)

    def _throw_out(self, device: str) -> bool:
        with context_as(device, self._authority, self._clock.now()) as context:
            seen = knock(self._address, context)
        if seen.answer is not Answer.TAKEN_IN:
            self._unsettled = f"{device} was not thrown out: {_words(seen)}"
        return seen.answer is Answer.TAKEN_IN

    def _in_force(self) -> bool:
        seen = self._visit(self._files.keys / "canary.pem")
        if seen.answer is not Answer.REVOKED:
            self._unsettled = f"the broker does not refuse what was revoked ({_words(seen)}): {_REMEDY}"
        return seen.answer is Answer.REVOKED

    def follow(self, authority: Authority) -> None:
        """Another authority signs from now on; the door's thread looks at the broker's files at once.

        What was written meanwhile by the one before is mended then, since `BrokerFiles.mend` compares.
        """
        with self._writing:
            self._authority = authority
        self._look_soon = True
        self._wake.set()

    def refused(self) -> Refusals | None:
        """Who is refused by the broker's record; None where it cannot be read, which `trouble` will say."""
        try:
            record = self._files.revoked
        except KeysError:
            _LOG.exception("who is refused at the broker cannot be read")
            return None
        return Refusals(devices=record.devices, serials=frozenset(record.certificates))

    # --- looking after it -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to look after the door."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._stopping = True
        self._wake.set()
        self._thread.join(STOP_S_MAX)

    def _run(self) -> None:
        look_at, look_s, settle_s, began = 0.0, 1.0, 1.0, False
        while not self._stopping:
            try:
                if not began:
                    self._take_up()
                    began = True
                if time.monotonic() >= look_at or self._look_soon:
                    self._look_soon = False
                    self.look()
                    # What is wrong may be mended soon, or lasts; the log need not be full of it.
                    look_s = 1.0 if self._seen is None else min(2 * look_s, LOOK_EVERY_S)
                    look_at = time.monotonic() + (LOOK_EVERY_S if self._seen is None else look_s)
                settle_s = 1.0 if self._settled() else min(2 * settle_s, PAUSE_S_MAX)
            except (ShallopError, OSError) as error:
                # The thread must go on: the next look may find the cause mended.
                _LOG.exception("the broker's door could not be looked after")
                self._seen, look_at = str(error), time.monotonic() + PAUSE_S_MAX
            left = max(0.0, look_at - time.monotonic())
            self._wake.wait(min(left, settle_s) if self._waiting else left)
            self._wake.clear()

    def _take_up(self) -> None:
        """A registry that was killed may have refused a device, and not yet thrown it out."""
        recent = self._clock.now() - DAY_S
        self._wait_for(name for name, at in self._files.revoked.devices.items() if at > recent)

    def _settled(self) -> bool:
        """One try to throw out who waits for it; whether nobody waits any more."""
        if not self._waiting or self.settle(0.0):
            return True
        _LOG.error("not cut off at the broker: %s: %s", sorted(self._waiting), self.trouble)
        self._files.show_again()
        self._reload()
        return False

    def look(self) -> None:
        """Renews what is due, and finds out whether the broker does what its files say.

        Raises:
            KeysError: a file cannot be read or written.
        """
        self.renew()
        with self._writing:
            mended = self._files.mend(self._authority, self._clock.now())
        if mended:
            _LOG.warning("the lists in %s were not what the record says, and were made anew", self._files.out)
            self._reload()
            self._wait_for(self._files.revoked.devices)
            return
        canary = self._visit(self._files.keys / "canary.pem")
        probe = self._visit(
            self._files.program(PROBE), f"{self._files.setup.root}/probe/{secrets.token_hex(8)}"
        )
        if Answer.SILENT in {canary.answer, probe.answer}:
            _LOG.info("the broker's door was not looked at: %s", _words(canary))
            return
        self._seen = trouble_of(canary, probe, self._clock.now())
        if self._seen is not None:
            _LOG.error("the broker: %s", self._seen)
        if canary.answer is not Answer.REVOKED:
            self._wait_for(self._files.revoked.devices)

    def renew(self) -> None:
        """New certificates for broker and programs where two thirds of a life are over.

        Raises:
            KeysError: a file cannot be read or written.
        """
        now, files = self._clock.now(), self._files
        with self._writing:
            for name in files.programs:
                if due(files.program(name), now):
                    files.renew_program(name, self._authority, now)
                    _LOG.info("renewed the certificate of %s", name)
            if not files.server_due(now):
                return
            files.renew_server(self._authority, now)
        self._reload()
        _LOG.info("renewed the broker's certificate in %s", files.out)

    def _visit(self, certificate: Path, trespass: str | None = None) -> Knock:
        context = client_context(self._files.out / CA, certificate)
        return knock(self._address, context, trespass, listen_s=LISTEN_S)


_REMEDY = "`systemctl reload mosquitto` on its machine, with the files of this one; see docs/broker.md"


def _words(seen: Knock) -> str:
    return f"{seen.answer}, {seen.detail}" if seen.detail else str(seen.answer)


def trouble_of(canary: Knock, probe: Knock, now: float) -> str | None:
    """What is wrong at the door, the worst first; None if nothing is.

    Args:
        canary: what the broker did with a certificate that it must refuse as revoked.
        probe: what it did with one that may come and do nothing.
        now: seconds since 1970.
    """
    if probe.trespassed:
        return f"anybody may write everywhere, the access list is not in force: {_REMEDY}"
    if canary.answer is not Answer.REVOKED:
        return f"it does not refuse what was revoked ({_words(canary)}): {_REMEDY}"
    if probe.answer is not Answer.TAKEN_IN:
        return f"it does not take in who may come ({_words(probe)}): {_REMEDY}"
    ends = probe.server_not_after
    if ends is not None and ends - now < SERVER_LIFE_S * (1 - RENEWED_AT) / 2:
        days = max(0.0, ends - now) / DAY_S
        return f"its certificate ends in {days:.0f} days, and a newer one lies here: {_REMEDY}"
    return None


class NoGate:
    """A broker that asks for no certificate, for trying out: nobody can be cut off there.

    Args:
        why: in words.
    """

    trouble: str | None = None

    def __init__(self, why: str) -> None:
        self._why = why

    def cut_off(self, _device: str, _serials: Mapping[int, float]) -> CutOff:
        """Nothing happens."""
        return CutOff(in_force=False, detail=self._why)

    def let_in(self, _device: str) -> bool:
        """Nothing happens: nobody was kept out."""
        return True

    def refused(self) -> Refusals | None:
        """Nobody is."""
        return None

    def follow(self, _authority: Authority) -> None:
        """Nothing happens."""

    def start(self) -> None:
        """Nothing happens."""

    def stop(self) -> None:
        """Nothing happens."""
