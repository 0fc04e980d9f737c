"""One machine for all tests of this folder that need one; it boots once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd import wheels
from tests.systemd.machine import SHARED, Machine, require_nspawn
from tests.systemd.units import SYSTEMD

INSTALL = str(SYSTEMD / "install.sh")
DEVICE = "roof-17"
APPLICATION = "[Service]\nExecStart=/bin/sleep infinity\n"
# Shorter times than a roof's, so that a test need not wait for them. systemd itself judges the last.
QUICK = "[Service]\nRestartSec=200ms\nWatchdogSec=3s\nTimeoutStopSec=5s\n"
CONFIG = """
insecure_unsigned: true
trial: {latency_runs: 20, warmup: 2}
hooks:
  tiny:
    activate: [systemctl, --no-ask-password, restart, digits.service]
    health: [systemctl, is-active, --quiet, digits.service]
    health_interval_s: 0.2
"""


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted machine with wheels in `SHARED/wheels`, and nothing of Shallop installed."""
    require_nspawn()
    folder = tmp_path_factory.mktemp("machine")
    with Machine(folder) as machine:
        wheels.fill(machine.shared / "wheels", "onnx,fleet")
        for unit in ("digits", "other"):
            machine.write(f"/etc/systemd/system/{unit}.service", APPLICATION)
        machine.write("/etc/systemd/system/shallop-agent.service.d/quick.conf", QUICK)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "digits", "other")
        yield machine


@pytest.fixture(scope="session")
def wheel(bare: Machine) -> Path:
    """Shallop's own wheel as it was installed first."""
    (found,) = (bare.shared / "wheels").glob("shallop-*.whl")
    return found


@pytest.fixture(scope="session")
def machine(bare: Machine) -> Machine:
    """The machine with the agent, installed as docs/install.md says, and a broker beside it."""
    said = bare.run(
        INSTALL, "--agent", "--wheels", f"{SHARED}/wheels", "--device", DEVICE, "--broker", "localhost:1883",
        "--restarts", "digits.service", "--mosquitto", SHALLOP_SETTLE_S="1",
    )  # fmt: skip
    assert "is installed and runs" in said.stdout
    path = bare.path("/etc/shallop/agent.yaml")
    path.write_text(path.read_text() + CONFIG)
    bare.run("systemctl", "restart", "shallop-agent")
    return bare
