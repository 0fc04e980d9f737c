"""The Raspberry Pi's firmware tool, run by a small process of its own beside the worker.

For: reading the power chip and the throttling bits while the worker itself may start no process
(`agent.worker.sandbox`) and holds hundreds of megabytes that a fork would have to go through. It is forked
before the sandbox closes, answers the questions of its list and no others, and ends with the worker.
Not for: sensors that are files; those are read directly.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from pathlib import Path

from agent.adapters import sensors

QUESTIONS = ("get_throttled", "pmic_read_adc")
_LENGTH = struct.Struct("=i")
_UNKNOWN = -1
"""In place of a length: the tool did not answer."""
_PATIENCE_S = 2 * sensors.TOOL_TIMEOUT_S


def start(root: Path) -> None:
    """Starts the process, where there is the tool; from now on this process asks that one.

    Call it while there is one thread.

    Raises:
        OSError: no process could be started.
    """
    if sensors.vcgencmd_path(root) is None:
        return
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    if os.fork() == 0:
        try:
            os.close(ours_out)
            os.close(ours_in)
            _answer(root, theirs_in, theirs_out)
        finally:
            os._exit(0)
    os.close(theirs_in)
    os.close(theirs_out)
    sensors.ask_elsewhere(_Asking(ours_out, ours_in).ask)


def _answer(root: Path, questions: int, answers: int) -> None:
    """One byte asks, by its place in the list; the end of the pipe ends this process."""
    while byte := os.read(questions, 1):
        said = sensors.vcgencmd(root, QUESTIONS[byte[0]]) if byte[0] < len(QUESTIONS) else None
        if said is None:
            os.write(answers, _LENGTH.pack(_UNKNOWN))
            continue
        data = said.encode()
        with os.fdopen(os.dup(answers), "wb") as file:
            file.write(_LENGTH.pack(len(data)) + data)


class _Asking:
    """The worker's end; any thread may ask."""

    def __init__(self, questions: int, answers: int) -> None:
        self._questions, self._answers = questions, answers
        self._lock = threading.Lock()
        self._lost = False

    def ask(self, question: str) -> str | None:
        """The tool's words; None where it fails, is too slow or is gone."""
        if question not in QUESTIONS:
            return None
        with self._lock:
            if self._lost:
                return None
            try:
                os.write(self._questions, bytes([QUESTIONS.index(question)]))
                (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
                if length == _UNKNOWN:
                    return None
                return self._read(min(length, 4 * sensors.FILE_BYTES_MAX)).decode("utf-8", errors="replace")
            except (OSError, struct.error):
                # Whatever came too late would be taken for the next answer.
                self._lost = True
                return None

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not select.select([self._answers], [], [], _PATIENCE_S)[0]:
                raise TimeoutError
            part = os.read(self._answers, size - len(data))
            if not part:
                raise BrokenPipeError
            data += part
        return data
