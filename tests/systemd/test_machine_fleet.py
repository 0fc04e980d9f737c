"""The registry under a real systemd, beside the agent: it answers, and is started again."""

from __future__ import annotations

import json

import pytest

from tests.systemd.conftest import INSTALL
from tests.systemd.machine import SHARED, Machine
from tests.systemd.units import EXPOSURE_MAX

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

FLEET = "shallop-fleet.service"


def health(machine: Machine) -> dict[str, object]:
    said = machine.run("shallop-fleet", "health", "--json", check=False).stdout
    found: dict[str, object] = json.loads(said) if said else {}
    return found


def test_the_registry_is_installed_answers_and_outlives_a_kill(machine: Machine) -> None:
    said = machine.run(INSTALL, "--fleet", "--wheels", f"{SHARED}/wheels", SHALLOP_SETTLE_S="0")
    assert "fleet" in said.stdout
    assert "is installed and runs" in said.stdout
    assert machine.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", FLEET).stderr == ""
    machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX * 10:.0f}", FLEET)
    machine.wait("the broker", lambda: health(machine).get("broker_connected"))
    assert machine.shell("stat --format='%a %U' /var/lib/shallop-fleet/fleet.db") == "640 shallop-fleet\n"
    machine.run("systemctl", "kill", "--signal=KILL", FLEET)
    machine.wait("the registry to answer again", lambda: health(machine).get("broker_connected"), 60)
    assert machine.show(FLEET, "NRestarts") == "1"
    machine.run("systemctl", "stop", FLEET)
    assert machine.show(FLEET, "Result") == "success"
    machine.run(INSTALL, "--fleet", "--uninstall")
    machine.shell("test -f /var/lib/shallop-fleet/fleet.db; test -f /etc/shallop/fleet.yaml")
    machine.run(INSTALL, "--fleet", "--uninstall", "--purge")
    assert machine.shell("ls -d /var/lib/shallop-fleet /etc/shallop/fleet.yaml 2>/dev/null || true") == ""
    assert machine.show("shallop-agent.service", "ActiveState") == "active", "the other one is not touched"
