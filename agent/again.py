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
    """Whether the daemon is to start again when its loop has ended.

    Args:
        runner: the loop.
        environment: what was taken out of this process's, and the next one needs.
    """

    def __init__(self, runner: Runner, environment: Mapping[str, str]) -> None:
        self._runner, self._environment = runner, environment
        self._asked = self._ended = False

    @property
    def asked(self) -> bool:
        """Whether it is; whoever wants the daemon gone comes first, whenever that is."""
        return self._asked and not self._ended

    def ask(self) -> None:
        """Ends the loop, to start again."""
        self._asked = True
        self._runner.stop()

    def end(self) -> None:
        """Ends the loop for good; signal handlers too."""
        self._ended = True
        self._runner.stop()

    def start(self) -> None:
        """This program, as it was started; for when nothing is open here any more.

        Returns only where somebody wanted it gone meanwhile.

        Raises:
            OSError: the interpreter is gone; then a service manager has to start it.
        """
        # A wish that comes before the handler is there must not end the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            # What comes from here on ends the process at once: nothing is left to put in order.
            signal.signal(number, signal.SIG_DFL)
        if not self.asked:
            return
        log.info("starting again, as this device's enrolment has changed")
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, {**os.environ, **self._environment})  # noqa: S606 - this program
