"""Telling systemd how the daemon is, over its notification socket.

For: `Type=notify` and `WatchdogSec=`, in a few lines instead of a dependency (sd_notify(3)).
Not for: anything where there is no systemd; then all of this does nothing.
"""

from __future__ import annotations

import math
import os
import socket
import time

STATUS_CHARS_MAX = 300
_OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdSupervisor:
    """Fulfils `agent.ports.Supervisor`.

    Attributes:
        environment: by which systemd is reached; for a daemon that starts again in place of this one.
    """

    def __init__(self) -> None:
        # Taken out of the environment, so that a hook or a trial never speaks for the daemon.
        taken = {name: os.environ.pop(name, "") for name in _OF_SYSTEMD}
        self.environment = {name: value for name, value in taken.items() if value}
        address, usec, pid = (taken[name] for name in _OF_SYSTEMD)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        meant = not pid or pid == str(os.getpid())
        self._watchdog_s = int(usec) / 1e6 if meant and usec.isdecimal() and int(usec) else None
        self._last_s = 0.0

    @property
    def within_s(self) -> float:
        """The loop may sleep no longer, whatever interval the unit was given: a third of it."""
        return math.inf if self._watchdog_s is None else self._watchdog_s / 3

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(text.encode(), self._address)
            except OSError:
                # A supervisor that does not listen is no reason to stop carrying models.
                return

    def ready(self) -> None:
        """The daemon is at work."""
        self._send("READY=1")

    def alive(self) -> None:
        """Feeds the watchdog, at most four times in its interval."""
        now_s = time.monotonic()
        if self._watchdog_s is not None and now_s - self._last_s >= self._watchdog_s / 4:
            self._last_s = now_s
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; a second line would be a message of its own."""
        self._send(f"STATUS={' '.join(text.split())[:STATUS_CHARS_MAX]}")

    def stopping(self) -> None:
        """The daemon is going down on purpose."""
        self._send("STOPPING=1")
