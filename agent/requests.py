"""Local wishes to the running daemon, as files in its state directory.

For: `shallop-agent rollback` while the daemon holds the lock; who may write there may ask.
Not for: anything from the network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

REQUESTS_MAX = 64


class Requests:
    """One empty file per model to be rolled back."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, model: str) -> None:
        """Asks for a rollback.

        Raises:
            OSError: the directory cannot be written.
        """
        self._root.mkdir(exist_ok=True)
        (self._root / f"rollback-{model}").touch()

    def take(self, act: Callable[[str], object]) -> list[str]:
        """Does what was asked for, then forgets it: a wish that a crash comes between is done again.

        A rollback that was done already is refused, so that once more does no harm.

        Args:
            act: is given each model.

        Returns:
            The models.
        """
        if not self._root.is_dir():
            return []
        models = []
        for path in sorted(self._root.iterdir())[:REQUESTS_MAX]:
            found = re.fullmatch(r"rollback-([a-z0-9][a-z0-9._-]{0,62})", path.name)
            if found and path.is_file() and not path.is_symlink():
                act(found[1])
                models.append(found[1])
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%r among the local wishes cannot be taken away: %s", path.name[:200], error)
        return models
