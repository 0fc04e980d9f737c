"""docs/operate.md, typed command by command: keys to rollback, with TLS, on real programs."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.adapters.ed25519 import verify
from agent.trust import Trust
from examples.demo.house import ROOT, wait_for
from fleet.adapters.broker_process import free_port
from tests.brokers import require_mosquitto
from tests.integration.bundles import make_bundle
from tests.integration.walk import Machines, Step, agrees, steps_of

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DOCUMENT = ROOT / "docs" / "operate.md"
MODEL = "tiny"
UNITS = {
    "shallop-fleet": ("fleet.cli", "serve", "fleet.yaml"),
    "shallop-agent": ("agent.cli", "run", "agent.yaml"),
}
RELOAD = """
import os, signal, sys, time
from pathlib import Path
folder, pid = Path(sys.argv[1]), Path(sys.argv[2])
def stamps(): return [(n, (folder / n).stat().st_mtime_ns) for n in ("crl.pem", "access.acl", "server.pem")]
before = stamps()
while True:
    time.sleep(0.1)
    now = stamps()
    if now != before:
        before = now
        os.kill(int(pid.read_text()), signal.SIGHUP)
"""
"""What shallop-broker-reload.path does in a system that systemd runs; tests/systemd has that one."""


class Town:
    """The server and two roofs."""

    def __init__(self, folder: Path) -> None:
        mqtt, enrol, api = free_port(), free_port(), free_port()
        words = {
            "broker.example:8883": f"localhost:{mqtt}",
            "--host broker.example": f"--host localhost --port {mqtt}",
            "0.0.0.0:8471": f"127.0.0.1:{enrol}",
            "-h broker.example -p 8883": f"-h localhost -p {mqtt}",
            "fleet.example:8471": f"localhost:{enrol}",
            "fleet.example": "localhost",
            "127.0.0.1:8470": f"127.0.0.1:{api}",
        }
        self.machines = Machines(folder, words, self._unit)
        self._api = f"http://127.0.0.1:{api}"
        self.machines.environment["server"] = {"SHALLOP_SERVER": self._api}
        server = self.machines.folder("server")
        for name in (
            "etc/mosquitto/conf.d",
            "etc/shallop",
            "var/lib/shallop-fleet",
            "var/lib/mosquitto",
            "run",
        ):
            (server / name).mkdir(parents=True)
        (server / "etc/mosquitto/mosquitto.conf").write_text(
            f"user root\npid_file {server}/run/mosquitto.pid\nlog_dest stderr\n"
            f"persistence_location {server}/var/lib/mosquitto/\ninclude_dir {server}/etc/mosquitto/conf.d\n"
        )
        for name in ("1", "2"):
            make_bundle(server / "bundles" / name, release=name, seed=int(name))
        for device in ("roof-1", "roof-2"):
            place = self.machines.folder(device) / "etc/shallop"
            place.mkdir(parents=True)
            (place / "agent.yaml").write_text(
                f"state_dir: {self.state(device)}\ntransfer: {{reconnect_spread_s: 0.2}}\n"
                f"trial: {{lock_file: {folder}/trial.lock}}\n"
            )

    def state(self, device: str) -> Path:
        return self.machines.folder(device) / "var/lib/shallop"

    def _unit(self, machine: str, name: str) -> list[str]:
        place = self.machines.folder(machine)
        if name == "mosquitto":
            return [require_mosquitto(), "-c", str(place / "etc/mosquitto/mosquitto.conf")]
        if name == "shallop-broker-reload.path":
            pid = place / "run/mosquitto.pid"
            return [sys.executable, "-c", RELOAD, str(place / "var/lib/shallop-broker"), str(pid)]
        if name == "shallop-fleet":
            return [
                sys.executable,
                "-m",
                "fleet.cli",
                "serve",
                "--config",
                str(place / "etc/shallop/fleet.yaml"),
            ]
        assert name == "shallop-agent"
        return [sys.executable, "-m", "agent.cli", "run", "--config", str(place / "etc/shallop/agent.yaml")]

    def release(self, device: str) -> str:
        """The name of the active release, from what an application reads; empty before the first."""
        about = self.state(device) / "models" / MODEL / "current" / "release.json"
        return str(json.loads(about.read_bytes())["release"]) if about.exists() else ""

    def root(self, device: str) -> int:
        """The number of the root that a device trusts."""
        return Trust(self.state(device), verify).state.root.number

    def walk(self, text: str) -> list[Step]:
        """Does every step of the document; what the reader copies from one command to another is copied."""
        done = []
        for step in steps_of(text):
            printed = self.machines.run(step)
            for word, found in self._copied(step, printed).items():
                self.machines.say(word, found)
            self._look(step)
            done.append(step)
        return done

    def _copied(self, step: Step, printed: str) -> dict[str, str]:
        if "keys init" in step.command:
            place = self.machines.folder("server") / "media/usb/shallop-root"
            return {"ROOT-KEY": next(place.glob("*.pem")).stem}
        if "tokens create" in step.command:
            return {"ANNAS-TOKEN": _one(r"shf_\S+", printed)}
        if "rollout start" in step.command:
            return {"ROLLOUT": _one(r"\bro-[0-9a-f]{12}\b", printed)}
        if "fleet enrol roof" in step.command:
            device = step.command.split()[2]
            return {f"{device.upper()}S-TOKEN": _one(r"shallop1\.\S+", printed)}
        return {}

    def _look(self, step: Step) -> None:
        """What is true after a step, beyond what it printed; and what a person waits for before the next."""
        both = ("roof-1", "roof-2")
        if "start shallop-fleet" in step.command:
            wait_for("the registry at work", self._at_work)
        if "restart shallop-agent" in step.command:
            wait_for("the agent", lambda: "connected as" in self.machines.log(step.machine, "shallop-agent"))
        if "rollout start" in step.command:
            name = step.command.split("@")[1].split()[0]
            assert [self.release(device) for device in both] == [name, name]
        if "keys rotate" in step.command:
            wait_for("root 2 to sign", lambda: self._health().get("signing_root") == 2)
        if "devices revoke" in step.command:
            self._shut_out("roof-2")
        if "rollback" in step.command:
            wait_for("roof-1 back", lambda: [self.release(device) for device in both] == ["1", "2"])
            assert [self.root(device) for device in both] == [2, 1]

    def _at_work(self) -> bool:
        return self._health().get("status") == "ok"

    def _health(self) -> dict[str, object]:
        shown = {"Authorization": f"Bearer {self.machines.environment['server']['SHALLOP_TOKEN']}"}
        try:
            found: dict[str, object] = httpx.get(f"{self._api}/api/health", headers=shown).json()
        except httpx.TransportError:
            return {}
        return found

    def _shut_out(self, device: str) -> None:
        """It says that it is refused, and what it runs goes on."""

        def told() -> bool:
            return "revoked" in self.machines.log(device, "shallop-agent")

        wait_for(f"{device} shut out", told)
        assert self.release(device) == "2"


def _one(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in {text}"
    return found[0]


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    require_mosquitto()
    if shutil.which("mosquitto_pub") is None:
        pytest.skip("mosquitto_pub is not installed: apt-get install mosquitto-clients")
    if shutil.which("sqlite3") is None:
        pytest.skip("sqlite3 is not installed: apt-get install sqlite3")
    made = Town(tmp_path)
    try:
        yield made
    finally:
        made.machines.stop()


def test_the_walk_of_a_new_operator(town: Town) -> None:
    steps = town.walk(DOCUMENT.read_text())
    assert len(steps) >= 25, "a step of the document is not recognised"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a ... c", "a b c", True),
        ("...", "anything\nat all", True),
        ("a\n...\nz", "a\nz", True),
        ("a", "a b", False),
        ("a ... c", "a b", False),
        ("", "a", False),
        ("(a)  [b]", "(a) [b]", True),
    ],
)
def test_what_is_shown_is_what_is_printed(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


def test_a_document_s_steps() -> None:
    text = "x\n```console\nserver$ a b\nsaid\nroof-1$ c\n```\n```yaml\n# server:/etc/x\nk: 1\n```\n"
    text += "```yaml\nk: 2\n```\n"
    assert steps_of(text) == [
        Step(machine="server", line=3, command="a b", shown="said"),
        Step(machine="roof-1", line=5, command="c"),
        Step(machine="server", line=8, path="/etc/x", shown="# server:/etc/x\nk: 1\n"),
    ]
