"""The terminal: its width, its progress bars.

For: every command's output.
Not for: what is shown (`converter.table`, `converter.cli.show`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from converter.measured import Progress

WIDE = 150
"""Columns that hold every column of the candidate table."""
_WIDTH_UNBOUNDED = 400
"""Where nothing is to be cut or wrapped."""


def console(*, wide: bool = False) -> Console:
    """Standard output; a pipe and `--wide` take as many columns as a table wants."""
    unbounded = wide or not sys.stdout.isatty()
    return Console(width=_WIDTH_UNBOUNDED if unbounded else None, highlight=False, soft_wrap=False)


@contextmanager
def progress(*, shown: bool) -> Iterator[Progress]:
    """A bar on standard error for each stage."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bars:
        tasks = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield told
