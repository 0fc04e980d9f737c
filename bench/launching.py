"""Other programs, with what they cost.

For: wall time and peak memory of a tool that is run as its users run it, and the line that says why it
failed.
Not for: measuring anything within this process.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[1]

_LAUNCH = """
import json, os, signal, sys, time
began = time.perf_counter()
limit = int(sys.argv.pop(1))
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.execv(sys.argv[2], sys.argv[2:])
signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
signal.alarm(limit)
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - began, usage.ru_maxrss]))
"""
"""A small process between this one and the tool: a fork of a large process counts as its child's peak."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b")
_TEXT_MAX = 300
_SECONDS_MAX = 3600


class Launched(Struct, frozen=True, kw_only=True):
    """A program that has ended.

    Attributes:
        code: that it ended with; negative for a signal.
        seconds: of wall time, its start included.
        rss_mib_peak: of its largest process.
        lines: of its standard output and error, in the order in which they came.
    """

    code: int
    seconds: float
    rss_mib_peak: int
    lines: tuple[str, ...]

    @property
    def costs(self) -> dict[str, object]:
        """For a table."""
        return {"seconds": round(self.seconds, 2), "rss_mib_peak": self.rss_mib_peak}


def launch(
    command: Sequence[str | Path],
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    seconds_max: int = _SECONDS_MAX,
) -> Launched:
    """Runs a program to its end.

    Args:
        command: an absolute path and its arguments; nothing is looked up.
        cwd: where it runs.
        environment: all of its variables; this process's by default.
        seconds_max: then it is killed, with the processes that it started.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        launcher = [sys.executable, "-S", "-c", _LAUNCH, str(seconds_max), str(log), *map(str, command)]
        done = subprocess.run(launcher, cwd=cwd, env=environment, check=True, capture_output=True, text=True)
        words = log.read_text(encoding="utf-8", errors="replace")
    code, seconds, kib = json.loads(done.stdout)
    lines = tuple(_COLOUR.sub("", line) for line in words.splitlines() if line.strip())
    if code == -signal.SIGKILL and seconds >= seconds_max:
        lines += (f"LimitError: not done after {seconds_max} s",)
    return Launched(code=code, seconds=seconds, rss_mib_peak=round(kib / 1024), lines=lines)


def timed(command: Sequence[str]) -> tuple[dict[str, object], str]:
    """Costs of a command, and its last words where it failed."""
    ended = launch(command)
    return ended.costs, "" if ended.code == 0 else f"exit {ended.code}: {' '.join(ended.lines[-2:])}"[
        :_TEXT_MAX
    ]


def reason(lines: Sequence[str]) -> str:
    """The line that says why a program failed, with the one after it where it ends in a colon.

    The first line of the last exception that was printed; without one the last line.
    """
    found = [at for at, line in enumerate(lines) if _ERROR.match(line.strip())]
    if not found:
        return lines[-1].strip()[:_TEXT_MAX] if lines else "it said nothing"
    at = found[-1]
    first = lines[at].strip()
    more = lines[at + 1].strip() if first.endswith((".", ":")) and at + 1 < len(lines) else ""
    return f"{first} {more}".strip()[:_TEXT_MAX]
