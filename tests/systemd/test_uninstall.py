"""Taking it away, and the Debian package in its place: the last of the tests that share the machine."""

from __future__ import annotations

import pytest

from tests.systemd.conftest import INSTALL
from tests.systemd.machine import SHARED, Machine
from tests.systemd.units import SYSTEMD

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


def test_the_two_ways_of_installing_do_not_hide_one_another(machine: Machine) -> None:
    found = machine.run(INSTALL, "--agent", "--packaged", "--wheels", f"{SHARED}/wheels", check=False)
    assert found.returncode == 2
    assert "install.sh --agent --uninstall" in found.stderr


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


def test_the_debian_package_installs_runs_keeps_and_purges(machine: Machine) -> None:
    program = str(SYSTEMD / "deb.sh")
    machine.run(program, "--runtime", "none", "--wheels", f"{SHARED}/wheels", f"{SHARED}/deb")
    (package,) = (machine.shared / "deb").glob("shallop-agent_*.deb")
    machine.run("dpkg", "--install", f"{SHARED}/deb/{package.name}", SHALLOP_SETTLE_S="0")
    machine.wait_show("shallop-agent.service", "ActiveState", "active")
    assert machine.show("shallop-agent.service", "FragmentPath").endswith(
        "/lib/systemd/system/shallop-agent.service"
    )
    assert machine.show("shallop-agent.service", "StatusText") == "no models yet"
    refused = machine.run(INSTALL, "--agent", "--wheels", f"{SHARED}/wheels", check=False)
    assert (refused.returncode, "apt-get remove shallop-agent" in refused.stderr) == (2, True), refused.stderr
    machine.run("dpkg", "--remove", "shallop-agent")
    machine.shell("test -d /var/lib/shallop; test -f /etc/shallop/agent.yaml; test ! -e /opt/shallop")
    machine.run("dpkg", "--purge", "shallop-agent")
    left = machine.shell(
        "ls -d /var/lib/shallop /etc/shallop /run/shallop 2>/dev/null || true; getent passwd shallop || true"
    )
    assert left == ""
