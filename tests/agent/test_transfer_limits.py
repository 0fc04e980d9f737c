"""What a transfer may take of the line: a rate, hours, and a fleet that comes back one by one."""

from __future__ import annotations

import queue
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.system import SystemClock
from agent.config import parse
from agent.errors import ConfigError, RetryError
from agent.exchange import Box, Exchange
from agent.fetch import BURST_SECONDS, TokenBucket, Transfer, TransferLimits
from agent.metering import Hours, LocalTime, behind, require_unmetered, windows
from agent.reconnect import WAIT_S_MIN, wait_s
from tests.agent.rig import DEVICE, ONE, Rig, running
from tests.agent.twins import MemoryBroker, until
from wire.bundle import Chunk
from wire.messages import OrderOutcome


def chunks(count: int, size_bytes: int = 1000) -> list[Chunk]:
    return [Chunk(sha256=f"{number:064x}", size_bytes=size_bytes) for number in range(count)]


# --- the rate ---------------------------------------------------------------------------------------


@given(
    st.integers(1_000, 1_000_000),
    st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 300_000)), min_size=1, max_size=80),
)
def test_no_stretch_of_time_is_asked_more_than_the_rate_carries(
    rate: int, steps: list[tuple[float, int]]
) -> None:
    bucket, now, asked = TokenBucket(rate, 0.0), 0.0, [(0.0, 0)]
    for pause_s, size in steps:
        now += pause_s
        if bucket.ready_s(now) <= now:
            bucket.spend(size, now)
            asked.append((now, size))
    for i, (start, _) in enumerate(asked):
        for j in range(i, len(asked)):
            sizes = [size for _, size in asked[i : j + 1]]
            allowed = rate * (asked[j][0] - start + BURST_SECONDS) + sizes[-1]
            assert sum(sizes) <= allowed * (1 + 1e-9)


@given(st.integers(1_000, 100_000), st.integers(1, 300_000))
def test_a_debt_is_paid_at_the_moment_that_was_named(rate: int, size: int) -> None:
    bucket = TokenBucket(rate, 10.0)
    assert bucket.ready_s(10.0) == 10.0
    bucket.spend(rate + size, 10.0)
    due = bucket.ready_s(10.0)
    assert due == pytest.approx(10.0 + size / rate)
    assert bucket.ready_s(due + 1e-6) == due + 1e-6
    assert bucket.ready_s(5.0) == 5.0, "a clock that steps back does not take tokens away"


def test_an_idle_bucket_saves_up_one_second_and_no_more() -> None:
    bucket = TokenBucket(1000, 0.0)
    bucket.ready_s(1e6)
    bucket.spend(1001, 1e6)
    assert bucket.ready_s(1e6) == pytest.approx(1e6 + 0.001)


def drive(transfer: Transfer, line_s: float = 0.001, until_s: float = 1e6) -> tuple[float, Counter[str]]:
    """A line that brings each chunk after `line_s`; gives when it was through and what was asked."""
    now, asked = 0.0, Counter[str]()
    while not transfer.done and now < until_s:
        turn = transfer.turn(now)
        asked.update(turn.subscribe)
        if transfer.asked:
            now += line_s
            for name in transfer.asked:
                transfer.arrived(name, now)
        else:
            assert turn.wake_s > now, "it would turn without end"
            now = turn.wake_s
    return now, asked


def test_a_limited_transfer_takes_as_long_as_its_rate_says_and_stalls_never() -> None:
    transfer = Transfer(chunks(100, 64_000), 0.0, bucket=TokenBucket(16_000, 0.0))
    took_s, asked = drive(transfer)
    assert took_s == pytest.approx((100 - 1) * 64_000 / 16_000 - BURST_SECONDS, rel=0.02)
    assert transfer.stalls == 0
    assert set(asked.values()) == {1}


def test_two_transfers_share_one_limit() -> None:
    bucket = TokenBucket(10_000, 0.0)
    one, two = (Transfer(chunks(50, 1000), 0.0, bucket=bucket) for _ in range(2))
    now = 0.0
    while not (one.done and two.done):
        for transfer in (one, two):
            transfer.turn(now)
            for name in transfer.asked:
                transfer.arrived(name, now + 0.001)
        now += 0.05
    assert now == pytest.approx(100 * 1000 / 10_000 - BURST_SECONDS, rel=0.05)


def test_what_is_asked_for_again_counts_again() -> None:
    bucket = TokenBucket(1000, 0.0)
    transfer = Transfer(chunks(3, 1500), 0.0, bucket=bucket)
    assert len(transfer.turn(0.0).subscribe) == 1, "it is over one second's burst"
    again = transfer.turn(10.0)
    assert again.unsubscribe == again.subscribe, "a stall; nothing new may be asked for"
    assert bucket.ready_s(10.0) == pytest.approx(10.5)
    assert again.wake_s == pytest.approx(10.5)


