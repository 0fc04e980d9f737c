"""One thread per model in which its pieces of work run, one after the other, each cancellable.

For: keeping long work off the thread that owns the state, and never running two pieces of one model at
the same time, also when the first takes a while to notice that it was called off.
Not for: knowing what the work is (`agent.jobs`).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

Task = Callable[[threading.Event], None]

log = logging.getLogger(__name__)


class Lane:
    """A queue of tasks and the thread that does them; the thread starts with the first task."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[tuple[Task, threading.Event] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()

    def submit(self, task: Task) -> None:
        """Calls off what was submitted before, and does `task` once that has ended.

        Raises:
            RuntimeError: the machine has no thread to give; nothing was submitted.
        """
        self._cancel.set()
        self._cancel = threading.Event()
        self._put(task, self._cancel)

    def append(self, task: Task) -> None:
        """Does `task` after what was submitted before, without calling that off.

        Raises:
            RuntimeError: as for `submit`.
        """
        self._put(task, threading.Event())

    def cancel(self) -> None:
        """Calls off what was submitted."""
        self._cancel.set()

    def _put(self, task: Task, cancel: threading.Event) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=f"lane-{self._name}", daemon=True)
            thread.start()
            self._thread = thread
        self._tasks.put((task, cancel))

    def _run(self) -> None:
        while (entry := self._tasks.get()) is not None:
            task, cancel = entry
            try:
                task(cancel)
            except Exception:
                # The task reports its own failures; one that escapes must not end the lane.
                log.exception("a task of lane %s failed", self._name)

    def end(self) -> None:
        """Ends the thread once it has done what was submitted; nothing may be submitted any more."""
        if self._thread is not None:
            self._tasks.put(None)

    def close(self, wait_s: float) -> bool:
        """Calls everything off and ends the thread.

        Returns:
            Whether it ended in time.
        """
        self._cancel.set()
        if self._thread is None:
            return True
        self._tasks.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()
