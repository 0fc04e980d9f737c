"""The daemon that starts again in place of itself.

For: an enrolment, or an address of the fleet, that changed while it ran: everything that hangs on them is
built anew, in the same process, so that whoever supervises it sees one that goes on.
Not for: restarts that a service manager makes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping

from agent.runner import Runner

log = logging.getLogger(__name__)


class Again:
    """Whether the daemon is to start again when its loop has ended."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.asked = runner, False

    def ask(self) -> None:
        """Ends the loop, for that."""
        self.asked = True
        self._runner.stop()


def start_again(environment: Mapping[str, str]) -> None:
    """This program, as it was started; for when nothing is open here any more. Does not return.

    Args:
        environment: what was taken out of this process's, and the next one needs.

    Raises:
        OSError: the interpreter is gone; then a service manager has to start it.
    """
    log.info("starting again, as this device's enrolment has changed")
    # A wish that comes before the handler is there must not end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, **environment})  # noqa: S606 - this program itself