# --- the hours --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "inside", "outside"),
    [
        (("07:00-22:00",), (420, 421, 1319), (0, 419, 1320, 1439)),
        (("22:30-06:00",), (1350, 1439, 0, 359), (360, 1349)),
        (("00:00-24:00",), (), ()),
        (("08:00-12:00", "13:00-24:00"), (480, 719, 780, 1439), (479, 720, 779, 0)),
    ],
)
def test_a_window_holds_its_start_and_not_its_end(
    texts: tuple[str, ...], inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    if not inside:
        with pytest.raises(ValueError, match="whole day"):
            windows(texts)
        return
    hours = windows(texts)
    for minute in inside:
        with pytest.raises(RetryError) as refused:
            require_unmetered(hours, LocalTime(minute=minute, synchronised=True))
        assert refused.value.code == "metered_hours"
    for minute in outside:
        require_unmetered(hours, LocalTime(minute=minute, synchronised=True))


@given(st.integers(0, 1439), st.integers(0, 1440), st.integers(0, 1439))
def test_a_window_and_the_rest_of_the_day_share_no_minute(start: int, end: int, minute: int) -> None:
    if start in {end, end - 1440}:
        return
    rest = Hours(end % 1440, start)
    assert Hours(start, end).hold(minute) != rest.hold(minute)


@pytest.mark.parametrize(
    "text", ["7-22", "07:00-25:00", "07:60-08:00", "07:00-07:00", "24:00-06:00", "07:00-24:30", "", "x" * 99]
)
def test_what_is_no_window_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(ConfigError, match="metered_hours"):
        parse(f'transfer: {{metered_hours: ["{text}"]}}')


def test_hours_that_cover_the_day_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="whole day"):
        parse('transfer: {metered_hours: ["06:00-18:30", "18:00-06:00"]}')


def test_the_configuration_gives_the_limits() -> None:
    config = parse('transfer: {metered_hours: ["07:00-22:00"], rate_bytes_per_s_max: 50000}')
    limits = config.transfer.limits()
    assert limits == TransferLimits(rate_bytes_per_s_max=50_000, metered_hours=(Hours(420, 1320),))
    assert str(limits.metered_hours[0]) == "07:00-22:00"
    assert parse("").transfer.limits() == TransferLimits()


def test_without_hours_no_clock_is_needed_and_with_them_a_right_one() -> None:
    unknown = LocalTime(minute=0, synchronised=False)
    require_unmetered((), unknown)
    with pytest.raises(RetryError) as refused:
        require_unmetered(windows(["07:00-22:00"]), unknown)
    assert refused.value.code == "clock_unsynchronised"


@pytest.mark.parametrize(
    ("now", "signed", "wrong"),
    [
        ("2026-01-01T00:00:00.000Z", "", False),
        ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00+00:00", False),
        ("2026-01-01T00:00:00.999Z", "2026-01-01T00:00:01+00:00", True),
        ("1970-01-01T00:00:09.000Z", "2026-01-01T00:00:00+00:00", True),
        ("2040-01-01T00:00:00.000Z", "2026-01-01T00:00:00+00:00", False),
    ],
)
def test_a_clock_below_the_highest_signed_time_is_wrong(now: str, signed: str, wrong: bool) -> None:
    assert behind(now, signed) == wrong


def test_a_clock_that_must_be_wrong_judges_no_hours(tmp_path: Path) -> None:
    def prepare(rig: Rig) -> None:
        rig.limits = TransferLimits(metered_hours=windows(["07:00-22:00"]))
        rig.clock.day = NIGHT
        rig.signed_at = "2026-06-01T00:00:00+00:00"

    with running(tmp_path, prepare=prepare) as rig:
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: (s := rig.reported()) and s.reason and s.reason.code == "clock_unsynchronised", "it")
        rig.signed_at = ""
        rig.wait(1, OrderOutcome.ACTIVE)


def test_this_machine_knows_its_minute() -> None:
    local = SystemClock().local()
    assert 0 <= local.minute < 1440


NIGHT = LocalTime(minute=60, synchronised=True)
NOON = LocalTime(minute=720, synchronised=True)


@pytest.mark.parametrize(
    ("day", "code"),
    [(NOON, "metered_hours"), (LocalTime(minute=60, synchronised=False), "clock_unsynchronised")],
)
def test_in_metered_hours_nothing_is_fetched_and_at_their_end_it_goes_on(
    tmp_path: Path, day: LocalTime, code: str
) -> None:
    def prepare(rig: Rig) -> None:
        rig.limits = TransferLimits(metered_hours=windows(["07:00-22:00"]))
        rig.clock.day = day

    with running(tmp_path, prepare=prepare) as rig:
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: (s := rig.reported()) and s.reason and s.reason.code == code, code)
        assert rig.broker.fetched == []
        assert rig.deployment.reason is not None
        assert rig.deployment.reason.lasting == "retry"
        rig.clock.day = NIGHT
        rig.wait(1, OrderOutcome.ACTIVE)


