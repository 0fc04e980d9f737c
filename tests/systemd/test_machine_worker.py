"""The worker's socket and its unit: a real trial runs in it, and reaches nothing else."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agent.models import good_job
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from tests.systemd.conftest import DEVICE
from tests.systemd.machine import SHARED, Machine
from wire import topics
from wire.messages import OrderOutcome

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

DROP_IN = "/etc/systemd/system/shallop-worker@.service.d/probe.conf"
PLACE = "/var/lib/shallop/probe"


@contextlib.contextmanager
def connected(machine: Machine) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(40)
        # /run is a file system that the machine mounted itself.
        made.connect(f"/proc/{machine.init}/root/run/shallop/worker.sock")
        yield made


def instances(machine: Machine) -> list[str]:
    listed = machine.run("systemctl", "list-units", "--all", "--no-legend", "--plain", "shallop-worker@*")
    return listed.stdout.split("\n")[:-1]


@pytest.fixture(scope="module")
def found(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the probe said."""
    folder = tmp_path_factory.mktemp("job")
    job = msgspec.to_builtins(good_job(folder))
    # As the agent would have it: the files lie in the state directory and belong to its user.
    shutil.copytree(folder, machine.shared / "probe")
    machine.shell(
        f"cp -r {SHARED}/probe {PLACE}; chown -R shallop:shallop {PLACE}; chmod -R u=rwX,g=rX,o= {PLACE}"
    )
    order = {"job": json.loads(json.dumps(job).replace(str(folder), PLACE)), "state_dir": "/var/lib/shallop"}
    shutil.copy(Path(__file__).with_name("probe.py"), machine.shared)
    # As a Raspberry Pi has it, with a device behind it that is allowed here: whoever is in the group may ask.
    machine.shell("mknod /dev/vcio c 1 3; chown root:video /dev/vcio; chmod 660 /dev/vcio")
    program = f"/opt/shallop/agent/bin/python {SHARED}/probe.py"
    machine.write(DROP_IN, f"[Service]\nExecStart=\nExecStart={program}\n")
    machine.run("systemctl", "daemon-reload")
    with connected(machine) as peer:
        peer.sendall(json.dumps(order).encode() + b"\n")
        answer = peer.makefile().readline()
    machine.path(DROP_IN).unlink()
    machine.run("systemctl", "daemon-reload")
    if not answer:
        pytest.fail(f"the probe did not answer: {machine.journal('shallop-worker@*')[-2000:]}")
    yield json.loads(answer)
    machine.run("rm", "-rf", PLACE)


def test_a_real_model_is_tried_there(found: dict[str, Any]) -> None:
    assert found["trial"] == {"samples": 40, "accuracy": 1.0}
    assert found["board"]
    assert found["sensors"]
    assert found["firmware"] == "done"


def test_it_is_nobody_with_the_agents_group(machine: Machine, found: dict[str, Any]) -> None:
    agent, group = (int(machine.shell(command)) for command in ("id -u shallop", "id -g shallop"))
    assert found["uid"] not in {0, agent}
    assert found["uid"] >= 61184, "of the range that systemd keeps for dynamic users"
    assert {group, 65534} & set(found["groups"]), "another namespace of users shows it as 65534"
    assert found["root"] == "Operation not permitted"
    status = found["status"]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}


def test_there_is_no_network(found: dict[str, Any]) -> None:
    assert found["interfaces"] == ["lo"]
    assert found["internet"] == "Address family not supported by protocol"
    assert found["broker"] == "Address family not supported by protocol"
    assert found["bus"] == "Permission denied"


def test_it_writes_nowhere_but_in_a_place_of_its_own(found: dict[str, Any]) -> None:
    assert found["read-only"] == ["/", "/etc", "/opt", "/var/lib/shallop"]
    refusals = {found[name] for name in ("state", "system", "opt", "model")}
    assert refusals <= {"Read-only file system", "Permission denied"}
    assert found["live"] == "Permission denied"
    assert found["tmp"] == "done"
    assert found["large"] == "File too large"
    assert found["writable code"] == "Operation not permitted"


def test_it_sees_neither_the_configuration_nor_other_processes(found: dict[str, Any]) -> None:
    assert found["configuration"] == "Permission denied"
    assert found["home"] in ("closed", [])
    assert found["processes"] == [found["own"]]


@pytest.mark.skipif(find_spec("agent.worker.serve") is None, reason="comes with agent.worker.serve")
def test_the_agent_deploys_by_way_of_the_socket(machine: Machine, tmp_path: Path) -> None:
    path = machine.path("/etc/shallop/agent.yaml")
    config = path.read_text()
    path.write_text(config.replace("trial: {", "trial: {socket: /run/shallop/worker.sock, "))
    machine.run("systemctl", "restart", "shallop-agent")
    make_bundle(tmp_path / "bundle", model="behind", seed=5)
    make_bundle(tmp_path / "garbage", model="behind", seed=6, release="2", harm="garbage")
    with machine.network(), Hand(1883) as hand:
        hand.desire(DEVICE, "behind", hand.publish_bundle(tmp_path / "bundle"), 100)
        state = hand.wait_ended(DEVICE, "behind", 100)
        assert (state.outcome, state.reason) == (OrderOutcome.ACTIVE, None)
        assert state.trial is not None
        assert state.trial.result is not None
        assert state.trial.result.accuracy is not None
        assert state.trial.result.accuracy.value == 1.0
        assert state.trial.result.notes == (), "no guard of the worker's own is missing in its unit"
        hand.desire(DEVICE, "behind", hand.publish_bundle(tmp_path / "garbage"), 101, release="2")
        state = hand.wait_ended(DEVICE, "behind", 101)
        assert state.outcome is OrderOutcome.FAILED
        assert state.reason is not None
        assert state.reason.code == "model_malformed"
        hand.raw(hand.topics.topic(topics.DESIRED, device=DEVICE), b"", retain=True)
    workers = machine.journal("shallop-worker@*")
    assert "Main process exited" not in workers, "serve ends in order, whatever the model did"
    path.write_text(config)
    machine.run("systemctl", "restart", "shallop-agent")


def test_who_hangs_up_leaves_nothing_behind(machine: Machine, found: dict[str, Any]) -> None:
    assert found
    for _ in range(12):
        with connected(machine) as peer:
            peer.sendall(b"no order at all\n")
            with contextlib.suppress(ConnectionResetError):  # it did not even read to the end
                peer.makefile("rb").read()
    machine.wait("the workers to end", lambda: not instances(machine))
    assert machine.show("shallop-worker.socket", "ActiveState") == "active"
