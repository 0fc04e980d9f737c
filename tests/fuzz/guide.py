"""Coverage of our own Python, by which inputs that reach something new are kept and bent further.

For: the pure-Python walkers, where a byte decides which branch is taken. By `sys.settrace`, which Python has
of itself; docs/adr/0016-fuzzing.md has what atheris would give instead.
Not for: msgspec, whose C code shows nothing, or for saying how much is covered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = str(Path(__file__).parent.parent.parent)
_ROOMS = tuple(f"{ROOT}/{room}/" for room in ("wire", "agent", "fleet", "converter", "shallop_client"))


class Guide:
    """Edges between lines that were seen so far, each with the power of two of how often in one run."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int, int, int]] = set()
        self._ours: dict[CodeType, int] = {}
        self._counts: dict[tuple[int, int, int], int] = {}

    def new(self, call: Callable[[], object]) -> bool:
        """Calls, and tells whether something was reached that never was."""
        self._counts = {}
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(before)
            found = {(*edge, count.bit_length()) for edge, count in self._counts.items()} - self.seen
            self.seen |= found
        return bool(found)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:  # noqa: ANN401 - sys.settrace's own
        code = frame.f_code
        number = self._ours.get(code)
        if number is None:
            ours = code.co_filename.startswith(_ROOMS)
            number = self._ours[code] = len(self._ours) + 1 if ours else 0
        if not number:
            return None
        counts, last = self._counts, 0

        def line(frame: FrameType, event: str, _arg: object) -> Any:  # noqa: ANN401 - as above
            nonlocal last
            if event == "line":
                edge = number, last, frame.f_lineno
                counts[edge] = counts.get(edge, 0) + 1
                last = frame.f_lineno
            return line

        return line
