"""What a restored registry takes up from its own words: numbers rise, lists grow, jumps are bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.restored import (
    LIST_JUMP_MAX,
    ORDERS_JUMP_MAX,
    EntriesAfter,
    Gap,
    ListAfter,
    Owed,
    Refusals,
    can_be_signed,
    counted,
    entries_after,
    gap_after,
    list_after,
    outruns,
    owed,
    require_near,
)
from wire.errors import TrustError
from wire.messages import BARRED_MAX, Bars, Desired, DesiredModel

A, B, C = "a" * 64, "b" * 64, "c" * 64
LISTS = st.frozensets(st.sampled_from([A, B, C]))


def found(number: int, *digests: str) -> Bars:
    return Bars(number=number, digests=digests)


@pytest.mark.parametrize(
    ("number", "ours", "theirs", "after"),
    [
        (3, {A}, found(5, A, B), ListAfter(number=5, digests=(A, B), sign=False)),
        (3, {A}, found(5, B), ListAfter(number=6, digests=(A, B), sign=True)),
        (0, set(), found(1, B), ListAfter(number=1, digests=(B,), sign=False)),
        (3, {A}, found(3, B), ListAfter(number=4, digests=(A, B), sign=True)),
        (3, {A}, found(3, A, B), ListAfter(number=4, digests=(A, B), sign=True)),
        (3, {A, B}, found(3, A), ListAfter(number=4, digests=(A, B), sign=True)),
        (3, {A}, found(3, A), None),
        (3, {A}, found(2, A, B), None),
        (3, {A}, found(3 + LIST_JUMP_MAX, A), ListAfter(number=3 + LIST_JUMP_MAX, digests=(A,), sign=False)),
    ],
)  # fmt: skip
def test_the_list_that_follows(number: int, ours: set[str], theirs: Bars, after: ListAfter | None) -> None:
    assert list_after(number, ours, theirs) == after


@given(st.integers(0, 9), LISTS, st.integers(1, 9), LISTS)
def test_a_list_is_a_union_under_a_number_that_no_other_content_has(
    number: int, ours: frozenset[str], at: int, theirs: frozenset[str]
) -> None:
    after = list_after(number, ours, found(at, *theirs))
    if after is None:
        assert at < number or (at == number and ours == theirs)
        return
    assert set(after.digests) == ours | theirs
    assert after.number >= max(number, at)
    if set(after.digests) != theirs or number == at:
        assert after.sign
        assert after.number > max(number, at)
    assert list_after(after.number, after.digests, found(after.number, *after.digests)) is None


def test_a_list_far_above_is_not_believed() -> None:
    with pytest.raises(TrustError) as caught:
        list_after(3, {A}, found(4 + LIST_JUMP_MAX, A))
    assert caught.value.code == "bars_unbelievable"


def test_a_union_may_be_too_long_to_sign() -> None:
    digests = tuple(f"{n:064x}" for n in range(BARRED_MAX + 1))
    assert not can_be_signed(ListAfter(number=1, digests=digests, sign=True))
    assert can_be_signed(ListAfter(number=1, digests=digests[1:], sign=True))


def entry(order: int, digest: str = A) -> DesiredModel:
    return DesiredModel(order=order, digest=digest, release="1")


def document(number: int, **models: DesiredModel) -> Desired:
    return Desired(device="roof-1", number=number, models=models)


def test_a_document_counts_by_its_own_number_and_its_orders() -> None:
    assert counted(document(7, camera=entry(3), door=entry(9))) == 9
    assert counted(document(7, camera=entry(3))) == 7
    assert counted(document(7)) == 7


def test_a_number_may_jump_so_far() -> None:
    require_near(ORDERS_JUMP_MAX + 5, 5)
    require_near(3, 5)
    with pytest.raises(TrustError) as caught:
        require_near(ORDERS_JUMP_MAX + 6, 5)
    assert caught.value.code == "order_unbelievable"


def test_entries_are_the_documents_but_for_older_ones() -> None:
    ours = {"camera": entry(3), "door": entry(5), "gate": entry(2), "same": entry(4)}
    newer = document(9, camera=entry(6, B), door=entry(4, B), lamp=entry(7), same=entry(4, B))
    assert entries_after(ours, newer) == EntriesAfter(
        saved={"camera": entry(6, B), "lamp": entry(7)}, dropped=("gate",)
    )
    assert entries_after({}, document(9)) == EntriesAfter(saved={}, dropped=())


def refusals(devices: str = "", serials: str = "") -> Refusals:
    return Refusals(devices=dict.fromkeys(devices, 1.0), serials=frozenset(serials))


@pytest.mark.parametrize(
    ("record", "known", "in_force", "living", "result"),
    [
        ((), "", (), "", ("", "", "", "")),
        (("a", "1"), "a", ("a", "1"), "", ("", "", "", "")),
        (("ab", "12"), "a", ("a", "1"), "2", ("b", "2", "", "")),
        (("a", ""), "a", ("", ""), "", ("", "", "", "")),
        (("", ""), "ab", ("a", "1"), "2", ("", "", "a", "1")),
        (("", "3"), "", ("", ""), "", ("", "", "", "")),
    ],
)
def test_both_become_the_union(
    record: tuple[str, str], known: str, in_force: tuple[str, str], living: str, result: tuple[str, ...]
) -> None:
    made = owed(refusals(*record), known, refusals(*in_force), living)
    devices, serials, devices_told, serials_told = (tuple(words) for words in result)
    assert made == Owed(
        devices=devices, serials=serials, devices_told=devices_told, serials_told=serials_told
    )
    assert made.database_forgot == bool(devices or serials)
    assert made.record_forgot == bool(devices_told or serials_told)


@pytest.mark.parametrize(
    ("gap", "orders", "highest", "after", "outrun"),
    [
        (None, 5, 5, None, False),
        (None, 5, 6, Gap(given=5, seen=6), True),
        (Gap(given=5, seen=9), 9, 5, Gap(given=5, seen=9), False),
        (Gap(given=5, seen=9), 9, 6, Gap(given=5, seen=9), True),
        (Gap(given=5, seen=9), 12, 9, Gap(given=5, seen=9), True),
        (Gap(given=5, seen=9), 12, 10, Gap(given=5, seen=9), False),
        (Gap(given=5, seen=9), 12, 20, Gap(given=12, seen=20), True),
    ],
)
def test_what_devices_saw_and_nobody_here_gave(
    gap: Gap | None, orders: int, highest: int, after: Gap | None, outrun: bool
) -> None:
    assert gap_after(gap, orders, highest) == after
    assert outruns(gap, orders, highest) is outrun
