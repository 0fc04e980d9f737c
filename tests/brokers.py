"""Real Mosquitto for the integration tests: the one for trying out, and the production one with TLS.

For: tests that need the broker that production runs, stopped, killed and started again on one port.
Not for: tests of our own code alone (they use the ports' in-memory twins), nor for the embedded broker.
"""

from __future__ import annotations

import os
import re
import signal
import ssl
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.adapters.authority import DAY_S, Authority, Issued
from fleet.adapters.broker_files import BrokerFiles
from fleet.adapters.broker_process import HOST, BrokerProcess, free_port
from fleet.adapters.broker_tls import Answer, client_context, knock
from fleet.adapters.embedded_broker import BrokerKind, find_broker
from fleet.broker_rules import CA, CONFIG, PROBE, REGISTRY, REVOKED, SERVER, Setup
from wire.topics import ROOT_DEFAULT

START_S_MAX = 20.0
PRODUCTION = Path(__file__).parent.parent / "systemd" / "mosquitto" / "shallop.conf"
OPENSSL = PRODUCTION.with_name("openssl.cnf")

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
    """Mosquitto with systemd/mosquitto/shallop.conf, on a free port of loopback, its memory in `folder`.

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

    def forget(self) -> None:
        """Loses its memory; call it while it is stopped."""
        for memory in self.folder.glob("*.db*"):
            memory.unlink()

    def restart(self) -> None:
        """Stops it in order and starts it on the same port."""
        self.stop()
        self.start()


def production_config(port: int, folder: Path, extra: str = "") -> str:
    """The file with the least changed, so that a test runs what people run."""
    text, listeners = re.subn(
        r"^listener \d+ 127\.0\.0\.1$", f"listener {port} {HOST}", PRODUCTION.read_text(), flags=re.MULTILINE
    )
    assert listeners == 1, f"{PRODUCTION} must hold one loopback listener, it holds {listeners}"
    # Debian's main file says where the memory is. As root it would become a user who cannot write there.
    user = "user root\n" if os.geteuid() == 0 else ""
    return f"{user}{text}\npersistence_location {folder}/\nlog_dest stderr\n{extra}\n"


class TlsMosquitto:
    """Mosquitto with the files of `shallop-fleet broker init`, on a free port of loopback.

    What systemd does on the broker's machine, a thread does here: it reloads the broker when the list of
    revoked certificates or the broker's certificate changes.

        with TlsMosquitto(tmp_path / "broker") as broker:
            config = {"broker": broker.url, "keys": str(broker.keys), "broker_files": str(broker.out)}
            cert_and_key = broker.device("roof-17")

    Args:
        folder: made if missing; OUT is folder/out.
        keys: the fleet's keys; None is folder/keys. An authority is made there if there is none.
        root: of the topic tree.
        home_assistant: prefix, where Home Assistant is let in.
        watching: whether changed files are read by themselves; else by `reload()`.
        extra: lines of configuration that override.
    """

    host = HOST

    def __init__(
        self,
        folder: Path,
        *,
        keys: Path | None = None,
        root: str = ROOT_DEFAULT,
        home_assistant: str | None = None,
        watching: bool = True,
        extra: str = "",
    ) -> None:
        self.folder, self.port = folder.resolve(), free_port()
        self.keys, self.out = (keys or self.folder / "keys").resolve(), self.folder / "out"
        self.files = BrokerFiles(self.out, self.keys)
        self.setup = Setup(
            hosts=(HOST, "localhost"), port=self.port, bind=HOST, root=root, home_assistant=home_assistant,
            directory=str(self.out),
        )  # fmt: skip
        self._extra, self._watching, self._stopping = extra, watching, threading.Event()
        self._thread: threading.Thread | None = None
        config = self.folder / CONFIG
        self._process = BrokerProcess(
            # As the unit's drop-in says it.
            ["env", f"OPENSSL_CONF={OPENSSL}", require_mosquitto(), "-c", str(config)],
            self.port, self.folder / "mosquitto.log",
            ready=lambda _: self._takes_in(),
        )  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        if not Authority.exists(self.keys):
            # Older than the certificates that a test wants to have ended.
            Authority.create(self.keys, "Test fleet", None, time.time() - 30 * DAY_S)
        self.files.begin(self.setup, self.authority, time.time())
        text = (self.out / CONFIG).read_text()
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(f"{user}{text}\npersistence_location {self.folder}/\nlog_dest stderr\n{extra}\n")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def authority(self) -> Authority:
        """Whose certificates are accepted."""
        return Authority.load(self.keys)

    @property
    def url(self) -> str:
        """For the registry's configuration."""
        return f"mqtts://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the broker said."""
        return self._process.log.read_text(errors="replace")

    def _takes_in(self) -> bool:
        context = client_context(self.out / CA, self.files.program(PROBE))
        return knock((HOST, self.port), context).answer is Answer.TAKEN_IN

    def start(self) -> None:
        """Starts it and waits until it takes in who may come."""
        self._process.start(START_S_MAX)
        if self._watching:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._watch, name="broker-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends it in order."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._process.stop()

    def reload(self) -> None:
        """SIGHUP, as `systemctl reload mosquitto`."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGHUP)

    def _watch(self) -> None:
        read = self._stamps()
        while not self._stopping.wait(0.1):
            now = self._stamps()
            if now != read:
                read = now
                self.reload()

    def _stamps(self) -> list[int]:
        return [(self.out / name).stat().st_mtime_ns for name in (REVOKED, SERVER)]

    def device(
        self, device: str, life_s: float = DAY_S, not_before: float | None = None
    ) -> tuple[Path, Path]:
        """A certificate of a device and its key, as files."""
        issued, key = self.issue(device, life_s, not_before)
        cert_file = self.folder / f"{device}-{issued.serial:x}.pem"
        key_file = cert_file.with_suffix(".key")
        cert_file.write_text(issued.pem)
        key_file.write_bytes(key)
        return cert_file, key_file

    def issue(
        self, device: str, life_s: float = DAY_S, not_before: float | None = None
    ) -> tuple[Issued, bytes]:
        """A certificate of a device, and its key as PEM."""
        key = Ed25519PrivateKey.generate()
        starts = time.time() if not_before is None else not_before
        issued = self.authority.issue_device(device, key.public_key().public_bytes_raw(), starts, life_s)
        return issued, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def context(self, cert_file: Path, key_file: Path | None = None) -> ssl.SSLContext:
        """TLS with that certificate, the broker checked."""
        return client_context(self.out / CA, cert_file, key_file)

    def registry(self) -> ssl.SSLContext:
        """TLS as the registry: it reads and writes all."""
        return self.context(self.files.program(REGISTRY))
