"""The database and the broker's record of refused devices: after a restore each learns what the other has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.audit import REGISTRY
from fleet.enrolments import Revocation
from fleet.refusals import WHY, hold_against
from fleet.restored import Owed, Refusals
from tests.fleet.enrolment import BY, DEVICE, Registry, code_of, enrol_word, renewal_word
from tests.keys import Key

FIRST, SECOND = Key("device-1"), Key("device-2")


class House:
    """A registry with an authority, and the record of its broker."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(folder)
        self.devices: dict[str, float] = {}
        self.serials: set[str] = set()

    def hold(self) -> Owed:
        record = Refusals(devices=dict(self.devices), serials=frozenset(self.serials))
        harness = self.registry.harness
        return hold_against(harness.store, self.registry.enrolling, record, self.registry.clock.now())

    def of(self, *keys: Key) -> set[str]:
        return {f"{serial:x}" for key in keys for serial in self.registry.serials(key)}

    @property
    def revocation(self) -> Revocation | None:
        with self.registry.harness.store.begin() as tx:
            return tx.revocation(DEVICE)

    def tell(self) -> None:
        assert self.registry.harness.doorman.see_to_all()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.registry.harness.store.close()


def test_a_device_that_was_revoked_after_the_backup_is_revoked_again(house: House) -> None:
    registry = house.registry
    registry.enrolled(FIRST)
    token, at = registry.token(), registry.clock.now() + 5
    house.devices, house.serials = {DEVICE: at}, house.of(FIRST)
    registry.clock.time += 100
    assert house.hold().devices == (DEVICE,)
    assert house.revocation == Revocation(device=DEVICE, at=at, why=WHY)
    with registry.harness.store.begin() as tx:
        (entry,) = [entry for entry in tx.audit_entries(0, 100) if entry.what == "device.revoke"]
        pending = {row.post.topic for row in tx.pending(100)}
    assert (entry.who, entry.subject, entry.why) == (REGISTRY, DEVICE, WHY)
    assert any(topic.endswith(f"{DEVICE}/down/desired") for topic in pending), "nothing for it stays there"
    assert code_of(registry.enrolling.enrol(enrol_word(token, SECOND))) == "token_cancelled"
    assert code_of(registry.enrolling.renew(renewal_word(DEVICE, SECOND, FIRST))) == "revoked"
    house.tell()
    assert registry.barrier.told == [(DEVICE, registry.serials(FIRST))], "thrown out once more"
    before = registry.audit()
    assert house.hold() == Owed(devices=(), serials=(), devices_told=(), serials_told=())
    assert registry.audit() == before, "said once"


def test_a_device_that_this_database_never_knew_is_refused_too(house: House) -> None:
    house.devices = {"roof-99": 5.0}
    house.hold()
    with house.registry.harness.store.begin() as tx:
        assert set(tx.revocations()) == {"roof-99"}


def test_a_key_that_was_replaced_after_the_backup_renews_nothing(house: House) -> None:
    registry = house.registry
    registry.enrolled(FIRST)
    house.serials = {*house.of(FIRST), "abc"}
    found = house.hold()
    assert (found.devices, found.serials) == ((), tuple(house.of(FIRST)))
    assert house.revocation is None, "the device itself is welcome"
    assert code_of(registry.enrolling.renew(renewal_word(DEVICE, SECOND, FIRST))) == "revoked"
    assert registry.audit()[-1] == "device.refusals-taken-up"


def test_a_record_that_forgot_is_told_again(house: House) -> None:
    registry = house.registry
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, BY)
    house.tell()
    told = list(registry.barrier.told)
    found = house.hold()
    assert (found.devices_told, found.serials_told) == ((DEVICE,), tuple(house.of(FIRST)))
    assert not found.database_forgot
    assert registry.enrolling.health().not_in_force == (DEVICE,)
    house.tell()
    assert registry.barrier.told[len(told) :] == [(DEVICE, registry.serials(FIRST))]
    house.devices, house.serials = {DEVICE: 1.0}, house.of(FIRST)
    house.hold()
    assert registry.enrolling.health().not_in_force == ()


def test_a_device_that_came_back_is_not_shut_out_by_a_record_that_is_late(house: House) -> None:
    """Lifted in the database, and the broker was not told yet."""
    registry = house.registry
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, BY)
    house.tell()
    registry.clock.time += 1
    registry.barrier.deaf = True
    registry.enrolled(SECOND)
    house.devices, house.serials = {DEVICE: 1.0}, house.of(FIRST)
    assert house.hold().devices == ()
    assert house.revocation is None


def test_one_that_came_back_after_the_backup_is_shut_out_again(house: House) -> None:
    """Revoked here, not in the record: which of the two is older nobody can tell, so nobody comes in."""
    registry = house.registry
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, BY)
    house.tell()
    assert house.hold().devices_told == (DEVICE,)
    assert house.revocation is not None


def test_certificates_that_ended_are_told_to_nobody(house: House) -> None:
    registry = house.registry
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, BY)
    house.tell()
    house.devices = {DEVICE: 1.0}
    registry.clock.time += 400 * 86400.0
    assert house.hold() == Owed(devices=(), serials=(), devices_told=(), serials_told=())
