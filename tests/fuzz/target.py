"""What a fuzz target is: one reader of bytes from outside, and what may come of them.

For: the type,
and the judgement of one execution. A reader gives a value or raises an error of the family that
its documentation names; it does so twice alike; what it gave, encoded again, reads as the same; it takes
bounded processor time and memory.
Not for: making inputs (`tests.fuzz.mutate`), or running many (`tests.fuzz.engine`).
"""

from __future__ import annotations

import gc
import re
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Any

from msgspec import Struct

from wire.errors import ShallopError

Mutate = Callable[[Random, bytes], bytes]

CPU_S_MAX = 5.0
"""Of one execution: far above what any takes, so that a slow machine proves nothing."""
MEMORY_BYTES_MAX = 64 * 1024**2
ERROR_CHARS_MAX = 6000
"""A message goes into logs and reports; one that repeats its input would carry it there."""
_CODE = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Finding(Exception):  # noqa: N818 - it is what a fuzzer looks for
    """An execution that broke a promise.

    Attributes:
        kind: `crash`, `hang`, `memory`, `unstable`, `roundtrip` or `unnamed`.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}"[:2000])
        self.kind = kind


class _Slow(BaseException):
    """Raised by the timer; nothing catches it on the way."""


class Target(Struct, frozen=True, kw_only=True):
    """One reader.

    Attributes:
        name: `room.reader`.
        run: reads the bytes; what it returns must have a `repr` that tells values apart.
        seeds: honest inputs by name, made by the program's own code.
        mutate: bends an input.
        refuse: what it may raise.
        again: bytes that must read as the same value.
        memory_bytes_max: at its peak, as Python counts.
        stable: whether the same bytes end alike the second time; a registry remembers the first.
        guided: whether coverage of our own Python tells inputs apart; msgspec's C code has none to show.
        weight: mutations in the ordinary run.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], dict[str, bytes]]
    mutate: Mutate
    refuse: tuple[type[BaseException], ...] = (ShallopError,)
    again: Callable[[Any], bytes] | None = None
    memory_bytes_max: int = MEMORY_BYTES_MAX
    stable: bool = True
    guided: bool = False
    weight: int = 300


def execute(target: Target, data: bytes, *, twice: bool = False, memory: bool = False) -> str:
    """Reads `data` once; how it ended in a word: `read`, or the error's code.

    Args:
        target: who reads.
        data: what.
        twice: read it again, and what came out, too.
        memory: watch the peak, which makes it several times slower.

    Raises:
        Finding: a promise was broken.
    """
    with _bounded(), _watched(target, memory=memory):
        word, value = _outcome(target, data)
        if twice and target.stable:
            _stable(target, data, word, value)
    return word


def _outcome(target: Target, data: bytes) -> tuple[str, object]:
    try:
        return "read", target.run(data)
    except target.refuse as error:
        return _word(error), None
    except _Slow:
        raise
    except Exception as error:
        raise Finding("crash", f"{type(error).__module__}.{type(error).__name__}: {error}") from error


def _word(error: BaseException) -> str:
    if len(str(error)) > ERROR_CHARS_MAX:
        raise Finding("unnamed", f"an error of {len(str(error))} characters: {str(error)[:100]}")
    if not isinstance(error, ShallopError):
        return type(error).__name__
    if not _CODE.fullmatch(error.code):
        raise Finding("unnamed", f"the code {error.code!r}")
    return error.code


def _stable(target: Target, data: bytes, word: str, value: object) -> None:
    again, second = _outcome(target, data)
    if (again, repr(second)) != (word, repr(value)):
        raise Finding("unstable", f"first {word} {value!r:.300}, then {again} {second!r:.300}")
    if word != "read" or target.again is None:
        return
    encoded = target.again(value)
    third, back = _outcome(target, encoded)
    if third != "read" or repr(back) != repr(value):
        raise Finding("roundtrip", f"{value!r:.300} was encoded and read as {third} {back!r:.300}")


@contextmanager
def _bounded() -> Iterator[None]:
    """Processor time of one execution, so that a loaded machine makes no hang."""

    def over(_signal: int, _frame: FrameType | None) -> None:
        raise _Slow

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, CPU_S_MAX)
    try:
        yield
    except _Slow:
        raise Finding("hang", f"more than {CPU_S_MAX} s of processor time") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _watched(target: Target, *, memory: bool) -> Iterator[None]:
    if not memory:
        yield
        return
    tracemalloc.start(1)
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > target.memory_bytes_max:
        raise Finding("memory", f"{peak} bytes at its peak, at most {target.memory_bytes_max} are allowed")


def growth_bytes(target: Target, inputs: list[bytes]) -> int:
    """What stays in memory after reading all of `inputs` once more, having read them before."""
    for data in inputs:
        _outcome(target, data)
    gc.collect()
    tracemalloc.start(1)
    try:
        before = tracemalloc.get_traced_memory()[0]
        for data in inputs:
            _outcome(target, data)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
