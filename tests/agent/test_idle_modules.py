"""What a daemon at rest has imported: its memory is mostly code, and imports are for ever."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from agent.adapters import ed25519
from agent.identities import Identities
from agent.identity import Home, Identity
from examples.demo.house import wait_for
from tests.agent.certificates import Authority
from tests.agent.test_doctor_broker import free_ports
from tests.brokers import Mosquitto, TlsMosquitto
from wire.topics import ROOT_DEFAULT

ROOT = Path(__file__).parents[2]
DAEMON = """
import os, signal, sys
# msgspec and paho take these where they are; a device has none of them
sys.modules |= dict.fromkeys(["typing_extensions", "dns", "socks"])

def tell(*_):
    real = sorted(name for name, module in sys.modules.items() if getattr(module, "__spec__", None))
    with open(sys.argv[2] + ".tmp", "w") as file:
        file.write(" ".join(real))
    os.replace(sys.argv[2] + ".tmp", sys.argv[2])

signal.signal(signal.SIGUSR1, tell)
from agent.cli import main
sys.exit(main(["run", "--config", sys.argv[1]]))
"""
OURS = """
agent agent.adapters agent.adapters.aside agent.adapters.ed25519 agent.adapters.hooks
agent.adapters.live_files agent.adapters.locks agent.adapters.memory agent.adapters.mqtt
agent.adapters.power agent.adapters.power_common agent.adapters.power_jetson agent.adapters.power_linux
agent.adapters.power_model agent.adapters.power_rpi agent.adapters.sensors agent.adapters.system
agent.adapters.systemd_notify agent.adapters.thermal agent.adapters.trial_process
agent.adapters.trial_socket agent.adapters.units agent.adapters.worker_process agent.admission agent.again
agent.app
agent.believing agent.belonging agent.bringing agent.cli agent.config agent.config_life agent.connection
agent.deployment agent.downlink agent.drift agent.durable agent.errors agent.exchange agent.fetch
agent.fetching agent.hardware agent.headed agent.home_assistant agent.identities agent.identity
agent.install agent.installed agent.jobs agent.journal agent.judging agent.lanes agent.lifecycle
agent.live agent.live_watch agent.mending agent.metering agent.moves agent.outbox agent.outcomes
agent.packages agent.ports agent.reconnect agent.recovery agent.repair agent.requests agent.runner
agent.signed_time agent.slots agent.soak agent.soaking agent.statusing agent.steering agent.store
agent.tls agent.trials agent.trust agent.uplink agent.worker agent.worker.job agent.worker.limits
wire wire.bundle wire.certificates wire.chunks wire.codec wire.deltas wire.encodings wire.errors
wire.figures wire.measures wire.messages wire.roots wire.sla wire.tasks wire.topics wire.trust wire.types
"""
ENROLLED = {"agent.judged", "agent.renewal", "agent.renewing"}
PACKAGES = {"msgspec", "paho", "nacl", "_cffi_backend", "_sodium"}
STANDARD = """
__future__ abc argparse array atexit base64 binascii builtins codecs collections contextlib copyreg datetime
decimal encodings enum errno fcntl fnmatch functools gc genericpath gettext hashlib heapq importlib io
ipaddress itertools keyword linecache locale logging marshal math ntpath numbers operator os pathlib platform
posix posixpath queue re reprlib resource select selectors signal site socket stat string stringprep struct
sys textwrap threading time token tokenize traceback types typing unicodedata urllib uuid warnings weakref
zipimport zlib
"""
"""Of Python 3.11, as Debian 12 and Raspberry Pi OS have it; other versions' own imports differ."""
HEAVY = {
    "ast", "asyncio", "bz2", "csv", "ctypes", "dataclasses", "email", "fractions", "http", "inspect", "lzma",
    "random", "secrets", "shutil", "ssl", "statistics", "subprocess", "tempfile", "xml", "zipfile", "yaml",
    "numpy", "onnxruntime", "shtab",
}  # fmt: skip


