"""An agent under a real systemd, in its sandbox, is enrolled while it runs, and connects by certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.registry import Registry
from tests.brokers import TlsMosquitto
from tests.systemd.conftest import DEVICE
from tests.systemd.machine import Machine

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
AGENT = "shallop-agent.service"
STATE = "/var/lib/shallop"


@pytest.fixture
def registry(machine: Machine, tmp_path: Path) -> Iterator[Registry]:
    """Registry and broker within the machine's network; afterwards the agent is not enrolled any more."""
    with machine.network(), TlsMosquitto(tmp_path / "broker") as broker:
        made = Registry(tmp_path, ca=broker.authority, broker_port=broker.port)
        with made:
            yield made
    machine.run("systemctl", "stop", AGENT)
    machine.run("rm", "-rf", f"{STATE}/identity", f"{STATE}/trust.json")
    machine.run("systemctl", "start", AGENT)


def status(machine: Machine) -> dict[str, Any]:
    return dict(json.loads(machine.run("shallop-agent", "status", "--json").stdout))


def connected(machine: Machine) -> bool:
    """By the agent's own note; `status` does not believe it here, nspawn shows the unit another boot id."""
    return bool(json.loads(machine.shell(f"cat {STATE}/status.json"))["connected"])


def test_an_agent_in_its_sandbox_is_enrolled_while_it_runs(machine: Machine, registry: Registry) -> None:
    machine.wait_show(AGENT, "ActiveState", "active")
    pid, restarts = machine.show(AGENT, "MainPID"), machine.show(AGENT, "NRestarts")
    said = machine.run("shallop-agent", "enrol", registry.token(DEVICE)).stdout
    assert "the running agent took it up" in said
    machine.wait("the connection", lambda: connected(machine))
    assert status(machine)["identity"]["device"] == DEVICE
    # systemd saw one process that went on; longer than the watchdog's three seconds it is fed.
    machine.run("sleep", "4")
    assert machine.show(AGENT, "ActiveState") == "active"
    assert (machine.show(AGENT, "MainPID"), machine.show(AGENT, "NRestarts")) == (pid, restarts)
    assert connected(machine)
    found = machine.shell(f"find {STATE}/identity -printf '%m %u %f\n'").split("\n")[:-1]
    assert sorted(found) == ["600 shallop identity.pem", "640 shallop lock", "700 shallop identity"]
    machine.run("systemctl", "restart", AGENT)
    machine.wait("the connection after a restart", lambda: connected(machine))
