"""The terminal: its width, its progress bars.

For: every command's output.
Not for: what is shown (`converter.table`, `converter.cli.show`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
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
    """A bar on standard error for each stage under way; `told` may be called from any thread."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bars:
        tasks: dict[str, TaskID] = {}
        furthest: dict[str, int] = {}
        lock = threading.Lock()

        def told(stage: str, done: int, total: int) -> None:
            # Samples are evaluated side by side: two threads may be the first to tell of a stage, and
            # one that waited here tells less than what another told before it.
            with lock:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                # What is done leaves the screen; a table of thirty candidates would push the rest out.
                furthest[stage] = max(done, furthest.get(stage, 0))
                bars.update(tasks[stage], completed=furthest[stage], visible=furthest[stage] < total)

        yield told
