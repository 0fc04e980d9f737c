"""The registry under a real systemd, beside the agent: it answers, and is started again."""

from __future__ import annotations

import json

import pytest

from tests.systemd.conftest import INSTALL
from tests.systemd.machine import SHARED, Machine
from tests.systemd.units import EXPOSURE_MAX

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

FLEET = "shallop-fleet.service"
RELOAD = "shallop-broker-reload.service"


def health(machine: Machine) -> dict[str, object]:
    said = machine.run("shallop-fleet", "health", "--json", check=False).stdout
    found: dict[str, object] = json.loads(said) if said else {}
    return found


def test_the_registry_is_installed_answers_and_outlives_a_kill(machine: Machine) -> None:
    said = machine.run(
        INSTALL, "--fleet", "--mosquitto", "--wheels", f"{SHARED}/wheels", SHALLOP_SETTLE_S="0"
    )
    assert "fleet" in said.stdout
    assert "is installed and runs" in said.stdout
    assert machine.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", FLEET).stderr == ""
    machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX * 10:.0f}", FLEET)
    machine.wait("the broker", lambda: health(machine).get("broker_connected"))
    assert machine.shell("stat --format='%a %U' /var/lib/shallop-fleet/fleet.db") == "640 shallop-fleet\n"
    machine.run("systemctl", "kill", "--signal=KILL", FLEET)
    machine.wait("the registry to answer again", lambda: health(machine).get("broker_connected"), 60)
    assert machine.show(FLEET, "NRestarts") == "1"


def as_registry(machine: Machine, *arguments: str) -> str:
    command = ("setpriv", "--reuid=shallop-fleet", "--regid=shallop-fleet", "--init-groups", "--")
    return machine.run(*command, "/opt/shallop/fleet/bin/shallop-fleet", *arguments).stdout


def test_the_broker_asks_for_certificates_and_reads_a_revocation_by_itself(machine: Machine) -> None:
    keys, out, conf = (
        "/var/lib/shallop-fleet/keys",
        "/var/lib/shallop-broker",
        "/etc/mosquitto/conf.d/shallop.conf",
    )
    where = ("--keys", keys, "--out", out)
    assert machine.shell(f"stat --format='%a %U %G' {out}") == "2750 shallop-fleet mosquitto\n"
    machine.shell(f"cp {conf} /root/loopback.conf; cp /etc/shallop/fleet.yaml /root/fleet.yaml")
    as_registry(machine, "broker", "init", "--host", "localhost", *where)
    machine.shell("sed -i 's|^broker:.*|broker: mqtts://localhost:8883|' /etc/shallop/fleet.yaml")
    machine.shell(f"echo 'broker_files: {out}' >> /etc/shallop/fleet.yaml; cp {out}/mosquitto.conf {conf}")
    machine.run("systemctl", "restart", "mosquitto")
    machine.run("systemctl", "enable", "--now", "shallop-broker-reload.path")
    machine.run("systemctl", "restart", FLEET)
    machine.wait("the broker", lambda: health(machine).get("broker_connected"), 60)
    assert "BAD" not in as_registry(machine, "broker", "check", *where)
    # A new list, with a canary of its own: `check` finds it in force once systemd has had the broker read it.
    before = machine.shell(f"sha256sum {out}/crl.pem")
    as_registry(machine, "broker", "ca", "rotate", *where)
    assert machine.shell(f"sha256sum {out}/crl.pem") != before
    machine.wait("the reload", lambda: "BAD" not in checked(machine, where))
    # The registry, which nobody started again, accepts both, and reads all of it when it is asked to.
    machine.wait("both authorities", lambda: len(str(health(machine)["authorities"]).split(",")) == 2)
    before = machine.show(FLEET, "MainPID")
    machine.run("systemctl", "reload", FLEET)
    machine.wait("a look", lambda: "looked at again" in machine.run("journalctl", "-u", FLEET).stdout)
    assert health(machine)["keys_trouble"] is None
    assert machine.show(FLEET, "MainPID") == before
    # Within its sandbox the registry writes there too, for the broker's group: it renews what is missing.
    machine.shell(f"rm {out}/server.pem")
    machine.run("systemctl", "restart", FLEET)
    machine.wait("the renewal", lambda: machine.shell(f"ls {out}").count("server.pem"), 60)
    assert machine.shell(f"stat --format='%a %U %G' {out}/server.pem") == "640 shallop-fleet mosquitto\n"
    # A list that is none is not read.
    machine.shell(f"cp {out}/crl.pem /root/crl.pem")

    def refused() -> bool:
        # Written again each time: systemd passes over a change while the reload before it is at work.
        machine.shell(f"echo junk > {out}/crl.pem")
        return machine.show(RELOAD, "Result") == "exit-code"

    machine.wait("the refusal", refused)
    assert "BAD" not in checked(machine, where)
    machine.shell(f"cp /root/crl.pem {out}/crl.pem")
    machine.wait("the reload", lambda: machine.show(RELOAD, "Result") == "success")
    machine.run("systemctl", "disable", "--now", "shallop-broker-reload.path")
    machine.shell(f"cp /root/loopback.conf {conf}; cp /root/fleet.yaml /etc/shallop/fleet.yaml")
    machine.run("systemctl", "restart", "mosquitto", FLEET)
    machine.wait("the broker", lambda: health(machine).get("broker_connected"), 60)


def checked(machine: Machine, where: tuple[str, ...]) -> str:
    command = ("setpriv", "--reuid=shallop-fleet", "--regid=shallop-fleet", "--init-groups", "--")
    program = "/opt/shallop/fleet/bin/shallop-fleet"
    return machine.run(*command, program, "broker", "check", *where, check=False).stdout


def test_the_registry_is_taken_away(machine: Machine) -> None:
    machine.run("systemctl", "stop", FLEET)
    assert machine.show(FLEET, "Result") == "success"
    machine.run(INSTALL, "--fleet", "--uninstall")
    machine.shell("test -f /var/lib/shallop-fleet/fleet.db; test -f /etc/shallop/fleet.yaml")
    machine.run(INSTALL, "--fleet", "--uninstall", "--purge")
    assert machine.shell("ls -d /var/lib/shallop-fleet /etc/shallop/fleet.yaml 2>/dev/null || true") == ""
    assert machine.show("shallop-agent.service", "ActiveState") == "active", "the other one is not touched"
