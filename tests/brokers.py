"""Real Mosquitto with our production configuration, for the integration tests.

For: tests that need the broker that production runs, stopped, killed and started again on one port.
Not for: tests of our own code alone (they use the ports' in-memory twins), nor for the embedded broker.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from fleet.adapters.broker_process import HOST, BrokerProcess, free_port
from fleet.adapters.embedded_broker import BrokerKind, find_broker

START_S_MAX = 20.0
PRODUCTION = Path(__file__).parent.parent / "systemd" / "mosquitto" / "shallop.conf"

_found = find_broker(BrokerKind.MOSQUITTO)
MOSQUITTO: str | None = str(_found) if _found else None


def require_mosquitto() -> str:
    """Where Mosquitto is; without it the test is skipped, but fails in CI, where skipping would hide it."""
    if MOSQUITTO is None:
        missing = "Mosquitto is not installed: apt-get install mosquitto"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return MOSQUITTO


class Mosquitto:
    """Mosquitto as in production, but on a free port of loopback and with its memory in `folder`.

    Args:
        folder: made if missing.
        port: 0 chooses a free one; either is kept when it is started again.
        extra: lines of configuration that override, such as `autosave_interval 1`.
    """

    host = HOST

    def __init__(self, folder: Path, port: int = 0, extra: str = "") -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        config = self.folder / "mosquitto.conf"
        self._config, self._text = config, production_config(self.port, self.folder, extra)
        self._process = BrokerProcess(
            [require_mosquitto(), "-c", str(config)], self.port, self.folder / "mosquitto.log"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it accepts connections."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text(self._text)
        self._process.start(START_S_MAX)

    def stop(self) -> None:
        """Ends it in order: it saves its memory."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL: it forgets everything since its last save."""
        self._process.kill()

    def restart(self) -> None:
        """Stops it in order and starts it on the same port."""
        self.stop()
        self.start()


def production_config(port: int, folder: Path, extra: str = "") -> str:
    """The production file with the least changed, so that a test runs what production runs."""
    text, listeners = re.subn(
        r"^listener \d+ 127\.0\.0\.1$", f"listener {port} {HOST}", PRODUCTION.read_text(), flags=re.MULTILINE
    )
    assert listeners == 1, f"{PRODUCTION} must hold one loopback listener, it holds {listeners}"
    # Debian's main file says where the memory is. As root it would become a user who cannot write there.
    user = "user root\n" if os.geteuid() == 0 else ""
    return f"{user}{text}\npersistence_location {folder}/\nlog_dest stderr\n{extra}\n"
