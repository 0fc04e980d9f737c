"""Telling systemd how the daemon is, over its notification socket.

For: `Type=notify` and `WatchdogSec=`, in a few lines instead of a dependency (sd_notify(3)).
Not for: anything where there is no systemd; then all of this does nothing.
"""

from __future__ import annotations

import os
import socket
import time


class SystemdSupervisor:
    """Fulfils `agent.ports.Supervisor`."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = os.environ.get("WATCHDOG_USEC", "")
        self._every_s = int(usec) / 2e6 if usec.isdigit() else None
        self._last_s = 0.0

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
        """Feeds the watchdog, at most twice in its interval."""
        now_s = time.monotonic()
        if self._every_s is not None and now_s - self._last_s >= self._every_s / 2:
            self._last_s = now_s
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The daemon is going down on purpose."""
        self._send("STOPPING=1")
