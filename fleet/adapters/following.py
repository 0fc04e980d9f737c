"""Looks at the files of the registry's keys, and has them taken up when they changed and can be used.

For: stamps of files, the state of what is watched, and what is wrong, in words for `health` and the log.
Not for: when files are read (`fleet.succession`), or what is done with them (`fleet.adapters.signing_desk`,
`fleet.adapters.door`): each takes all of it up or nothing, and says by an error why nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from fleet import succession
from fleet.ports import StoreError
from fleet.succession import Stamp, Stamps, Step
from wire.errors import ShallopError

_LOG = logging.getLogger("shallop.fleet.following")


class Holder(Protocol):
    """Holds what was read from files, for the whole process."""

    def files(self) -> Iterable[Path]:
        """Those that say what is held; the ones that are missing may be among them."""

    def take_up(self) -> str:
        """Reads them and uses what they say from now on, whole; what changed, in words, empty for nothing.

        Raises:
            ShallopError: they cannot be used; what was held is still.
            OSError: likewise.
        """


class Following:
    """One set of files and who holds what is in them.

    Args:
        holder: it.
        begun: stamps of the files from before they were read for the first time, so that nothing is missed.

    Attributes:
        trouble: why what lies there is not used, in words; None if nothing is wrong.
    """

    def __init__(self, holder: Holder, begun: Stamps) -> None:
        self._holder = holder
        self._watched = succession.begun(begun)
        self._asked = False
        self.trouble: str | None = None

    def ask(self) -> None:
        """The next look reads them whatever they look like."""
        self._asked = True

    def look(self) -> None:
        """A look; cheap where nothing changed.

        Raises:
            StoreError: the database could not be used. What the files say may be half taken up: it is in use,
                and not everything is signed by it. The next look goes on.
        """
        found, asked, self._asked = stamps(self._holder.files()), self._asked, False
        self._watched, step = succession.looked(self._watched, found, time.monotonic(), asked=asked)
        if step is Step.READ:
            self._read(found)
        elif self._watched.refused is None:
            self.trouble = None

    def _read(self, found: dict[str, Stamp]) -> None:
        try:
            changed = self._holder.take_up()
        except StoreError:
            raise
        except (ShallopError, OSError) as error:
            self._watched = succession.refused(self._watched, found, time.monotonic())
            if str(error) != self.trouble:
                _LOG.error("not taken up, what was held before stays in use: %s", error)
            self.trouble = str(error)
        else:
            self._watched = succession.taken_up(self._watched, found)
            self.trouble = None
            if changed:
                _LOG.warning("taken up: %s", changed)


class Followings:
    """All that one registry follows; none of them stands in the way of another."""

    def __init__(self, followings: Sequence[Following]) -> None:
        self._followings = tuple(followings)

    @property
    def trouble(self) -> str | None:
        """What is wrong with any of them, in words; None if nothing is."""
        return "; ".join(one.trouble for one in self._followings if one.trouble) or None

    def ask(self) -> None:
        """The next look reads all files whatever they look like."""
        for one in self._followings:
            one.ask()

    def look(self) -> None:
        """A look at all of them.

        Raises:
            StoreError: see `Following.look`.
        """
        failed: StoreError | None = None
        for one in self._followings:
            try:
                one.look()
            except StoreError as error:
                failed = error
        if failed is not None:
            raise failed


def stamps(files: Iterable[Path]) -> dict[str, Stamp]:
    """By which it is seen that a file was replaced, written or given to somebody else.

    One that is not there has no entry; one that cannot be looked at has its error for a stamp.
    """
    found: dict[str, Stamp] = {}
    for path in files:
        try:
            seen = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            found[str(path)] = (-(error.errno or 0),)
            continue
        found[str(path)] = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return found
