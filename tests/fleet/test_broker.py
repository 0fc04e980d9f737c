"""The registry on a real Mosquitto: rollouts in waves, kills in the middle, a broker without memory."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.adapters.client import Client
from fleet.cli import main
from fleet.people import RollbackAsk, RolloutAsk
from fleet.publish.upload import read_bundle
from tests.brokers import Mosquitto
from tests.fleet.bundles import write_bundle
from tests.fleet.processes import (
    MqttDevice,
    RegistryProcess,
    read_retained,
    start_devices,
    wait_for,
)
from wire import topics as wt
from wire.codec import decode
from wire.messages import Seed
from wire.topics import Topics

pytestmark = pytest.mark.broker

TOPICS = Topics()


class Scene:
    """Broker, registry process and three devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Without persistence a restart forgets every retained message.
        self.broker = Mosquitto(folder / "broker", extra="persistence false\nmax_keepalive 65535")
        self.broker.start()
        self.registry = RegistryProcess(folder / "data", self.broker.port, "--insecure-unsigned")
        self.registry.start()
        self.client = Client(self.registry.url)
        self.devices: list[MqttDevice] = []

    def close(self) -> None:
        for device in self.devices:
            device.close()
        self.client.close()
        self.registry.kill()
        self.broker.stop()

    def bundle(self, release: str, seed: int) -> None:
        write_bundle(self.folder / release, release, seed=seed, size_bytes=100_000, shared_bytes=50_000)
        self.client.upload(read_bundle(self.folder / release), lambda _sent, _total: None)

    def start(self, release: str, waves: str = "1,100%") -> str:
        ask = RolloutAsk(model="camera", release=release, waves=waves, soak_s=0.0)
        return self.client.start(ask).id

    def state(self, rollout_id: str) -> str:
        return self.client.rollout(rollout_id).rollout.state

    def online(self, count: int) -> None:
        wait_for("devices to be online", lambda: sum(d.online for d in self.client.devices()) == count)

    def completed(self, rollout_id: str) -> None:
        wait_for(f"{rollout_id} to end", lambda: self.state(rollout_id) == "completed")

    def active(self) -> list[str]:
        slots = [d.device.states["camera"].active for d in self.devices if "camera" in d.device.states]
        return [slot.release for slot in slots if slot is not None]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_a_registry_killed_in_the_middle_of_a_rollout_goes_on(scene: Scene) -> None:
    scene.devices = start_devices(3, scene.broker.port)
    scene.online(3)
    for device in scene.devices:
        device.do(lambda d: setattr(d, "holds_back", True))
    scene.bundle("v1", 1)
    rollout_id = scene.start("v1")
    wait_for("the canary to have its order", lambda: any(d.device.received for d in scene.devices))
    scene.registry.kill()
    for device in scene.devices:
        device.do(lambda d: d.wake())
    scene.registry.start()
    wait_for("the rollout to end", lambda: scene.state(rollout_id) == "completed")
    assert scene.active() == ["v1"] * 3
    assert [d.device.received for d in scene.devices] == [[1]] * 3, "each order was taken up once"
    scene.registry.kill()
    scene.registry.start()
    assert scene.state(rollout_id) == "completed"
    show = scene.client.rollout(rollout_id)
    assert [line.outcome for line in show.devices] == ["active"] * 3
    assert scene.registry.stop() == 0
    assert "Traceback" not in scene.registry.log.read_text()


def test_a_broker_restarted_without_memory_gets_everything_again(scene: Scene) -> None:
    scene.devices = start_devices(2, scene.broker.port)
    scene.online(2)
    scene.bundle("v1", 1)
    first = scene.start("v1", "100%")
    wait_for("the rollout to end", lambda: scene.state(first) == "completed")
    before = read_retained(scene.broker.port, TOPICS)
    assert len([topic for topic in before if "/blob/" in topic]) >= 5
    scene.broker.kill()
    scene.broker.start()
    wait_for("everything to be back", lambda: read_retained(scene.broker.port, TOPICS) == before)
    scene.bundle("v2", 2)
    second = scene.start("v2")
    wait_for("a rollout after that", lambda: scene.state(second) == "completed")
    assert scene.active() == ["v2"] * 2


