"""PURE. What a registry takes up from its own signed words that it does not remember.

For: a database that is older than what the registry once published (restored from a backup): which list of
barred releases follows, which desired entries were ordered since, how far a number may jump, which refusals
the broker's record and the database owe each other.
Not for: opening envelopes and writing rows (`fleet.recall`).

Only words that this registry's own keys signed get here, and even those move a number by no more than a
limit: whoever stole a key must not use the numbers up by one message that stays on the broker.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from wire.errors import TrustError
from wire.messages import BARRED_MAX, Bars, Desired, DesiredModel

ORDERS_JUMP_MAX = 2**30
"""How far one signed document may lie above the counter: 30,000 rollouts over 10,000 devices, and a
thousandth of an epoch's numbers."""

LIST_JUMP_MAX = 10_000
"""The same for lists of barred releases, which people make one by one."""

GENERATION_JUMP_MAX = 2**40
"""The same for the broker's marker, which nobody signs: generations are numbered up to 2**53."""


class ListAfter(Struct, frozen=True, kw_only=True):
    """The list of barred releases that follows.

    Attributes:
        number: of it.
        digests: sorted.
        sign: no signature covers it yet; else it is the one that was found.
    """

    number: int
    digests: tuple[str, ...]
    sign: bool


def list_after(number: int, barred: Collection[str], found: Bars) -> ListAfter | None:
    """Our list after a signed one was found on the broker; None where ours stays as it is.

    A union: what either of them bars is barred, since nobody can tell whether ours is the older one in
    everything. A lower number changes nothing, so that an old list, replayed, bars nothing anew.

    Args:
        number: of our list; 0 before the first.
        barred: what it holds.
        found: signed by the release role.

    Raises:
        TrustError: `bars_unbelievable`: its number is far above ours.
    """
    theirs = frozenset(found.digests)
    if found.number < number or (found.number == number and theirs == frozenset(barred)):
        return None
    if found.number - number > LIST_JUMP_MAX:
        raise TrustError(
            "bars_unbelievable",
            f"list {found.number} of barred releases is signed, and far above our own, {number}; not taken "
            f"up. If it is ours: `shallop-fleet bars --sign --above {found.number}`; else the release key "
            "was stolen",
        )
    union = theirs | frozenset(barred)
    whole = union == theirs and found.number > number
    after = found.number if whole else found.number + 1
    return ListAfter(number=after, digests=tuple(sorted(union)), sign=not whole)


def can_be_signed(after: ListAfter) -> bool:
    """Whether a list of that length can be: a union of two may be too long."""
    return len(after.digests) <= BARRED_MAX


def counted(desired: Desired) -> int:
    """The highest number that a desired document uses up: its own, or that of an order in it."""
    return max([desired.number, *(entry.order for entry in desired.models.values())])


def require_near(number: int, known: int) -> None:
    """Returns if a signed number may raise our counter.

    Raises:
        TrustError: `order_unbelievable`.
    """
    if number - known > ORDERS_JUMP_MAX:
        raise TrustError(
            "order_unbelievable",
            f"number {number} is signed, and far above our own highest, {known}; not counted. Was the order "
            "key stolen? `shallop-fleet keys rotate order`",
        )


class Gap(Struct, frozen=True, kw_only=True):
    """Numbers that devices have seen and this registry did not give: above `given`, up to `seen`."""

    given: int
    seen: int


def gap_after(gap: Gap | None, orders: int, highest: int) -> Gap | None:
    """The gap, once a device said that it has seen `highest` and our counter stood at `orders`.

    The counter is raised over it and counts on from there, so only the newest gap is kept: between two of
    them lie numbers of our own.
    """
    return gap if highest <= orders else Gap(given=orders, seen=highest)


def outruns(gap: Gap | None, orders: int, highest: int) -> bool:
    """Whether a device that has seen `highest` knows more than we gave out."""
    return highest > orders or (gap is not None and gap.given < highest <= gap.seen)


class EntriesAfter(Struct, frozen=True, kw_only=True):
    """What becomes of a device's desired entries."""

    saved: dict[str, DesiredModel]
    dropped: tuple[str, ...]


def entries_after(ours: Mapping[str, DesiredModel], found: Desired) -> EntriesAfter:
    """What a desired document that we do not remember changes in our entries of the device.

    It is newer than all of them, so what it leaves out was dropped; but no entry of a lower order than
    ours comes back.
    """
    saved = {
        model: entry
        for model, entry in found.models.items()
        if model not in ours or entry.order > ours[model].order
    }
    dropped = tuple(model for model in ours if model not in found.models)
    return EntriesAfter(saved=saved, dropped=dropped)


class Refusals(Struct, frozen=True, kw_only=True):
    """Who is refused, as the broker's record or the database has it.

    Attributes:
        devices: by name, and since when, seconds since 1970.
        serials: of certificates, hexadecimal.
    """

    devices: Mapping[str, float]
    serials: frozenset[str]


class Owed(Struct, frozen=True, kw_only=True):
    """What the database and the broker's record owe each other.

    Attributes:
        devices: refused by the record alone: the database forgot them.
        serials: certificates, likewise.
        devices_told: revoked, said to be in force, and not in the record: the record forgot them.
        serials_told: certificates, likewise.
    """

    devices: tuple[str, ...]
    serials: tuple[str, ...]
    devices_told: tuple[str, ...]
    serials_told: tuple[str, ...]

    @property
    def database_forgot(self) -> bool:
        """Whether the database is older than the record."""
        return bool(self.devices or self.serials)

    @property
    def record_forgot(self) -> bool:
        """Whether the record is older than the database."""
        return bool(self.devices_told or self.serials_told)


def owed(record: Refusals, known: Collection[str], in_force: Refusals, living: Collection[str]) -> Owed:
    """The union of both, never a removal.

    Args:
        record: the broker's.
        known: devices that the database has as refused, also those of whom the broker was not told yet, or as
            let in again.
        in_force: the database's, where the broker was told and they have not ended.
        living: serials that the database holds for good.
    """
    return Owed(
        devices=tuple(sorted(record.devices.keys() - frozenset(known))),
        serials=tuple(sorted(record.serials & frozenset(living))),
        devices_told=tuple(sorted(in_force.devices.keys() - record.devices.keys())),
        serials_told=tuple(sorted(in_force.serials - record.serials)),
    )
