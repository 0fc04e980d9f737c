"""The process in which files are looked into: limits on itself, then one after the other, then its end.

For: `converter.confined`, which starts it and reads what it says: for each file a line that describes it or
refuses it, and a line of what the runtime makes of it.
Not for: import by anyone else.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from converter.confined import Limits, Said
from converter.errors import InputError
from converter.look import Job, Look, Model


def _restrict(limits: Limits, jobs: list[Job]) -> None:
    """Memory in measure of the largest file: protobuf, runtime and optimized graph hold it several times."""
    paths = [Path(job.path) for job in jobs]
    largest = max((path.stat().st_size for path in paths if path.is_file()), default=0)
    for which, bytes_max in (
        (resource.RLIMIT_AS, limits.memory_bytes_max + limits.memory_times_max * largest),
        (resource.RLIMIT_FSIZE, limits.file_bytes_max + limits.memory_times_max * largest),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(which, bytes_max)


def _limit(which: int, most: int) -> None:
    """Never above what it was."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _more_time(limits: Limits) -> None:
    """Processor seconds for the next file, on top of what those before it took."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime) + limits.cpu_s_max)


def _one(job: Job, limits: Limits, answers: BinaryIO) -> None:
    _more_time(limits)
    try:
        look = Look(job)
        found = look.described()
    except InputError as error:
        _tell(answers, Said(code=error.code, words=str(error.args[0])))
        return
    except MemoryError:
        words = f"{job.name} takes more memory than a file of its size should; it is not opened"
        _tell(answers, Said(code="model_too_large", words=words))
        return
    _tell(answers, Said(onnx=found) if isinstance(found, Model) else Said(tflite=found))
    _tell(answers, look.ran())


def _tell(answers: BinaryIO, what: msgspec.Struct) -> None:
    answers.write(msgspec.json.encode(what) + b"\n")
    answers.flush()


def main() -> None:
    """Looks into the files that its starter names on standard input."""
    # Runtimes print greetings; those must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limits, jobs = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[Limits, list[Job]])
    _restrict(limits, jobs)
    for job in jobs:
        _one(job, limits, answers)


if __name__ == "__main__":
    main()