def test_hours_that_begin_during_a_transfer_stop_it_and_nothing_is_fetched_twice(tmp_path: Path) -> None:
    def prepare(rig: Rig) -> None:
        rig.limits = TransferLimits(metered_hours=windows(["07:00-22:00"]))
        rig.clock.day = NIGHT

    with running(tmp_path, prepare=prepare) as rig:
        rig.broker.hold(ONE)
        last = ONE.manifest.variants[0].files[0].chunks[-1].sha256
        topic = next(topic for topic in rig.broker.retained if topic.endswith(last))
        payload = rig.broker.retained.pop(topic)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: len(rig.broker.fetched) == len(ONE.blobs) - 1, "all but one")
        rig.clock.day = NOON
        rig.clock.ahead_s += 6.0
        until(lambda: (r := rig.deployment.reason) and r.code == "metered_hours", "the pause")
        rig.broker.retained[topic] = payload
        rig.clock.day = NIGHT
        rig.wait(1, OrderOutcome.ACTIVE)
        assert sorted(rig.broker.fetched) == sorted(ONE.blobs)


# --- coming back ------------------------------------------------------------------------------------


def arrivals(spread_s: float, outage_s: float, seed: int, agents: int = 10_000) -> list[float]:
    """When each of many agents connects that lost the broker at 0, which is back at `outage_s`."""
    chance = random.Random(seed)
    found = []
    for _ in range(agents):
        now, failures = 0.0, 0
        while True:
            now += wait_s(
                failures=failures, lost=True, spread_s=spread_s, ceiling_s=60.0, unit=chance.random()
            )
            if now >= outage_s:
                found.append(now)
                break
            failures += 1
    return found


@pytest.mark.parametrize("outage_s", [0.0, 0.4, 12.0, 30.0, 95.0, 600.0])
def test_ten_thousand_agents_come_back_one_by_one_however_long_the_broker_was_away(outage_s: float) -> None:
    spread_s, agents = 30.0, 10_000
    per_second = Counter(int(at - outage_s) for at in arrivals(spread_s, outage_s, seed=int(outage_s)))
    fair = agents / spread_s
    # A Poisson count of 333 lies below 1.25 times that in all but one of a million seconds.
    assert max(per_second.values()) <= 1.25 * fair
    if outage_s <= spread_s:
        assert max(per_second) <= spread_s, "after a short outage the last one is back within the spread"


def test_without_a_spread_they_come_as_a_crowd() -> None:
    """What the spread is for: the same fleet with backoff alone."""
    per_second = Counter(int(at - 0.4) for at in arrivals(0.0, 0.4, seed=1))
    assert max(per_second.values()) > 10 * 10_000 / 30.0


@given(st.integers(0, 2000), st.booleans(), st.floats(0.0, 3600.0), st.floats(0.0, 0.999999))
def test_a_wait_is_never_nothing_and_never_longer_than_it_says(
    failures: int, lost: bool, spread_s: float, unit: float
) -> None:
    wait = wait_s(failures=failures, lost=lost, spread_s=spread_s, ceiling_s=60.0, unit=unit)
    assert WAIT_S_MIN <= wait <= max(60.0, spread_s, WAIT_S_MIN)


def test_the_first_connection_waits_for_nobody() -> None:
    assert wait_s(failures=0, lost=False, spread_s=3600.0, ceiling_s=60.0, unit=0.999) < 1.0
    late = [wait_s(failures=n, lost=False, spread_s=0.0, ceiling_s=60.0, unit=0.5) for n in range(12)]
    assert late == sorted(late)
    assert late[-1] == 30.0


# --- junk -------------------------------------------------------------------------------------------


def test_of_a_message_larger_than_what_was_asked_for_only_the_beginning_is_kept() -> None:
    exchange = Exchange(MemoryBroker())
    box: Box = queue.Queue()
    other: Box = queue.Queue()
    exchange.watch(["t"], 0, box, 10)
    assert exchange.deliver("t", bytes(6_000_000))
    assert box.get_nowait() == ("t", bytes(11)), "one byte more shows that it is too large"
    exchange.watch(["t"], 0, other, 20)
    assert exchange.deliver("t", bytes(20))
    assert (box.get_nowait(), other.get_nowait()) == (("t", bytes(20)),) * 2
    exchange.unwatch(["t"], box)
    exchange.unwatch(["t"], other)
    assert not exchange.deliver("t", b"x")


def test_a_broker_full_of_junk_ends_in_a_name(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.broker.hold(ONE)
        for topic in [topic for topic in rig.broker.retained if "/blob/" in topic]:
            rig.broker.retained[topic] = bytes(3_000_000)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: rig.broker.fetched, "the first answers")
        for _ in range(8):
            rig.clock.ahead_s += 2.5
            threading.Event().wait(0.3)
        reason = rig.wait(1, OrderOutcome.FAILED).reason
        assert reason is not None
        assert reason.code == "hash_mismatch"
