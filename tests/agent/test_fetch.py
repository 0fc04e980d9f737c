"""The window, the stall timer and what is told as missing, on a clock that the test turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.fetch import BAD_ANSWERS_MAX, STALL_S_MIN, WINDOW_FIRST, Transfer, lacking
from wire.bundle import Chunk


def chunks(count: int, size_bytes: int = 1000) -> list[Chunk]:
    return [Chunk(sha256=f"{number:064x}", size_bytes=size_bytes) for number in range(count)]


def test_each_lacking_chunk_is_asked_for_once_and_in_order() -> None:
    a, b, c = chunks(3)
    assert lacking([a, b, a, c, b], [b.sha256]) == (a, c)


def test_the_window_starts_small_and_doubles_while_the_rate_carries_it() -> None:
    transfer = Transfer(chunks(200), 0.0)
    now, seen = 0.0, []
    while not transfer.done:
        transfer.turn(now)
        seen.append(len(transfer.asked))
        now += 0.01
        for name in transfer.asked:
            transfer.arrived(name, now)
    assert seen[0] == WINDOW_FIRST
    assert max(seen) == 32


def test_a_slow_line_keeps_the_window_within_five_seconds() -> None:
    """12 KB/s with chunks of 24 KB: five seconds carry two of them."""
    transfer = Transfer(chunks(40, 24_000), 0.0)
    now = 0.0
    while not transfer.done:
        transfer.turn(now)
        assert len(transfer.asked) <= 2
        now += 2.0
        transfer.arrived(transfer.asked[0], now)
    assert transfer.stalls == 0


def test_a_silence_asks_again_for_everything_that_was_asked() -> None:
    transfer = Transfer(chunks(3), 0.0)
    first = transfer.turn(0.0)
    assert first.wake_s == STALL_S_MIN
    assert transfer.turn(STALL_S_MIN - 0.1).subscribe == ()
    again = transfer.turn(STALL_S_MIN)
    assert again.unsubscribe == again.subscribe == first.subscribe
    assert transfer.stalls == 1
    assert again.missing == ()
    assert transfer.turn(2 * STALL_S_MIN).missing == first.subscribe


def test_the_stall_timer_follows_a_slow_chunk() -> None:
    transfer = Transfer(chunks(3), 0.0)
    transfer.turn(0.0)
    transfer.arrived(transfer.asked[0], 4.0)
    assert transfer.stall_s == 16.0
    assert transfer.turn(4.0 + 15.9).subscribe == transfer.asked[1:]
    assert transfer.stalls == 0


def test_a_chunk_that_arrives_ends_the_count_of_stalls() -> None:
    transfer = Transfer(chunks(3), 0.0)
    transfer.turn(0.0)
    transfer.turn(6.0)
    transfer.arrived(transfer.asked[0], 7.0)
    assert transfer.stalls == 0
    assert transfer.turn(7.0).unsubscribe == (f"{0:064x}",)


def test_wrong_bytes_are_asked_for_again_after_a_pause_and_not_for_ever() -> None:
    transfer = Transfer(chunks(1), 0.0)
    now = 0.0
    for attempt in range(BAD_ANSWERS_MAX):
        assert transfer.spoilt is None
        asked = transfer.turn(now).subscribe
        assert len(asked) == 1, f"attempt {attempt}"
        transfer.spoil(asked[0], now)
        pause = transfer.turn(now)
        assert pause.subscribe == ()
        assert pause.missing == asked
        now = pause.wake_s
    assert transfer.spoilt == f"{0:064x}"
    assert transfer.stalls == 0, "a pause of our own is nobody's stall"


def test_what_was_not_asked_for_changes_nothing() -> None:
    transfer = Transfer(chunks(2), 0.0)
    transfer.arrived("f" * 64, 1.0)
    transfer.spoil("f" * 64, 1.0)
    assert (transfer.bytes_done, transfer.expects("f" * 64)) == (0, None)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.integers(1, 40))
def test_every_chunk_comes_exactly_once_whatever_the_network_does(moves: list[int], count: int) -> None:
    """0-6: the oldest asked chunk arrives; 7: wrong bytes; 8: a long silence; 9: a duplicate."""
    transfer = Transfer(chunks(count), 0.0)
    now = 0.0
    arrived: list[str] = []
    subscribed: set[str] = set()
    for move in moves + [0] * 400:
        turn = transfer.turn(now)
        subscribed -= set(turn.unsubscribe)
        subscribed |= set(turn.subscribe)
        assert subscribed >= set(transfer.asked)
        assert len(transfer.asked) <= 32
        if transfer.done or transfer.spoilt:
            break
        now += 6.0 if move == 8 else 0.5
        if not transfer.asked:
            continue
        name = transfer.asked[0]
        if move == 7:
            transfer.spoil(name, now)
        elif move == 9 and arrived:
            transfer.arrived(arrived[-1], now)
        elif move != 8:
            transfer.arrived(name, now)
            arrived.append(name)
    assert len(arrived) == len(set(arrived))
    assert transfer.spoilt or sorted(arrived) == [f"{n:064x}" for n in range(count)]
    assert transfer.bytes_done == 1000 * len(arrived)
