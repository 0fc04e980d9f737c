"""The clock, chance and disk space of this machine.

For: fulfilling `Clock`, `Randomness` and `Disk` of `agent.ports`.
Not for: anything that could fail in an interesting way.
"""

from __future__ import annotations

import ctypes
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from agent.metering import LocalTime

_TIMEX_BYTES = 512
"""Above the 208 of `struct timex` on 64-bit machines; zeros ask and change nothing (adjtimex(2))."""
_TIME_ERROR = 5
_TIMESYNCD_MARK = Path("/run/systemd/timesync/synchronized")


class SystemClock:
    """CLOCK_BOOTTIME for durations, so that a sleeping machine does not make a deadline longer."""

    def boot_s(self) -> float:
        """Seconds since the machine started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now_text(self) -> str:
        """Wall-clock time as RFC 3339 in UTC."""
        return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def local(self) -> LocalTime:
        """The time of day in this machine's time zone."""
        now = time.localtime()
        return LocalTime(minute=now.tm_hour * 60 + now.tm_min, synchronised=clock_synchronised())


def clock_synchronised() -> bool:
    """Whether the kernel holds the clock for right (adjtimex(2)), or systemd-timesyncd has set it."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)) if adjtimex is not None else -1
    return 0 <= state < _TIME_ERROR or _TIMESYNCD_MARK.exists()


def boot_id(root: Path) -> str:
    """The kernel's id of this start of the machine; empty where it cannot be read."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:64]
    except (OSError, UnicodeDecodeError):
        return ""


class SystemRandom:
    """From the operating system, so that devices with equal images do not draw equal numbers."""

    def unit(self) -> float:
        """A number in [0, 1), of 53 bits, as `random.SystemRandom` makes it with 0.3 MiB of `random`."""
        return (int.from_bytes(os.urandom(7)) >> 3) * 2.0**-53


class SystemDisk:
    """`statvfs`."""

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write where `path` lies."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize
