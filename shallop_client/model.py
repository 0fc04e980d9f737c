"""The model that runs now, and a word when another one takes its place.

For: resolving `MODELS/NAME/current` once, so that everything that an application opens belongs to one
release, and waiting for the symlink to change.
Not for: loading a model, or any state of its own: every answer is what the disk says at that moment.

A release's directory is immutable. It stays on the disk while it is the current or the previous release,
which is at least until the switch after the next; then it is removed. An application that opens files of a
`Release` later than that gets `FileNotFoundError`, takes a new `Model.current()` and goes on.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Callable

from shallop_client.inotify import DirectoryWatch

log = logging.getLogger(__name__)

MODELS_DIR = "/var/lib/shallop/models"
JSON_BYTES_MAX = 16 * 1024 * 1024
TRIES = 10
_FOREVER_S = 365.0 * 86400.0


class NoModelError(LookupError):
    """There is no release of this model on this device yet, or its directory cannot be read."""


@dataclass(frozen=True)
class Release:
    """One release, whole: what `current` pointed to at one moment.

    Attributes:
        directory: the immutable directory, resolved.
        info: `release.json`: release, variant, digest, runtime, precision, inputs, outputs, axes ...
    """

    directory: Path
    info: dict[str, Any] = field(compare=False, repr=False)

    @property
    def path(self) -> Path:
        """The model's file."""
        return self.directory / str(self.info["model_file"])

    @property
    def name(self) -> str:
        """The release's name, such as `2026-11-21`."""
        return str(self.info["release"])

    @property
    def variant(self) -> str:
        """The variant that runs here, such as `onnxruntime/static_wi8_au8`."""
        return str(self.info["variant"])

    @property
    def runtime(self) -> str | None:
        """The runtime that the file was made for; None for a file that was adopted."""
        value = self.info.get("runtime")
        return None if value is None else str(value)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; empty where the release has none.

        Raises:
            FileNotFoundError: the release was removed meanwhile.
        """
        found = self._beside("labels.json", [])
        return tuple(str(label) for label in found) if isinstance(found, list) else ()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How raw samples become inputs, by the input's name; empty where the release does not say.

        Raises:
            FileNotFoundError: the release was removed meanwhile.
        """
        found = self._beside("preprocessing.json", {})
        return found if isinstance(found, dict) else {}

    def _beside(self, name: str, default: object) -> object:
        """A file that not every release has; whether the release is gone is asked after it was missing."""
        found = _json(self.directory / name, default)
        if found is default and not (self.directory / "release.json").exists():
            raise FileNotFoundError(f"{self.directory} was removed; take Model.current() again")
        return found


