"""A crash at the nth step that changes the file system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

EFFECTS = ("replace", "rename", "fsync", "symlink", "link", "unlink", "mkdir", "rmdir")


class PowerCut(BaseException):
    """Not an Exception, so that no handler of the code under test catches it."""


@contextlib.contextmanager
def crash_at(step: int, *, after: bool = False) -> Iterator[list[str]]:
    """Raises `PowerCut` before (or right after) the effect number `step`, counted from 0.

    Yields:
        The names of the effects that were tried.
    """
    tried: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def effect(*args: Any, **options: Any) -> Any:  # noqa: ANN401
            tried.append(name)
            cut = len(tried) - 1 == step
            if cut and not after:
                raise PowerCut
            try:
                return real(*args, **options)
            finally:
                if cut:
                    raise PowerCut

        return effect

    with contextlib.ExitStack() as stack:
        for name in EFFECTS:
            stack.enter_context(mock.patch.object(os, name, wrap(name, getattr(os, name))))
        yield tried


def every_crash(run: Callable[[int, bool], bool]) -> int:
    """Calls `run(step, after)` for every step until it ran through without a crash.

    Args:
        run: returns whether the crash happened.

    Returns:
        How many crashes there were.
    """
    crashes = 0
    for after in (False, True):
        step = 0
        while run(step, after):
            step += 1
            crashes += 1
            assert step < 500, "the code under test never ends"
    return crashes