def _modules(folder: Path, broker: dict[str, object], **more: object) -> set[str]:
    """Of a daemon that is connected and has nothing to do."""
    state, told, log = folder / "state", folder / "told.json", folder / "log"
    path = folder / "agent.yaml"
    config = {"device": "d1", "state_dir": str(state), "broker": broker, "insecure_unsigned": True, **more}
    path.write_bytes(msgspec.yaml.encode({**config, "trial": {"socket": str(folder / "none.sock")}}))
    command = [sys.executable, "-W", "error", "-c", DAEMON, str(path), str(told)]
    with log.open("wb") as output:
        daemon = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        wait_for("a connection", lambda: daemon.poll() is not None or b"connected as" in log.read_bytes(), 30)
        assert daemon.poll() is None, log.read_text()
        daemon.send_signal(signal.SIGUSR1)
        wait_for("its answer", told.exists, 30)
        return set(told.read_text().split())
    finally:
        daemon.terminate()
        daemon.wait(20)


def _alien(found: set[str]) -> set[str]:
    """What an idle daemon should not have."""
    first = {name.partition(".")[0] for name in found} - {"agent", "wire", "__main__"}
    # What an environment's .pth files import comes before any program.
    libraries = {name for name in first if name.lstrip("_") not in {"distutils_hack", "sitecustomize"}}
    libraries -= PACKAGES | set(STANDARD.split())
    if sys.version_info[:2] == (3, 11):
        alien = {name for name in libraries if not name.startswith("_") and name in sys.stdlib_module_names}
    else:
        alien = libraries & HEAVY
    ours = {name for name in found if name.partition(".")[0] in {"agent", "wire"}}
    return alien | (libraries & HEAVY) | (ours - set(OURS.split()))


def test_the_daemon_at_rest_has_imported_no_more_than_this(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        found = _modules(tmp_path, {"host": "127.0.0.1", "port": broker.port})
    assert "agent.runner" in found
    assert "paho.mqtt.client" in found
    assert _alien(found) == set(), sorted(_alien(found))


def test_preconditions_add_what_looks_at_them_and_nothing_else(tmp_path: Path) -> None:
    asked = {"battery_percent_min": 40, "temperature_c_max": 75, "window": ["02:00-05:00"]}
    with Mosquitto(tmp_path / "broker") as broker:
        found = _modules(tmp_path, {"host": "127.0.0.1", "port": broker.port}, admission=asked)
    assert _alien(found) == {"agent.preconditions", "agent.adapters.readiness"}


def test_an_encrypted_connection_adds_ssl_alone(tmp_path: Path) -> None:
    authority, (port,) = Authority(tmp_path / "ca"), free_ports(1)
    pem, key = authority.sign("broker")
    extra = f"\nlistener {port} 127.0.0.1\ncafile {authority.pem}\ncertfile {pem}\nkeyfile {key}\n"
    with Mosquitto(tmp_path / "broker", extra=extra):
        tls = {"ca_file": str(authority.pem)}
        found = _modules(tmp_path, {"host": "localhost", "port": port, "tls": tls})
    assert _alien(found) == {"ssl", "agent.judged"}


def test_a_device_that_is_enrolled_has_what_renews_it_and_no_http(tmp_path: Path) -> None:
    with TlsMosquitto(tmp_path / "broker") as broker:
        seed, now_s = bytes(range(32)), time.time()
        public = ed25519.public_of(seed)
        issued = broker.authority.issue_device("d1", public, now_s, 86400.0 * 90)
        home = Home(url="https://localhost:1", host="localhost", port=broker.port, root=ROOT_DEFAULT)
        (tmp_path / "state").mkdir()
        Identities(tmp_path / "state").save(
            Identity(
                device="d1", seed=seed, public=public.hex(), pem=issued.pem, not_before_s=issued.not_before,
                authorities_pem=broker.authority.certificates_pem, not_after_s=issued.not_after, home=home,
            )
        )  # fmt: skip
        found = _modules(tmp_path, {})
    assert _alien(found) == {"ssl", *ENROLLED}


@pytest.mark.parametrize("alien", ["shutil", "yaml", "agent.worker.trial", "agent.adapters.doctor"])
def test_an_alien_is_noticed(alien: str) -> None:
    assert _alien({"agent.app", "re", alien}) == {alien}
