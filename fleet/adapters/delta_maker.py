"""Makes deltas in a process that ends, so that neither their memory nor their time is the registry's.

For: fulfilling `fleet.ports.DeltaMaker` by `python -m fleet.deltas.make`, at low priority and with a limit
on its time.
Not for: the codec (`fleet.deltas.encoder`).
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from fleet.deltas import NOT_PAYING
from fleet.ports import DeltaError
from wire.delta_format import ALGORITHM

WALL_S_MAX = 900.0
_TAIL_BYTES = 600
_PACKAGE_ROOT = Path(__file__).parent.parent.parent


class DeltaProcess:
    """One process for each delta."""

    algorithm = ALGORITHM

    def __init__(self, wall_s_max: float = WALL_S_MAX) -> None:
        self._wall_s_max = wall_s_max
        self._stopped = threading.Event()
        self._running: subprocess.Popen[bytes] | None = None

    def make(self, base: bytes, new: bytes) -> bytes | None:
        """The delta; None where it does not pay.

        Raises:
            DeltaError: `delta_not_made`: the process failed, or took too long, or the registry stops.
            OSError: its files cannot be written.
        """
        with tempfile.TemporaryDirectory(prefix="shallop-delta-") as name:
            folder = Path(name)
            (folder / "base").write_bytes(base)
            (folder / "new").write_bytes(new)
            code, tail = self._run(folder)
            if code == NOT_PAYING:
                return None
            if code != 0:
                raise DeltaError("delta_not_made", f"the encoder ended with {code}: {tail}")
            return (folder / "delta").read_bytes()

    def stop(self) -> None:
        """Kills what runs, and lets nothing begin."""
        self._stopped.set()
        running = self._running
        if running is not None:
            with contextlib.suppress(ProcessLookupError):
                running.kill()

    def _run(self, folder: Path) -> tuple[int, str]:
        if self._stopped.is_set():
            raise DeltaError("delta_not_made", "the registry stops")
        command = [
            sys.executable,
            "-m",
            "fleet.deltas.make",
            *(str(folder / n) for n in ("base", "new", "delta")),
        ]
        with (folder / "log").open("w+b") as log:
            self._running = subprocess.Popen(
                command, cwd=_PACKAGE_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                code = self._running.wait(self._wall_s_max)
            except subprocess.TimeoutExpired:
                raise DeltaError("delta_not_made", f"it took more than {self._wall_s_max:.0f} s") from None
            finally:
                self._running.kill()
                self._running.wait()
                self._running = None
            log.seek(max(0, log.tell() - _TAIL_BYTES))
            return code, log.read().decode(errors="replace").strip()
