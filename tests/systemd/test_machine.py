"""The agent under a real systemd: it starts, is watched, is upgraded in place, and leaves its data behind.

The tests share one machine and run in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from tests.systemd import wheels
from tests.systemd.conftest import DEVICE, INSTALL
from tests.systemd.machine import SHARED, Machine
from tests.systemd.units import EXPOSURE_MAX
from wire.messages import ModelState, OrderOutcome, Phase

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

AGENT, WORKER = "shallop-agent.service", "shallop-worker.socket"
UNITS = ("shallop-agent.service", "shallop-worker.socket", "shallop-worker@.service")


@pytest.fixture
def hand(machine: Machine) -> Iterator[Hand]:
    """The registry's hand at the machine's own broker."""
    with machine.network(), Hand(1883) as made:
        yield made


def restarts(machine: Machine) -> int:
    return int(machine.show(AGENT, "NRestarts"))


def wait_restart(machine: Machine, before: int) -> None:
    machine.wait("a restart", lambda: restarts(machine) > before)
    machine.wait_show(AGENT, "ActiveState", "active")


# --- installed --------------------------------------------------------------------------------------


def test_the_units_are_right_where_they_are_installed(machine: Machine) -> None:
    for unit in UNITS:
        found = machine.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)
        assert found.stderr == "", unit
        if unit.endswith(".service"):
            name = unit.replace("@", "@1")
            machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX * 10:.0f}", name)


def test_it_starts_by_notification_as_a_user_of_its_own(machine: Machine) -> None:
    assert machine.show(AGENT, "ActiveState") == "active"
    assert machine.show(AGENT, "StatusText") == "no models yet"
    assert machine.show(AGENT, "User") == "shallop"
    assert machine.shell("id -nG shallop").split() == ["shallop", "video"]
    expected = {
        "/var/lib/shallop": "750 shallop:shallop",
        "/etc/shallop/agent.yaml": "640 root:shallop",
        "/run/shallop": "755 shallop:shallop",
        "/run/shallop/live": "1777 root:root",
        "/opt/shallop/agent/": "755 root:root",
        "/run/lock": "1777 root:root",
    }
    for place, owner in expected.items():
        assert machine.run("stat", "--format=%a %U:%G", place).stdout.strip() == owner, place
    files = machine.shell("find /var/lib/shallop -type f -printf '%m %u\n'").split("\n")[:-1]
    assert files
    assert set(files) <= {"640 shallop", "600 shallop"}


def test_a_person_asks_it_as_root_and_leaves_nothing_that_it_cannot_read(machine: Machine) -> None:
    assert "no models yet" in machine.run("shallop-agent", "status").stdout
    machine.run("systemctl", "stop", AGENT)
    refused = machine.run("shallop-agent", "rollback", "tiny", check=False)
    assert (refused.returncode, "unknown_model" in refused.stderr) == (4, True), refused.stderr
    machine.run("systemctl", "start", AGENT)
    assert machine.shell("find /var/lib/shallop -not -user shallop") == ""


# --- watched ----------------------------------------------------------------------------------------


def test_a_daemon_that_hangs_is_killed_and_started_again(machine: Machine) -> None:
    before = restarts(machine)
    machine.run("kill", "-STOP", machine.show(AGENT, "MainPID"))
    wait_restart(machine, before)
    said = machine.journal(AGENT)
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said, "the journal holds where every thread was"


def test_a_daemon_that_is_killed_is_started_again_however_often(machine: Machine) -> None:
    for _ in range(7):  # systemd's own limit is five in ten seconds
        before = restarts(machine)
        machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", AGENT)
        wait_restart(machine, before)


def test_it_stops_in_order(machine: Machine) -> None:
    machine.run("systemctl", "stop", AGENT)
    # TimeoutStopSec is 5 s here: a slower one would be killed, and the result would be `timeout`.
    assert machine.show(AGENT, "Result") == "success"
    assert machine.show(AGENT, "ExecMainStatus") == "0"
    assert machine.shell("ls /run/shallop").split() == ["live", "worker.sock"]
    machine.run("systemctl", "start", AGENT)


def test_after_a_power_cut_everything_is_there_by_itself(machine: Machine) -> None:
    machine.cut_power()
    machine.boot()
    for unit in (AGENT, WORKER, "mosquitto.service"):
        machine.wait_show(unit, "ActiveState", "active")
    machine.run("systemctl", "start", "digits", "other")


# --- at work ----------------------------------------------------------------------------------------


def test_a_release_is_deployed_and_a_hook_restarts_the_application(
    machine: Machine, hand: Hand, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "one")
    before = machine.show("digits.service", "InvocationID")
    hand.desire(DEVICE, "tiny", hand.publish_bundle(tmp_path / "one"), 1, soak_s=0.5)
    state = hand.wait_ended(DEVICE, "tiny", 1)
    assert (state.outcome, state.reason) == (OrderOutcome.ACTIVE, None)
    assert machine.show("digits.service", "InvocationID") != before
    assert machine.show(AGENT, "StatusText") == "tiny 1, idle"


def test_the_agent_may_restart_no_other_unit(machine: Machine) -> None:
    ask = ["setpriv", "--reuid=shallop", "--regid=shallop", "--init-groups", "systemctl", "--no-ask-password"]
    for verb, unit in (("restart", "other.service"), ("stop", "digits.service"), ("restart", AGENT)):
        found = machine.run(*ask, verb, unit, check=False)
        assert found.returncode != 0, (verb, unit)
        assert "authentication" in found.stderr, found.stderr
    machine.run(*ask, "restart", "digits.service")


def test_an_upgrade_in_place_while_a_deployment_is_in_flight(
    machine: Machine, hand: Hand, tmp_path: Path, wheel: Path
) -> None:
    make_bundle(tmp_path / "two", release="2", seed=2, ballast_bytes=300_000)
    digest = hand.publish_bundle(tmp_path / "two", leave_out=2)
    hand.desire(DEVICE, "tiny", digest, 2, release="2")
    hand.wait_state(DEVICE, "tiny", lambda s: s.order == 2 and s.phase is Phase.FETCHING)
    config, old = (
        machine.path("/etc/shallop/agent.yaml").read_text(),
        machine.shell("readlink -f /opt/shallop/agent"),
    )
    new = wheels.another(wheel, "0.1.1", machine.shared / "new")
    said = machine.run(
        INSTALL, "--agent", "--wheels", f"{SHARED}/wheels", "--from", f"{SHARED}/new/{new.name}",
        SHALLOP_SETTLE_S="1",
    )  # fmt: skip
    assert "agent 0.1.1 is installed and runs" in said.stdout
    state = hand.state(DEVICE, "tiny")
    assert state is not None
    assert (state.order, state.phase, state.outcome) == (2, Phase.FETCHING, None)
    hand.publish_bundle(tmp_path / "two")
    assert hand.wait_ended(DEVICE, "tiny", 2).outcome is OrderOutcome.ACTIVE
    assert machine.path("/etc/shallop/agent.yaml").read_text() == config
    assert machine.shell("readlink -f /opt/shallop/agent") != old
    assert len(machine.shell("ls -d /opt/shallop/agent-*").split()) == 1
    assert machine.run("/opt/shallop/agent/bin/python", "-c", "import pip", check=False).returncode == 1


def test_a_new_version_that_does_not_come_up_is_taken_back(machine: Machine, wheel: Path) -> None:
    program = "import sys\n\ndef main():\n    sys.exit('the new version is broken')\n"
    new = wheels.another(wheel, "0.1.2", machine.shared / "broken", {"agent/cli.py": program.encode()})
    old = machine.shell("readlink -f /opt/shallop/agent; ls -d /opt/shallop/*")
    unit = machine.path("/usr/local/lib/systemd/system/shallop-agent.service").read_text()
    found = machine.run(
        INSTALL, "--agent", "--runtime", "none", "--wheels", f"{SHARED}/wheels",
        "--from", f"{SHARED}/broken/{new.name}", check=False, SHALLOP_SETTLE_S="1",
    )  # fmt: skip
    assert found.returncode == 1
    assert "the new version is broken" in found.stderr
    assert "the old version runs again" in found.stderr
    assert machine.shell("readlink -f /opt/shallop/agent; ls -d /opt/shallop/*") == old
    assert machine.path("/usr/local/lib/systemd/system/shallop-agent.service").read_text() == unit
    assert machine.show(AGENT, "StatusText") == "tiny 2, idle"


def test_a_new_version_that_cannot_use_the_configuration_is_not_begun_with(machine: Machine) -> None:
    path = machine.path("/etc/shallop/agent.yaml")
    config, pid, opt = path.read_text(), machine.show(AGENT, "MainPID"), machine.shell("ls -d /opt/shallop/*")
    path.write_text(f"{config}\nlanguage: klingon\n")
    try:
        found = machine.run(
            INSTALL, "--agent", "--runtime", "none", "--wheels", f"{SHARED}/wheels", check=False,
        )  # fmt: skip
    finally:
        path.write_text(config)
    assert found.returncode == 1
    assert "language" in found.stderr
    assert "nothing was changed" in found.stderr
    assert (machine.show(AGENT, "MainPID"), machine.shell("ls -d /opt/shallop/*")) == (pid, opt)


def test_a_rollback_by_message(machine: Machine, hand: Hand) -> None:
    state = hand.wait_state(DEVICE, "tiny", lambda s: s.active is not None)
    assert state.active is not None
    before = machine.show("digits.service", "InvocationID")
    hand.rollback(DEVICE, "tiny", state.active.digest, 3)

    def back(said: ModelState) -> bool:
        return said.active is not None and said.active.release == "1" and said.phase is Phase.IDLE

    assert hand.wait_state(DEVICE, "tiny", back).active != state.active
    assert [reply.result for reply in hand.replies] == ["accepted"]
    assert machine.show("digits.service", "InvocationID") != before
    assert machine.show(AGENT, "StatusText") == "tiny 1, idle"
