"""A registry on an older backup of itself: real processes; what it finds out and says."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.adapters.ed25519 import verify
from agent.trust import Trust
from tests.integration.bundles import make_bundle
from tests.integration.enrolled_fleet import EnrolledFleet, HandDevice, until
from wire.roots import first_order

pytestmark = [pytest.mark.broker, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
MODEL = "tiny"


class Roof:
    """A device with a real agent."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.state = name, folder / name, folder / name / "state"
        self.folder.mkdir()
        self.config = self.folder / "agent.yaml"
        self.config.write_text(
            f"state_dir: {self.state}\ntransfer: {{reconnect_spread_s: 0}}\nbroker: {{reconnect_s_max: 1}}\n"
            f"trial: {{lock_file: {folder}/trial.lock}}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def enrol(self, token: str) -> None:
        command = [sys.executable, "-m", "agent", "enrol", token, "--config", str(self.config)]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)

    def start(self) -> None:
        command = [sys.executable, "-m", "agent", "run", "--config", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=log)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            self._process = None

    @property
    def trust(self) -> Trust:
        return Trust(self.state, verify)

    @property
    def release(self) -> str:
        """The name of what runs, from what an application reads, whose model file is there."""
        current = self.state / "models" / MODEL / "current"
        about = current / "release.json"
        if not about.exists():
            return ""
        assert next(current.resolve().rglob("*.onnx")).stat().st_size > 0
        return str(json.loads(about.read_bytes())["release"])


