"""Looks into model files in a process that ends, with limits on its memory and its time.

For: `converter.inspect`, whose files may be anyone's: what ends the onnx package, ONNX Runtime or LiteRT, or
keeps them busy without end, ends that process and is told by name.
Not for: looking (`converter.look`), or the conversion, which opens the person's own model many times.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self, TypeVar

import msgspec
from msgspec import Struct, structs

from converter.errors import InputError
from converter.limits import REASON_CHARS_MAX
from converter.look import Job, Model, Ran
from converter.tflite_summary import TFLiteModel

_LINE_BYTES_MAX = 32 * 1024 * 1024
_TAIL_BYTES = 2000
_ENDING_S_MAX = 5.0
"""From the end of what it says to its own."""
_ROOT = Path(__file__).parent.parent
T = TypeVar("T")


class Limits(Struct, frozen=True, kw_only=True):
    """What the process may use.

    Attributes:
        memory_bytes_max: address space, of which runtimes map far more than they touch.
        memory_times_max: and so many times the largest file.
        file_bytes_max: of one that it writes, and likewise so many times the largest file.
        cpu_s_max: processor seconds for one file.
        wall_s_max: for one file.
    """

    memory_bytes_max: int = 6 * 1024**3
    memory_times_max: int = 12
    file_bytes_max: int = 1024**3
    cpu_s_max: int = 600
    wall_s_max: float = 900.0


class Said(Struct, frozen=True, kw_only=True):
    """One file described, or `code` and `words` of its refusal."""

    onnx: Model | None = None
    tflite: TFLiteModel | None = None
    code: str = ""
    words: str = ""


def looked(jobs: Sequence[Job], limits: Limits | None = None) -> Iterator[Model | TFLiteModel]:
    """What each file is, in their order.

    Raises:
        InputError: why a file is refused; `model_not_opened`: it ended the process before it was described.
    """
    limits, done = limits or Limits(), 0
    while done < len(jobs):
        with _Process(jobs[done:], limits) as process:
            for job in jobs[done:]:
                found, goes_on = _one(process, job)
                done += 1
                yield found
                if not goes_on:
                    break


def _one(process: _Process, job: Job) -> tuple[Model | TFLiteModel, bool]:
    """One file, and whether the process goes on to the next."""
    said = process.heard(Said)
    if said is None:
        raise InputError("model_not_opened", f"{job.name} cannot be looked into: {process.end()}")
    if said.code:
        raise InputError(said.code, said.words)
    ran = process.heard(Ran)
    told = ran or Ran(note=f"opening it ended the process: {process.end()}"[:REASON_CHARS_MAX])
    found = said.onnx or said.tflite
    if isinstance(found, Model):
        return structs.replace(found, fusion=told.fusion, fusion_note=told.note), ran is not None
    if found is None:
        raise InputError("model_not_opened", f"{job.name} cannot be looked into: nothing was said of it")
    return structs.replace(found, runs=not told.note, runs_note=told.note), ran is not None


class _Process:
    """The other process, and why it ended."""

    def __init__(self, jobs: Sequence[Job], limits: Limits) -> None:
        self._limits = limits
        self._late = False
        self._folder = tempfile.TemporaryDirectory(prefix="shallop-look-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the exit
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "converter.look_child"],
            # Large files that it leaves go with the folder; idle threads of numpy's cost address space.
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": self._folder.name, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        with _piped(self._process.stdin) as asked, suppress(BrokenPipeError):
            asked.write(msgspec.json.encode((limits, jobs)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        _piped(self._process.stdout).close()
        self._errors.close()
        self._folder.cleanup()

    def heard(self, expected: type[T]) -> T | None:
        """The next line; None where there is none that can be read."""
        guard = threading.Timer(self._limits.wall_s_max, self._kill)
        guard.start()
        try:
            line = _piped(self._process.stdout).readline(_LINE_BYTES_MAX)
            return msgspec.json.decode(line, type=expected) if line else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        finally:
            guard.cancel()

    def _kill(self) -> None:
        self._late = True
        self._process.kill()

    def end(self) -> str:
        """Why it ended, in words."""
        if self._late:
            return f"it took longer than {self._limits.wall_s_max:g} s"
        try:
            code = self._process.wait(_ENDING_S_MAX)
        except subprocess.TimeoutExpired:
            return "what it says cannot be read"
        if code == -signal.SIGXCPU:
            return f"it took more than {self._limits.cpu_s_max} s of processor time"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}, {self._last_words()}"

    def _last_words(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = self._errors.read(_TAIL_BYTES).decode(errors="replace").split("\n")
        return next((line.strip()[:REASON_CHARS_MAX] for line in reversed(lines) if line.strip()), "no words")


def _piped(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the process was started without a pipe")
    return pipe
