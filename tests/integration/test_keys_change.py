"""Keys and authorities change while the registry runs: real commands, real registry, real Mosquitto, TLS.

One process from the first test's beginning to the last one's end, which the fixture asserts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.adapters import key_files, keychain
from fleet.adapters.authority import Authority
from tests.fleet.bundles import write_bundle
from tests.integration.enrolled_fleet import TOPICS, EnrolledFleet, HandDevice, until
from wire import topics as wt
from wire.codec import decode, encode
from wire.enrolment import Enrolled
from wire.messages import Desired
from wire.roots import first_order, require_signatures
from wire.trust import Role, pae, seal, unwrap

pytestmark = [pytest.mark.broker, pytest.mark.slow]


class Town(EnrolledFleet):
    """A fleet whose registry is started once."""

    @property
    def pid(self) -> int:
        process = self.registry._process
        assert process is not None
        assert process.poll() is None, self.registry.log.read_text()
        return process.pid

    @property
    def offline(self) -> Path:
        return self.keys.parent / "offline"

    def rotate(self, role: str, keys: Path | None = None) -> str:
        signing = [w for path in self.offline.glob("*.pem") for w in ("--with", str(path))]
        where = ["--keys", str(keys or self.keys), "--root-keys", str(self.offline)]
        return self.command("keys", "rotate", role, *where, *signing)

    def authority(self, step: str) -> str:
        where = ["--keys", str(self.keys), "--out", str(self.broker.out)]
        said = self.command("broker", "ca", step, *where)
        until(f"{step} to be taken up", lambda: self.health()["authorities"] == self.accepted())
        return said

    def accepted(self) -> list[str]:
        return list(Authority.load(self.keys).sha256s)

    def enrolled(self, name: str, folder: Path) -> HandDevice:
        """A device that enrolled now and is there."""
        device = HandDevice(name, folder / name)
        assert isinstance(device.enrol(self.token(name)), Enrolled)
        device.connect()
        until(f"the registry to see {name}", lambda: self.shown(name)["online"])
        return device

    def reconnected(self) -> None:
        """The broker starts again; whoever was connected comes back by what it holds now."""
        self.broker._process.stop()
        until("the registry to see that", lambda: not self.health()["broker_connected"])
        self.broker._process.start(20.0)
        until("the registry to be back", lambda: bool(self.health()["broker_connected"]))

    def trouble(self, *words: str) -> None:
        """Health names it, and the log does."""
        until(f"trouble with {words}", lambda: all(w in (self.health()["keys_trouble"] or "") for w in words))
        assert all(word in self.registry.log.read_text() for word in words)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    made = Town(tmp_path_factory.mktemp("town"))
    try:
        made.start()
        before = made.pid
        yield made
        assert made.pid == before
    finally:
        made.stop()


@pytest.fixture
def join(town: Town, tmp_path: Path) -> Iterator[Callable[[str], HandDevice]]:
    devices: list[HandDevice] = []

    def one(name: str) -> HandDevice:
        devices.append(town.enrolled(name, tmp_path))
        return devices[-1]

    yield one
    for device in devices:
        device.leave()


def test_a_root_is_taken_up_published_and_everything_signed_anew(
    town: Town, join: Callable[[str], HandDevice], tmp_path: Path
) -> None:
    old = join("roof-1")
    write_bundle(tmp_path / "b", "v1", size_bytes=20_000)
    town.command("publish", str(tmp_path / "b"), "--server", town.registry.url)
    rollout = town.ask("rollout", "start", "camera@v1")["id"]
    town.ask("devices", "group", "roof-1", "north")
    before = decode(unwrap(old.hears(wt.DESIRED), "desired", 2**16)[0], Desired, 2**16)
    assert (town.health()["signing_root"], town.health()["keys_trouble"]) == (1, None)

    # First a root that no root key of the fleet signed: refused by name, and root 1 goes on.
    second = town.keys / "root-2.json"
    chain = keychain.load_chain(town.keys)
    change = keychain.retire(chain.root, Role.ORDER, chain.root.order.keyids, "2026-11-21T00:00:00Z")
    second.write_bytes(seal("root", encode(change.after), [key_files.generate()]))
    town.trouble("chain_broken", "root-2.json", "bad_signature")
    assert town.health()["signing_root"] == 1
    old.renew()
    second.unlink()

    said = town.rotate("order")
    assert "estart" not in said
    until("root 2 to sign", lambda: town.health()["signing_root"] == 2)
    assert town.health()["keys_trouble"] is None
    root = keychain.load_chain(town.keys).root
    payload, signatures = unwrap(old.hears(wt.DESIRED), "desired", 2**16)
    while decode(payload, Desired, 2**16).number <= before.number:
        payload, signatures = unwrap(old.hears(wt.DESIRED), "desired", 2**16)
    require_signatures(root, Role.ORDER, pae("desired", payload), signatures, key_files.verify)
    assert decode(payload, Desired, 2**16).number >= first_order(root.epoch) > before.number
    ready = (town.registry.data / "rollbacks" / f"{rollout}.json").read_bytes()
    payload, signatures = unwrap(ready, "command", 2**16)
    require_signatures(root, Role.ORDER, pae("command", payload), signatures, key_files.verify)
    # Whoever comes now is told to trust root 2, and its certificate is signed by that root's order key.
    new = join("roof-2")
    new.subscribe(TOPICS.topic(wt.ROOT, number="2"))
    assert new.hears(wt.ROOT) == second.read_bytes()
    new.renew()
    audit = [(one["what"], one["subject"]) for one in town.ask("audit", "list")]
    assert audit.count(("registry.sign-anew", "root 2")) == 1

    os.kill(town.pid, signal.SIGHUP)
    until("it to be said", lambda: "looked at again" in town.registry.log.read_text())
    assert town.health()["signing_root"] == 2


def test_one_authority_follows_another_and_nobody_starts_anything_again(
    town: Town, join: Callable[[str], HandDevice]
) -> None:
    device, unused = join("wall-1"), town.token("wall-9")
    assert town.health()["authorities"] == town.accepted()
    assert "estart" not in town.authority("rotate")
    device.renew()
    assert device.certificate is not None
    assert device.certificate.authorities_pem.count("BEGIN CERTIFICATE") == 2

    assert "estart" not in town.authority("switch")
    assert town.token("wall-2").ca_sha256 != unused.ca_sha256
    new = join("wall-2")
    device.renew()

    # The registry's next connection is by its new certificate, to a broker that accepts no other.
    assert "estart" not in town.authority("drop")
    # A client of paho that the broker leaves in its handshake leaks a socket: they go, and come after.
    device.leave()
    new.leave()
    town.reconnected()
    device.connect()
    new.connect()
    until("both devices to be back", lambda: device.online and new.online)
    third = join("wall-3")
    # It cuts off as it should: the lists are the new authority's.
    assert town.ask("devices", "revoke", "wall-2")["in_force"]
    until("the door to be well", lambda: town.health()["broker_trouble"] is None)

    # A torn certificate of its own: the one that it holds takes it to the broker.
    own = town.keys / "registry.pem"
    kept = own.read_bytes()
    own.write_bytes(kept[:-60])
    town.trouble("broker_tls", "registry.pem")
    for one in (device, new, third):
        one.leave()
    town.reconnected()
    own.write_bytes(kept)
    until("the trouble to be over", lambda: town.health()["keys_trouble"] is None)
