"""PURE. Which chunks are asked for next, and when a silence is a stall.

For: the window of subscriptions, its growth with the measured rate, a limit on that rate, the stall timer,
and telling what the broker does not hold or holds wrongly. Time comes in as seconds on any steady clock.
Not for: subscribing, hashing or storing (`agent.fetching`).

Rules (DESIGN.md section 3): the window starts at 2 and grows to at most 5 s of the measured rate; the
stall timer is max(5 s, 4 x the last chunk's time); a fixed 4 s timer at 12 KB/s cost 46% extra bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from msgspec import Struct

from agent.metering import Hours
from wire.bundle import Chunk
from wire.chunks import WINDOW_DEFAULT

WINDOW_FIRST = 2
WINDOW_SECONDS = 5.0
STALL_S_MIN = 5.0
STALL_CHUNK_TIMES = 4.0
STALLS_BEFORE_MISSING = 2
BAD_ANSWERS_MAX = 3
BAD_ANSWER_PAUSE_S = 2.0
RATE_SMOOTHING = 0.3
BURST_SECONDS = 1.0


class TransferLimits(Struct, frozen=True, kw_only=True):
    """What transfers on this device may take of its line.

    Attributes:
        rate_bytes_per_s_max: of all of them together; None for no limit.
        metered_hours: in which nothing is fetched.
    """

    rate_bytes_per_s_max: int | None = None
    metered_hours: tuple[Hours, ...] = ()


class TokenBucket:
    """A limit on bytes a second, shared by all transfers of a device; one caller at a time.

    Asking is allowed while there is no debt, and what is asked for is owed. So in any stretch of time no
    more is asked for than the rate carries in it, one second's burst, and the last chunk.
    """

    def __init__(self, rate_bytes_per_s: int, now_s: float) -> None:
        self._rate = float(rate_bytes_per_s)
        self._level = self._rate * BURST_SECONDS
        self._now_s = now_s

    def ready_s(self, now_s: float) -> float:
        """When asking is allowed: `now_s`, or the moment at which the debt will be paid."""
        self._fill(now_s)
        return now_s if self._level >= 0 else now_s - self._level / self._rate

    def spend(self, size_bytes: int, now_s: float) -> None:
        """Something of that size was asked for."""
        self._fill(now_s)
        self._level -= size_bytes

    def _fill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._now_s)
        self._now_s = max(now_s, self._now_s)
        self._level = min(self._rate * BURST_SECONDS, self._level + passed_s * self._rate)


def lacking(wanted: Iterable[Chunk], have: Iterable[str]) -> tuple[Chunk, ...]:
    """The chunks that have to come over the network, each once, in the order in which they are used."""
    seen = set(have)
    result = []
    for chunk in wanted:
        if chunk.sha256 not in seen:
            seen.add(chunk.sha256)
            result.append(chunk)
    return tuple(result)


class Turn(Struct, frozen=True, kw_only=True):
    """What to do now.

    Attributes:
        unsubscribe: digests no longer waited for, or to be asked for anew.
        subscribe: digests to ask for.
        missing: digests that the broker does not seem to hold; to be reported.
        wake_s: until when nothing has to be done if nothing arrives.
    """

    unsubscribe: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    wake_s: float


class Transfer:
    """One transfer of the chunks that a release lacks.

    Attributes:
        stalls: silences in a row that were longer than the timer.
        bytes_done: received and right.
    """

    def __init__(
        self,
        chunks: Iterable[Chunk],
        now_s: float,
        window_max: int = WINDOW_DEFAULT,
        bucket: TokenBucket | None = None,
    ) -> None:
        self._pending = deque(chunks)
        self._asked: dict[str, tuple[Chunk, float]] = {}
        self._paused: list[tuple[float, Chunk]] = []
        self._bad: dict[str, int] = {}
        self._window_max = window_max
        self._bucket = bucket
        self._window = min(WINDOW_FIRST, window_max)
        self._since_growth = 0
        self._progress_s = now_s
        self._chunk_s = 0.0
        self._rate: float | None = None
        self._drop: list[str] = []
        self.stalls = 0
        self.bytes_done = 0

    @property
    def done(self) -> bool:
        """Nothing is waited for any more."""
        return not (self._pending or self._asked or self._paused)

    @property
    def window(self) -> int:
        """Chunks that may be asked for at once."""
        return self._window

    @property
    def asked(self) -> tuple[str, ...]:
        """Digests that are subscribed to now."""
        return tuple(self._asked)

    @property
    def stall_s(self) -> float:
        """How long a silence is no stall."""
        return max(STALL_S_MIN, STALL_CHUNK_TIMES * self._chunk_s)

    @property
    def spoilt(self) -> str | None:
        """A digest whose topic gave wrong bytes too often; the transfer cannot succeed."""
        return next((name for name, count in self._bad.items() if count >= BAD_ANSWERS_MAX), None)

    def expects(self, digest: str) -> Chunk | None:
        """The chunk of that name, if it was asked for and has not come."""
        found = self._asked.get(digest)
        return found[0] if found else None

    def arrived(self, digest: str, now_s: float) -> None:
        """A chunk came and its bytes are right."""
        found = self._asked.pop(digest, None)
        if found is None:
            return
        chunk, asked_s = found
        self._drop.append(digest)
        self._bad.pop(digest, None)
        self._chunk_s = now_s - asked_s
        gap_s = max(now_s - self._progress_s, 1e-6)
        rate = chunk.size_bytes / gap_s
        self._rate = rate if self._rate is None else self._rate + RATE_SMOOTHING * (rate - self._rate)
        self._progress_s = now_s
        self.bytes_done += chunk.size_bytes
        self.stalls = 0
        self._grow(chunk)

    def _grow(self, chunk: Chunk) -> None:
        """Doubles after each full window without a stall, up to what five seconds can carry."""
        self._since_growth += 1
        by_rate = int(WINDOW_SECONDS * (self._rate or 0.0) / chunk.size_bytes)
        ceiling = max(1, min(self._window_max, max(WINDOW_FIRST, by_rate)))
        if self._since_growth >= self._window:
            self._since_growth = 0
            self._window = min(self._window * 2, ceiling)
        self._window = min(self._window, ceiling)

    def spoil(self, digest: str, now_s: float) -> None:
        """A chunk came with wrong bytes: it is asked for again after a pause, a few times."""
        found = self._asked.pop(digest, None)
        if found is None:
            return
        self._drop.append(digest)
        self._bad[digest] = self._bad.get(digest, 0) + 1
        self._paused.append((now_s + BAD_ANSWER_PAUSE_S, found[0]))

    def turn(self, now_s: float) -> Turn:
        """What to subscribe to and unsubscribe from at this moment."""
        for due_s, chunk in [entry for entry in self._paused if entry[0] <= now_s]:
            self._paused.remove((due_s, chunk))
            self._pending.appendleft(chunk)
        again = self._stalled(now_s)
        if not self._asked:
            # A wait of our own making (the pause after wrong bytes) is nobody's stall.
            self._progress_s = now_s
        subscribe = list(again)
        while self._pending and len(self._asked) < self._window and self._ready_s(now_s) <= now_s:
            chunk = self._pending.popleft()
            self._asked[chunk.sha256] = (chunk, now_s)
            self._spend(chunk, now_s)
            subscribe.append(chunk.sha256)
        unsubscribe = (*self._drop, *again)
        self._drop = []
        wake_s = self._progress_s + self.stall_s
        if self._paused:
            wake_s = min(wake_s, *(due for due, _ in self._paused))
        if self._pending and len(self._asked) < self._window:
            wake_s = min(wake_s, self._ready_s(now_s))
        return Turn(
            unsubscribe=unsubscribe,
            subscribe=tuple(subscribe),
            missing=self._missing(),
            wake_s=wake_s,
        )

    def _ready_s(self, now_s: float) -> float:
        return now_s if self._bucket is None else self._bucket.ready_s(now_s)

    def _spend(self, chunk: Chunk, now_s: float) -> None:
        if self._bucket is not None:
            self._bucket.spend(chunk.size_bytes, now_s)

    def _stalled(self, now_s: float) -> tuple[str, ...]:
        """After a silence, everything that was asked for is asked for again, in a small window."""
        if not self._asked or now_s - self._progress_s < self.stall_s:
            return ()
        self.stalls += 1
        self._progress_s = now_s
        self._window = min(WINDOW_FIRST, self._window_max)
        self._since_growth = 0
        self._asked = {name: (chunk, now_s) for name, (chunk, _) in self._asked.items()}
        for chunk, _ in self._asked.values():
            self._spend(chunk, now_s)
        return tuple(self._asked)

    def _missing(self) -> tuple[str, ...]:
        silent = tuple(self._asked) if self.stalls >= STALLS_BEFORE_MISSING else ()
        return tuple(dict.fromkeys((*self._bad, *silent)))