def test_a_publication_killed_half_way_is_finished_by_the_next_process(scene: Scene) -> None:
    scene.broker.stop()
    scene.bundle("v1", 1)
    wanted = {TOPICS.topic(wt.BLOB, digest=digest) for digest in read_bundle(scene.folder / "v1").places}
    scene.registry.kill()
    scene.broker.start()
    assert read_retained(scene.broker.port, TOPICS, 0.2) == {}
    scene.registry.start()
    wait_for("the seed", lambda: TOPICS.topic(wt.SEED) in read_retained(scene.broker.port, TOPICS, 0.2))
    held = read_retained(scene.broker.port, TOPICS)
    assert wanted <= held.keys()
    seed = decode(held[TOPICS.topic(wt.SEED)], Seed, wt.SEED.size_bytes_max)
    assert seed.generation == scene.client.health()["generation"]


def test_a_person_rolls_back_with_the_ready_file_while_the_registry_is_down(scene: Scene) -> None:
    scene.devices = start_devices(2, scene.broker.port)
    scene.online(2)
    for release, seed in (("v1", 1), ("v2", 2)):
        scene.bundle(release, seed)
        rollout_id = scene.start(release, "100%")
        scene.completed(rollout_id)
    ready = scene.client.rollout(rollout_id).rollback
    scene.registry.kill()
    publisher = shutil.which("mosquitto_pub")
    if publisher is None:
        device = scene.devices[0]
        device._client.publish(ready.topic, Path(ready.file).read_bytes(), 1).wait_for_publish(10)
    else:
        port = str(scene.broker.port)
        subprocess.run(
            [publisher, "-p", port, "-q", "1", "-t", ready.topic, "-f", ready.file], check=True, timeout=20
        )
    wait_for("both devices to go back", lambda: scene.active() == ["v1"] * 2)
    scene.registry.start()

    def written_down() -> bool:
        with Client(scene.registry.url) as client:
            return all(
                state.active is not None and state.active.release == "v1"
                for view in client.devices()
                for state in view.models.values()
            )

    wait_for("the registry to know", written_down)
    wait_for("the outbox to be empty", lambda: scene.client.health()["outbox_pending"] == 0)
    assert [len(d.device.ran) for d in scene.devices] == [2, 2], "nothing is done a second time"


def test_the_command_line_carries_a_release_through_and_back(scene: Scene) -> None:
    scene.devices = start_devices(2, scene.broker.port)
    scene.online(2)
    environment = {"SHALLOP_SERVER": scene.registry.url}

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, list(arguments), env=environment)
        return result.exit_code, result.stdout

    for release, seed in (("v1", 1), ("v2", 2)):
        scene.bundle(release, seed)
        start = ("rollout", "start", f"camera@{release}", "--waves", "1,100%", "--soak", "0", "--wait")
        code, text = run(*start)
        assert code == 0, text
        assert "2.50 ms" in text
        assert "unknown" in text, "nobody measured power"
    code, text = run("rollback", "camera", "--device", "dev-0", "--wait", "--json")
    assert (code, json.loads(text)["devices"][0]["state"]) == (0, "done")
    assert run("devices", "group", "dev-1", "north")[0] == 0
    assert run("rollback", "camera", "--group", "north", "--wait")[0] == 0
    assert scene.active() == ["v1", "v1"]
    code, text = run("devices", "--json")
    assert {d["models"]["camera"]["active"]["release"] for d in json.loads(text)} == {"v1"}
    code, text = run("devices", "show", "dev-1")
    assert "north" in text
    for device in scene.devices:
        device.do(lambda d: setattr(d, "refuses", frozenset({"v3"})))
    scene.bundle("v3", 3)
    code, text = run("rollout", "start", "camera@v3", "--waves", "1,100%", "--soak", "0", "--wait", "--json")
    show = json.loads(text)
    assert (code, show["rollout"]["state"], len(show["devices"])) == (3, "halted", 1)
    assert "accuracy_below_limit" in show["devices"][0]["reason"] or show["devices"][0]["reason"]
    assert scene.active() == ["v1", "v1"]
    assert run("devices", "forget", "dev-0")[0] == 0


def test_a_broker_restarted_during_a_rollout_strands_nobody(scene: Scene) -> None:
    scene.devices = start_devices(3, scene.broker.port)
    scene.online(3)
    for device in scene.devices:
        device.do(lambda d: setattr(d, "holds_back", True))
    scene.bundle("v1", 1)
    rollout_id = scene.start("v1")
    wait_for("the canary to have its order", lambda: any(d.device.received for d in scene.devices))
    scene.broker.kill()
    scene.broker.start()
    for device in scene.devices:
        device.do(lambda d: d.wake())
    wait_for("the rollout to end", lambda: scene.state(rollout_id) == "completed")
    assert scene.active() == ["v1"] * 3
    begun = scene.client.roll_back(RollbackAsk(model="camera", devices=("dev-0",)))
    wait_for("the rollback to end", lambda: scene.client.rollback(begun.id).ended)
