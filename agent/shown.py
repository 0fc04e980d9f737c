"""The commands that show something: `status` and `doctor`.

For: tables and JSON on a terminal or in a pipe, and their exit codes.
Not for: finding out what is shown (`agent.app`), or the words (`agent.status_view`, `agent.doctor.table`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading

import msgspec

from agent import status_view
from agent.config import Config
from agent.doctor.finding import exit_code
from agent.doctor.table import table

_HOME_AND_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def status(config: Config, arguments: argparse.Namespace) -> int:
    """Shows what runs; again and again with --watch, until interrupted."""
    from agent import app  # noqa: PLC0415 - other commands need none of it

    last, done = "", _interrupted(watching=arguments.watch is not None)
    while True:
        picture = app.status(config)
        shown = _json(picture) if arguments.json else status_view.text(picture)
        if shown != last:
            sys.stdout.write((_HOME_AND_CLEAR if arguments.watch and sys.stdout.isatty() else "") + shown)
            sys.stdout.flush()
        if arguments.watch is None or done.wait(arguments.watch):
            return 0
        last = shown


def _interrupted(*, watching: bool) -> threading.Event:
    """Set by Ctrl-C while watching: an exception could come, and be lost, in the middle of anything."""
    done = threading.Event()
    if watching:
        signal.signal(signal.SIGINT, lambda _number, _frame: done.set())
    return done


def doctor(config: Config, arguments: argparse.Namespace) -> int:
    """Examines this machine; 3 where something does not work."""
    from agent import app  # noqa: PLC0415

    findings = app.doctor(config, arguments.config)
    if arguments.json:
        sys.stdout.write(_json(findings))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        columns = shutil.get_terminal_size((100, 24)).columns
        sys.stdout.write(table(findings, columns, colour=colour))
    return exit_code(findings)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