class Model:
    """One model on this device. Any thread may use it; each waits for itself.

    Args:
        name: as it is called in the fleet.
        models_dir: the agent's `state_dir` + `/models`.
    """

    def __init__(self, name: str, models_dir: str | os.PathLike[str] = MODELS_DIR) -> None:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} is no model's name")
        self.name = name
        self._folder = Path(models_dir) / name
        self._link = self._folder / "current"

    # --- what runs now

    def current(self) -> Release:
        """The release that `current` points to now. Keep it while you use it: it is one whole.

        Raises:
            NoModelError: there is none, or it cannot be read.
        """
        why = "there is no release on this device yet"
        for _ in range(TRIES):
            target = self._target()
            if target is None:
                break
            directory = Path(os.path.realpath(self._folder / target))
            try:
                info = _json(directory / "release.json", None)
            except (OSError, ValueError) as error:
                why = f"release.json cannot be read: {error}"
                if self._target() == target:
                    break
                # Two switches went by between the two lines above, and that release was removed: again.
                continue
            if not isinstance(info, dict) or not _plain(info):
                why = f"{directory}/release.json does not name release, variant and model_file"
                break
            return Release(directory=directory, info=info)
        raise NoModelError(f"{self._link}: {why}")

    @property
    def path(self) -> Path:
        """The model's file now; for more than one question take `current()` once.

        Raises:
            NoModelError: there is none.
        """
        return self.current().path

    @property
    def directory(self) -> Path:
        """The release's directory now.

        Raises:
            NoModelError: there is none.
        """
        return self.current().directory

    @property
    def info(self) -> dict[str, Any]:
        """`release.json` of the release that runs now.

        Raises:
            NoModelError: there is none.
        """
        return self.current().info

    def _target(self) -> str | None:
        try:
            return os.readlink(self._link)  # noqa: PTH115 - a text, as it stands there
        except OSError:
            return None

    # --- and when it changes

    def wait_for_change(self, timeout: float | None = None, than: Release | None = None) -> Release | None:
        """Waits until another release than `than` runs.

        Args:
            timeout: seconds; None waits for ever.
            than: what the caller uses now; None takes any release, at once if there is one.

        Returns:
            The release, which may be an older one after a rollback; None when the time is over.
        """
        return self._wait(timeout, than, None)

    def _wait(self, timeout: float | None, than: Release | None, stop: _Stop | None) -> Release | None:
        end_s = time.monotonic() + (_FOREVER_S if timeout is None else timeout)
        watch = DirectoryWatch(self._folder)
        try:
            while stop is None or not stop.is_set():
                watch.arm()
                found = self._other(than)
                left_s = end_s - time.monotonic()
                if found is not None or left_s <= 0:
                    return found
                watch.wait(left_s, None if stop is None else stop.fd)
        finally:
            watch.close()
        return None

    def _other(self, than: Release | None) -> Release | None:
        target = self._target()
        if target is None or (than is not None and target.rpartition("/")[2] == than.directory.name):
            return None
        try:
            found = self.current()
        except NoModelError:
            return None
        return None if than is not None and found.directory == than.directory else found

    def changes(self) -> Iterator[Release]:
        """The release that runs now (or the first, once there is one), then each that takes its place.

        Releases that came and went between two steps of the loop are left out.
        """
        release = None
        while True:
            following = self.wait_for_change(than=release)
            if following is not None:
                release = following
                yield release

    def on_change(self, callback: Callable[[Release], object], than: Release | None = None) -> Watcher:
        """Calls `callback` with every release that takes another's place, on a thread of its own.

        Args:
            callback: what it raises is logged, and the next change is told all the same.
            than: what the application uses now; None calls with the current one at first.
        """
        return Watcher(self, callback, than)


class _Stop:
    """An event that `poll` can wait for, too."""

    def __init__(self) -> None:
        self.fd, self._writing = os.pipe()
        self._lock = threading.Lock()
        self._set = False
        self._open = True

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._lock:
            if self._open and not self._set:
                os.write(self._writing, b"x")
            self._set = True

    def close(self) -> None:
        with self._lock:
            self._open = False
            os.close(self.fd)
            os.close(self._writing)


class Watcher:
    """The thread behind `Model.on_change`; it ends with `close()`, with its block, or with the program."""

    def __init__(self, model: Model, callback: Callable[[Release], object], than: Release | None) -> None:
        self._model = model
        self._callback = callback
        self._stop = _Stop()
        name = f"shallop-{model.name}"
        self._thread = threading.Thread(target=self._run, args=(than,), name=name, daemon=True)
        self._thread.start()

    def _run(self, release: Release | None) -> None:
        try:
            while not self._stop.is_set():
                following = self._model._wait(None, release, self._stop)  # noqa: SLF001 - of this module
                if following is not None:
                    release = following
                    self._tell(release)
        finally:
            self._stop.close()

    def _tell(self, release: Release) -> None:
        try:
            self._callback(release)
        except Exception:
            log.exception("the callback for a new release of %s failed", self._model.name)

    def close(self) -> None:
        """Ends it; a callback that is at work is waited for, unless it is the one that calls this."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Watcher:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _plain(info: dict[str, Any]) -> bool:
    """Whether the fields that everything here uses are texts."""
    return all(isinstance(info.get(key), str) for key in ("release", "variant", "model_file"))


def _json(path: Path, default: object) -> Any:  # noqa: ANN401 - it is JSON
    """The content of a small file.

    Raises:
        OSError: it cannot be read; a missing one is `default`, where that is not None.
        ValueError: it is too large, or no JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(JSON_BYTES_MAX + 1)
    except FileNotFoundError:
        if default is None:
            raise
        return default
    if len(data) > JSON_BYTES_MAX:
        raise ValueError(f"{path} is larger than {JSON_BYTES_MAX} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{path} is nested too deep") from None
