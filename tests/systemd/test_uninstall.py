"""Taking it away. The last of the tests that share the machine, hence a file of its own."""

from __future__ import annotations

import pytest

from tests.systemd.conftest import INSTALL
from tests.systemd.machine import Machine

pytestmark = [pytest.mark.xdist_group("machine"), pytest.mark.timeout(300), pytest.mark.slow]


def test_taking_the_agent_away_keeps_its_data_and_purging_does_not(machine: Machine) -> None:
    machine.shell("install -o shallop -D /dev/null /var/lib/shallop/models/kept/current")
    machine.run(INSTALL, "--agent", "--uninstall")
    assert machine.run("systemctl", "cat", "shallop-agent.service", check=False).returncode != 0
    gone = "/opt/shallop/agent /usr/local/bin/shallop-agent /usr/local/lib/sysusers.d/shallop-agent.conf"
    assert machine.shell(f"ls -d {gone} /opt/shallop/agent-* 2>/dev/null || true") == ""
    machine.shell("test -f /var/lib/shallop/models/kept/current; test -f /etc/shallop/agent.yaml; id shallop")
    machine.run(INSTALL, "--agent", "--uninstall")  # once more is no error
    machine.run(INSTALL, "--agent", "--uninstall", "--purge")
    kept = "/var/lib/shallop /etc/shallop/agent.yaml /run/shallop /etc/polkit-1/rules.d/60-shallop.rules"
    assert machine.shell(f"ls -d {kept} 2>/dev/null || true; getent passwd shallop || true") == ""
