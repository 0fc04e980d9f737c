"""Who gets a certificate, as a pure question: the table of tokens, every verdict, and what holds for all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet import enrolments as rules
from fleet.adapters.key_files import verify
from fleet.enrolments import (
    Again,
    Bounds,
    Enrolment,
    Held,
    Refuse,
    Revocation,
    TokenEvent,
    TokenState,
    Verdict,
)
from fleet.rates import Rates
from tests.fleet.enrolment import DAY_S, DEVICE, enrol_word, public, renewal_word
from tests.keys import Key
from tests.wire.test_enrolment import TOKEN

NOW = 1_700_000_000.0
KEYS = tuple(Key(f"device-{i}") for i in range(4))
FIRST, SECOND, THIRD, STRANGER = KEYS
ROW = Enrolment(
    id="en-1", device=DEVICE, secret_sha256=rules.secret_sha256(TOKEN.secret), root_number=1, issued_at=NOW,
    expires_at=NOW + DAY_S,
)  # fmt: skip
USED = replace(ROW, state=TokenState.USED, public=public(FIRST), serial="aa", ended_at=NOW)
BOUNDS = Bounds(expired_renew_s=400 * DAY_S, renewals_per_day_max=3)


def held(key: Key, serial: str = "aa", start: float = NOW, days: float = 90.0, **more: object) -> Held:
    made = Held(
        serial=serial, device=DEVICE, public=public(key), issued_at=start, not_before=start,
        not_after=start + days * DAY_S, pem="pem",
    )  # fmt: skip
    return replace(made, **more)


def told(verdict: Verdict) -> str:
    return verdict.code if isinstance(verdict, Refuse) else type(verdict).__name__


# --- tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "event"), list(itertools.product(TokenState, TokenEvent)))
def test_a_token_that_ended_stays_as_it_ended(state: TokenState, event: TokenEvent) -> None:
    follows = {TokenEvent.USE: "used", TokenEvent.EXPIRE: "expired", TokenEvent.CANCEL: "cancelled"}
    expected = follows[event] if state is TokenState.UNUSED else state.value
    assert rules.after(state, event).value == expected


def test_time_ends_an_unused_token_and_no_other() -> None:
    end = ROW.expires_at
    assert rules.state_at(ROW, end - 0.001) is TokenState.UNUSED
    assert rules.state_at(ROW, end) is TokenState.EXPIRED
    assert rules.state_at(USED, end + 1) is TokenState.USED
    assert rules.state_at(replace(ROW, state=TokenState.CANCELLED), end + 1) is TokenState.CANCELLED


def enrolling(
    row: Enrolment = ROW,
    key: Key = FIRST,
    *,
    device: str | None = None,
    signer: Key | None = None,
    revoked_at: float | None = None,
    has: Sequence[Held] = (),
    after_s: float = 2.0,
) -> str:
    """The verdict on a device that comes with the token of `row`."""
    revocation = None if revoked_at is None else Revocation(device=DEVICE, at=revoked_at, why="")
    word = enrol_word(TOKEN, key, device, signer)
    return told(rules.judge_enrolment(word, row, has, revocation, NOW + after_s, verify))


GONE = held(FIRST, revoked_at=NOW + 1)
CANCELLED = replace(ROW, state=TokenState.CANCELLED)
ENROLMENTS: dict[str, tuple[Callable[[], str], str]] = {
    "the first time": (partial(enrolling), "Issue"),
    "to the last second": (partial(enrolling, after_s=DAY_S - 1), "Issue"),
    "expired": (partial(enrolling, after_s=DAY_S), "token_expired"),
    "again, same key": (partial(enrolling, USED, has=(held(FIRST),)), "Again"),
    "again, same key, late": (partial(enrolling, USED, has=(held(FIRST),), after_s=DAY_S), "token_expired"),
    "again, another key": (partial(enrolling, USED, SECOND, has=(held(FIRST),)), "token_used"),
    "again, another key, late": (partial(enrolling, USED, SECOND, after_s=DAY_S), "token_used"),
    "another device": (partial(enrolling, device="roof-18"), "wrong_device"),
    "another device, after use": (partial(enrolling, USED, device="roof-18"), "wrong_device"),
    "a proof by another key": (partial(enrolling, signer=SECOND), "bad_proof"),
    "again, a proof by another key": (partial(enrolling, USED, signer=SECOND), "bad_proof"),
    "cancelled": (partial(enrolling, CANCELLED), "token_cancelled"),
    "of before the revocation": (partial(enrolling, revoked_at=NOW + 1), "revoked"),
    "of after the revocation": (partial(enrolling, revoked_at=NOW - 1), "Issue"),
    "a key that was revoked": (partial(enrolling, has=(GONE,)), "revoked"),
    "again, revoked since": (partial(enrolling, USED, revoked_at=NOW + 1, has=(GONE,)), "revoked"),
    "another key was revoked": (partial(enrolling, ROW, SECOND, has=(GONE,)), "Issue"),
}


@pytest.mark.parametrize("what", ENROLMENTS)
def test_what_becomes_of_an_enrolment(what: str) -> None:
    verdict, expected = ENROLMENTS[what]
    assert verdict() == expected


def test_a_secret_that_is_not_the_tokens_is_unknown() -> None:
    other = replace(ROW, secret_sha256=rules.secret_sha256(b"another"))
    assert (
        told(rules.judge_enrolment(enrol_word(TOKEN, FIRST), other, (), None, NOW, verify)) == "token_unknown"
    )


# --- renewal ------------------------------------------------------------------------------------------

OLD = held(FIRST, "01", NOW - 200 * DAY_S)
"""Ended 110 days ago."""
LIVING = held(SECOND, "02", NOW - 60 * DAY_S)
ENDED = held(SECOND, "02", NOW - 100 * DAY_S)
LONG_ENDED = held(SECOND, "02", NOW - 491 * DAY_S)

NEXT = held(THIRD, "03")
SHUT = replace(LIVING, revoked_at=NOW)


def renewing(
    has: Sequence[Held], key: Key, before: Key, *, signer: Key | None = None, revoked: bool = False
) -> str:
    """The verdict on a device that has these certificates, newest first; `Again` only ever of the newest."""
    revocation = Revocation(device=DEVICE, at=NOW, why="") if revoked else None
    word = renewal_word(DEVICE, key, before, signer=signer)
    verdict = rules.judge_renewal(word, has, revocation, NOW, BOUNDS, verify)
    assert not isinstance(verdict, Again) or verdict.serial == has[0].serial
    return told(verdict)


RENEWALS: dict[str, tuple[Callable[[], str], str]] = {
    "in time": (partial(renewing, (LIVING,), THIRD, SECOND), "Issue"),
    "after its end": (partial(renewing, (ENDED,), THIRD, SECOND), "Issue"),
    "after its end, for its own key": (partial(renewing, (ENDED,), SECOND, SECOND), "Issue"),
    "too long after its end": (partial(renewing, (LONG_ENDED,), THIRD, SECOND), "expired_too_long"),
    "asked again": (partial(renewing, (NEXT, LIVING), THIRD, SECOND), "Again"),
    "for the key that it has": (partial(renewing, (LIVING,), SECOND, SECOND), "Again"),
    "by the one before, which lives too": (partial(renewing, (NEXT, LIVING), STRANGER, SECOND), "Issue"),
    "by an old one that ended": (partial(renewing, (LIVING, OLD), THIRD, FIRST), "bad_proof"),
    "the answer was lost, and all ended": (partial(renewing, (ENDED, OLD), SECOND, FIRST), "Issue"),
    "the answer was lost": (partial(renewing, (LIVING, OLD), SECOND, FIRST), "Again"),
    "the answer was lost long ago": (partial(renewing, (LONG_ENDED, OLD), SECOND, FIRST), "expired_too_long"),
    "by nobody's key": (partial(renewing, (LIVING,), THIRD, STRANGER), "bad_proof"),
    "a key that it does not have": (partial(renewing, (LIVING,), THIRD, SECOND, signer=FIRST), "bad_proof"),
    "never enrolled": (partial(renewing, (), THIRD, SECOND), "unknown_device"),
    "the device was revoked": (partial(renewing, (SHUT,), THIRD, SECOND, revoked=True), "revoked"),
    "a stranger is not told": (partial(renewing, (SHUT,), THIRD, STRANGER, revoked=True), "bad_proof"),
    "the stolen key, enrolled anew": (partial(renewing, (NEXT, SHUT), STRANGER, SECOND), "revoked"),
    "for a revoked key": (
        partial(renewing, (LIVING, replace(OLD, revoked_at=NOW)), FIRST, SECOND),
        "revoked",
    ),
    "marked, a certificate overlooked": (
        partial(renewing, (LIVING,), THIRD, SECOND, revoked=True),
        "revoked",
    ),
}


@pytest.mark.parametrize("what", RENEWALS)
def test_what_becomes_of_a_renewal(what: str) -> None:
    verdict, expected = RENEWALS[what]
    assert verdict() == expected


def test_the_bound_on_ended_certificates_is_in_seconds() -> None:
    word, ended = renewal_word(DEVICE, THIRD, SECOND), ENDED.not_after + BOUNDS.expired_renew_s
    assert told(rules.judge_renewal(word, (ENDED,), None, ended, BOUNDS, verify)) == "Issue"
    assert told(rules.judge_renewal(word, (ENDED,), None, ended + 1, BOUNDS, verify)) == "expired_too_long"


def test_a_device_gets_so_many_certificates_a_day() -> None:
    made = [held(Key(f"k{i}"), f"{i}", NOW - 100 + i) for i in range(3)][::-1]
    word = renewal_word(DEVICE, THIRD, Key("k0"))
    assert told(rules.judge_renewal(word, made, None, NOW, BOUNDS, verify)) == "too_many"
    assert told(rules.judge_renewal(word, made, None, NOW + DAY_S, BOUNDS, verify)) == "Issue"
    by_token = [replace(made[0], enrolment="en-1"), *made[1:]]
    assert told(rules.judge_renewal(word, by_token, None, NOW, BOUNDS, verify)) == "Issue"


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(-800, 0), st.booleans()), max_size=5,
    ),
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans(),
)  # fmt: skip
def test_nobody_gets_a_certificate_without_a_key_that_counts(
    made: list[tuple[int, int, bool]], new: int, before: int, signer: int, revoked: bool
) -> None:
    """Whatever was issued: a certificate goes only to who has the new key and a welcome one of the device."""
    rows = [
        held(KEYS[k], f"{i}", NOW + start * DAY_S, revoked_at=NOW - 1 if gone else None)
        for i, (k, start, gone) in enumerate(made)
    ]
    rows.sort(key=lambda row: -row.issued_at)
    word = renewal_word(DEVICE, KEYS[new], KEYS[before], signer=KEYS[signer])
    revocation = Revocation(device=DEVICE, at=NOW - 1, why="") if revoked else None
    verdict = rules.judge_renewal(word, rows, revocation, NOW, BOUNDS, verify)
    if isinstance(verdict, Refuse):
        return
    welcome = [row for row in rows if row.revoked_at is None]
    assert signer == new
    assert not revoked
    assert public(KEYS[new]) not in {row.public for row in rows if row.revoked_at is not None}
    followed = [row for row in welcome if row.public == public(KEYS[before])]
    assert followed
    assert any(row.living(NOW) for row in followed) or welcome[0].public in {
        public(KEYS[before]), public(KEYS[new]),
    }  # fmt: skip
    assert NOW - welcome[0].not_after <= BOUNDS.expired_renew_s
    if isinstance(verdict, Again):
        (again,) = [row for row in rows if row.serial == verdict.serial]
        assert again.public == word.public
        assert again.living(NOW)


# --- upkeep and rates ---------------------------------------------------------------------------------


def test_a_certificate_is_overdue_in_its_last_quarter() -> None:
    assert not rules.overdue(held(FIRST, start=NOW - 67 * DAY_S), NOW)
    assert rules.overdue(held(FIRST, start=NOW - 68 * DAY_S), NOW)
    assert rules.overdue(ENDED, NOW)
    assert not rules.overdue(replace(ENDED, revoked_at=NOW), NOW)


def test_only_what_is_over_and_followed_goes() -> None:
    keep_s = 30 * DAY_S
    assert rules.prunable(OLD, False, NOW, keep_s)
    assert not rules.prunable(OLD, True, NOW, keep_s)
    assert not rules.prunable(ENDED, False, NOW, keep_s), "not long enough"
    assert not rules.prunable(replace(OLD, revoked_at=NOW), False, NOW, keep_s), "the broker was not told"
    assert rules.prunable(replace(OLD, revoked_at=NOW, cut_at=NOW), False, NOW, keep_s)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=60), st.integers(1, 5))
def test_no_name_gets_more_than_its_rate(tries: list[tuple[str, float]], burst: int) -> None:
    rates, now = Rates(6.0, burst), 0.0
    taken: dict[str, list[float]] = {"a": [], "b": []}
    for name, wait in tries:
        now += wait
        free = rates.left(name, now)
        assert rates.take(name, now) is free
        if free:
            taken[name].append(now)
    for times in taken.values():
        for i, first in enumerate(times):
            for j in range(i, len(times)):
                assert j - i + 1 <= burst + (times[j] - first) / 10.0 + 1e-6


def test_the_table_of_names_does_not_grow() -> None:
    rates = Rates(1.0, 1, names_max=3)
    for i in range(50):
        assert rates.take(f"n{i}", float(i) / 1000)
    assert len(rates._left) == 3
    assert not rates.take("n49", 0.05), "the last ones are remembered"


def test_who_keeps_trying_is_not_forgotten_for_those_who_came_once() -> None:
    rates = Rates(1.0, 1, names_max=3)
    for name in ("a", "b", "c", "a", "d"):
        rates.take(name, 0.0)
    assert not rates.take("a", 0.0)
    assert rates.take("b", 0.0), "it was quiet for longest"