class Town:
    """A fleet of two agents and devices by hand, and backups of its registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = EnrolledFleet(folder / "fleet")
        self.data = self.fleet.registry.data
        self.roofs = [Roof(name, folder) for name in ("roof-1", "roof-2")]
        self.hands: list[HandDevice] = []

    def start(self) -> None:
        self.fleet.start()
        for roof in self.roofs:
            roof.enrol(str(self.fleet.ask("enrol", roof.name)["token"]))
            roof.start()
        until("both agents", lambda: all(self.online(roof.name) for roof in self.roofs))

    def stop(self) -> None:
        for roof in self.roofs:
            roof.stop()
        for hand in self.hands:
            hand.leave()
        self.fleet.stop()

    def online(self, device: str) -> bool:
        return any(view["device"] == device and view["online"] for view in self.devices)

    @property
    def devices(self) -> list[dict[str, Any]]:
        found: Any = self.fleet.get("/api/devices")
        return list(found)

    def hand(self, name: str) -> HandDevice:
        made = HandDevice(name, self.folder / name)
        made.enrol(self.fleet.token(name))
        made.connect()
        until(name, lambda: self.online(name))
        self.hands.append(made)
        return made

    def publish(self, name: str) -> str:
        bundle = self.folder / "bundles" / name
        if not bundle.exists():
            make_bundle(bundle, release=name, seed=int(name))
        return str(self.fleet.ask("publish", str(bundle))["digest"])

    def roll_out(self, name: str, state: str = "completed") -> str:
        select = " or ".join(f"device = {roof.name}" for roof in self.roofs)
        options = ["--select", select, "--waves", "100%", "--deadline", "60", "--soak", "0"]
        made = str(self.fleet.ask("rollout", "start", f"{MODEL}@{name}", *options)["id"])
        until(f"the rollout of {name}", lambda: self.state(made) == state)
        return made

    def state(self, rollout: str) -> str:
        return str(self.fleet.get(f"/api/rollouts/{rollout}")["rollout"]["state"])

    def restored(self) -> dict[str, Any]:
        """What health says of the restore."""
        found = self.fleet.health().get("restored")
        return dict(found) if found else {}

    def entries(self, what: str) -> list[dict[str, Any]]:
        """Of the audit log."""
        return [entry for entry in self.fleet.ask("audit", "list") if entry["what"] == what]

    def say(self, *words: str) -> None:
        """A command that wants a reason."""
        self.fleet.command(*words, "--why", "a test", "--server", self.fleet.registry.url)

    def barred(self) -> list[set[str]]:
        """What each device believes to be barred."""
        return [set(roof.trust.state.barred) for roof in self.roofs]

    def head(self) -> Path:
        """A head of the audit log, kept elsewhere."""
        path = self.folder / "head.json"
        path.write_text(self.fleet.command("audit", "head", "--server", self.fleet.registry.url))
        return path

    def retained(self, topic: str) -> bytes:
        """What lies on the broker, as a person at the registry's machine reads it."""
        keys, broker = self.fleet.keys, self.fleet.broker
        own = ["--cafile", str(keys / "ca.pem"), "--cert", str(keys / "registry.pem")]
        words = [
            "mosquitto_sub",
            "-h",
            broker.host,
            "-p",
            str(broker.port),
            *own,
            "--key",
            own[-1],
        ]
        said = subprocess.run(
            [*words, "-C", "1", "-N", "-t", f"shallop/v1/{topic}"],
            capture_output=True,
            check=True,
            timeout=30,
        )
        return said.stdout

    # --- as docs/operate.md says ----------------------------------------------------------------------

    def backup(self, database: Path) -> None:
        """While the registry runs."""
        subprocess.run(
            ["sqlite3", str(self.data / "fleet.db"), f".backup {database}"], check=True, timeout=60
        )

    def put_back(self, database: Path) -> None:
        """While it does not."""
        for end in ("", "-wal", "-shm"):
            (self.data / f"fleet.db{end}").unlink(missing_ok=True)
        shutil.copy(database, self.data / "fleet.db")

    def backup_all(self, place: Path) -> None:
        """Of the whole server, while it runs."""
        place.mkdir()
        self.backup(place / "fleet.db")
        for source, name in self._folders():
            shutil.copytree(source, place / name)

    def put_all_back(self, place: Path) -> None:
        """The server as it was, and a broker that remembers nothing if it does not run."""
        for source, name in self._folders():
            shutil.rmtree(source, ignore_errors=True)
            shutil.copytree(place / name, source)
        for head in (self.data / "audit-head.json", self.fleet.broker.folder / "mosquitto.db"):
            head.unlink(missing_ok=True)
        self.put_back(place / "fleet.db")

    def _folders(self) -> list[tuple[Path, str]]:
        return [
            (self.fleet.keys, "keys"),
            (self.fleet.broker.out, "out"),
            (self.data / "blobs", "blobs"),
            (self.data / "rollbacks", "rollbacks"),
        ]

    def again(self) -> None:
        self.fleet.registry.start()
        until("the registry at work", lambda: self.fleet.health()["status"] == "ok")


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    for program, package in (("sqlite3", "sqlite3"), ("mosquitto_sub", "mosquitto-clients")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    made = Town(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_an_older_database(town: Town) -> None:
    """Everything else on the registry's machine, and the broker, are as they were."""
    fleet = town.fleet
    town.publish("1")
    bad = town.publish("2")
    town.roll_out("1")
    stolen = town.hand("roof-3")
    town.say("bar", "0" * 64)
    yesterday = town.folder / "yesterday.db"
    town.backup(yesterday)
    # What the backup does not know.
    town.publish("3")
    town.roll_out("3")
    town.say("bar", bad)
    town.say("unbar", "0" * 64)
    town.say("devices", "revoke", stolen.name)
    town.hand("roof-4")
    until("the newest list", lambda: town.barred() == [{bad}, {bad}])
    numbers = [roof.trust.state.document for roof in town.roofs]
    head = town.head()

    fleet.registry.stop()
    town.put_back(yesterday)
    town.again()
    until("the restore to be told", lambda: "found" in town.restored())

    it_is_on_record(town, head)
    # What was barred stays barred, what was revoked stays out, and what runs goes on.
    number = fleet.ask("bars")["number"]
    until("a list above theirs", lambda: all(roof.trust.state.bars == number for roof in town.roofs))
    assert town.barred() == [{bad, "0" * 64}] * 2, "a union, never a removal"
    refused = fleet.attempt("rollout", "start", f"{MODEL}@2", "--server", fleet.registry.url)
    assert "release_barred" in refused.stderr
    assert fleet.shown(stolen.name)["trust"]["revoked_at"] is not None
    assert [roof.release for roof in town.roofs] == ["3", "3"]
    # New orders are obeyed.
    town.publish("3")
    town.publish("4")
    town.roll_out("4")
    assert [roof.release for roof in town.roofs] == ["4", "4"]
    assert all(roof.trust.state.document > before for roof, before in zip(town.roofs, numbers, strict=True))
    town.say("bar", "5" * 64)
    until("the next list", lambda: all("5" * 64 in barred for barred in town.barred()))
    left = town.restored()["left"]
    assert len(left) == 1, left
    assert "roof-4" in left[0], "the one that only a person can mend"


def it_is_on_record(town: Town, head: Path) -> None:
    """In health, in both logs, and in what `audit verify` says of a head that was kept."""
    said = town.restored()
    assert any("roof-4" in line for line in said["left"]), said
    assert any("publish their bundles" in line for line in said["left"]), "release 3"
    assert "older than" in town.fleet.registry.log.read_text()
    assert town.entries("registry.restored")
    assert town.entries("audit.gap")
    where = ["--keys", str(town.fleet.keys), "--server", town.fleet.registry.url]
    verified = town.fleet.attempt("audit", "verify", "--head", str(head), *where)
    assert verified.returncode == 2
    assert "says itself that its database went back" in verified.stdout
    town.fleet.command("audit", "verify", *where)
    printed = town.fleet.command("health", "--server", town.fleet.registry.url)
    assert "RESTORED: " in printed
    assert "TO DO: roof-4" in printed


def test_the_whole_machine(town: Town) -> None:
    """Everything of the server is yesterday's, and the broker begins without a memory."""
    fleet = town.fleet
    town.publish("1")
    bad = town.publish("2")
    town.roll_out("1")
    town.hand("roof-3").leave()
    yesterday = town.folder / "yesterday"
    town.backup_all(yesterday)
    town.publish("3")
    town.roll_out("3")
    town.say("bar", "6" * 64)
    town.say("unbar", "6" * 64)
    town.say("bar", bad)
    until("the list", lambda: town.barred() == [{bad}, {bad}])
    town.say("devices", "revoke", "roof-3")
    assert "roof-3" in (fleet.broker.out / "revoked.json").read_text()
    numbers = [roof.trust.state.document for roof in town.roofs]

    fleet.stop()
    town.put_all_back(yesterday)
    assert "roof-3" not in (fleet.broker.out / "revoked.json").read_text()
    fleet.broker.start()
    town.again()
    until("both agents", lambda: all(town.online(roof.name) for roof in town.roofs))
    until("the restore to be told", lambda: "which this database never gave" in str(town.restored()))
    assert town.entries("registry.restored")
    # They keep what runs, and refuse a list that is older than theirs; it says so, and makes up nothing.
    assert "what was barred since is not known here" in str(town.restored()["left"])
    assert town.barred() == [{bad}, {bad}]
    assert [roof.release for roof in town.roofs] == ["3", "3"]
    refused = fleet.attempt("bar", "6" * 64, "--why", "a test", "--server", fleet.registry.url)
    assert "bars_unknown" in refused.stderr
    town.say("bar", "6" * 64, "--above", "1")
    until("the older list to be told", lambda: "refuse our list 2" in str(town.restored()["left"]))
    assert town.barred() == [{bad}, {bad}]
    # What a person does: bar it again, above what they believe.
    newest = max(roof.trust.state.bars for roof in town.roofs)
    town.say("bar", bad, "--above", str(newest))
    until("the next list", lambda: all(roof.trust.state.bars > newest for roof in town.roofs))
    assert town.barred() == [{bad, "6" * 64}] * 2
    town.publish("4")
    town.roll_out("4")
    assert [roof.release for roof in town.roofs] == ["4", "4"]
    assert all(roof.trust.state.document > before for roof, before in zip(town.roofs, numbers, strict=True))


def test_older_keys(town: Town) -> None:
    """The keys are yesterday's too: what they sign, devices refuse; so nothing is put on the broker."""
    fleet = town.fleet
    town.publish("1")
    town.roll_out("1")
    yesterday = town.folder / "yesterday"
    town.backup_all(yesterday)
    fleet.registry.stop()
    root = next((town.folder / "fleet" / "offline").glob("root-*.pem"))
    fleet.command("keys", "rotate", "order", "--keys", str(fleet.keys), "--with", str(root))
    town.again()
    until("root 2", lambda: all(roof.trust.state.document >= first_order(1) for roof in town.roofs))
    documents = [roof.trust.state.document for roof in town.roofs]

    fleet.registry.stop()
    town.put_all_back(yesterday)
    fleet.registry.start()
    until("the older keys to be told", lambda: fleet.health()["status"] == "older_keys")
    assert "root-2.json" in town.restored()["left"][0]
    assert [roof.trust.state.document for roof in town.roofs] == documents
    # The private key of root 2 is lost for good. Root 2 lies on the broker, and the root key in its safe.
    fleet.registry.stop()
    (fleet.keys / "root-2.json").write_bytes(town.retained("root/2"))
    fleet.command("keys", "rotate", "order", "--keys", str(fleet.keys), "--with", str(root))
    town.again()
    until("root 3", lambda: all(roof.trust.state.root.number == 3 for roof in town.roofs))
    town.publish("2")
    town.roll_out("2")
    assert [roof.release for roof in town.roofs] == ["2", "2"]
