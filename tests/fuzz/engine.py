"""Many executions of one target: the saved inputs first, then mutations of them.

For: a number of executions or a number of seconds from one seed, and what came of them.
Not for: judging one execution (`tests.fuzz.target`), or processes (`tests.fuzz.__main__`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from msgspec import Struct, field

from tests.fuzz.guide import Guide
from tests.fuzz.target import Finding, Target, execute

TWICE_EVERY = 4
MEMORY_EVERY = 64
GUIDED_SHARE = 0.5
QUEUE_MAX = 2000


class Found(Struct, frozen=True):
    """An input that broke a promise."""

    kind: str
    detail: str
    data: bytes

    @property
    def name(self) -> str:
        """Of the file that keeps it."""
        return f"{self.kind}-{hashlib.sha256(self.data).hexdigest()[:12]}"


class Run(Struct, kw_only=True):
    """What came of one target.

    Attributes:
        executions: how many.
        took_s: of wall time.
        words: how often each end was seen.
        found: inputs that broke a promise, one of each kind and place.
        queue: inputs that reached something new, where coverage was watched.
        edges: that were reached.
    """

    executions: int = 0
    took_s: float = 0.0
    words: Counter[str] = field(default_factory=Counter)
    found: list[Found] = []
    queue: list[bytes] = []
    edges: int = 0


def run(
    target: Target,
    saved: list[bytes],
    *,
    seed: int,
    executions: int | None = None,
    seconds: float | None = None,
    guide: Guide | None = None,
    before: Callable[[bytes], object] = len,
) -> Run:
    """Reads the saved inputs, then bends them until the number or the time is reached.

    Args:
        target: who reads.
        saved: inputs, the honest ones and those that ever failed.
        seed: of the mutations.
        executions: besides the saved ones.
        seconds: of wall time, instead.
        guide: what was reached; inputs that reach more are bent further.
        before: told each input before it is read, so that one that kills the process is known.
    """
    logging.disable(logging.CRITICAL)
    try:
        return _run(target, saved, Random(seed), executions, seconds, guide, before)
    finally:
        logging.disable(logging.NOTSET)


def _run(
    target: Target,
    saved: list[bytes],
    random: Random,
    executions: int | None,
    seconds: float | None,
    guide: Guide | None,
    before: Callable[[bytes], object],
) -> Run:
    done = Run()
    queue, began_s = list(saved), time.monotonic()
    for data in saved:
        before(data)
        _one(target, data, done, guide, twice=True, memory=True)
    total = done.executions + (executions or 0)
    while done.executions < total if seconds is None else time.monotonic() - began_s < seconds:
        data = target.mutate(random, random.choice(queue))
        while random.random() < 0.3:
            data = target.mutate(random, data)
        before(data)
        number = done.executions
        watched = guide if random.random() < GUIDED_SHARE else None
        new = _one(
            target, data, done, watched, twice=not number % TWICE_EVERY, memory=not number % MEMORY_EVERY
        )
        if new and len(queue) < QUEUE_MAX:
            queue.append(data)
    done.took_s = time.monotonic() - began_s
    done.queue = queue[len(saved) :]
    done.edges = len(guide.seen) if guide else 0
    return done


def _one(target: Target, data: bytes, done: Run, guide: Guide | None, *, twice: bool, memory: bool) -> bool:
    done.executions += 1
    new = False

    def read() -> None:
        done.words[execute(target, data, twice=twice, memory=memory and guide is None)] += 1

    try:
        if guide is None:
            read()
        else:
            new = guide.new(read)
    except Finding as finding:
        _keep(done, Found(finding.kind, str(finding), data))
    return new


def _keep(done: Run, one: Found) -> None:
    """The smallest of those that look alike."""
    sign = (one.kind, one.detail[:60])
    for place, other in enumerate(done.found):
        if (other.kind, other.detail[:60]) == sign:
            if len(one.data) < len(other.data):
                done.found[place] = one
            return
    done.found.append(one)
