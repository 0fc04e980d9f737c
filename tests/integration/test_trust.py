"""A fleet that signs, on a real Mosquitto that anybody may write to: keys made, used, rotated, misused."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.adapters.ed25519 import verify
from agent.trust import Trust
from examples.demo.house import House, HouseError, wait_for
from fleet.adapters import key_files, keychain
from fleet.adapters.key_files import KeyPair
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from wire import topics as wt
from wire import trust
from wire.codec import encode
from wire.messages import Desired, DesiredModel, MessageRefused
from wire.roots import first_order
from wire.topics import Topics

pytestmark = [pytest.mark.broker, pytest.mark.slow]
MODEL, DEVICES = "tiny", ("roof-1", "roof-2")
TOPICS = Topics()


class Signed:
    """A house whose registry signs."""

    def __init__(self, house: House, offline: Path) -> None:
        self.house, self.offline = house, offline
        self.keys = house.folder / "registry" / "keys"
        self.command("init")

    def command(self, *arguments: str) -> None:
        where = ["--keys", str(self.keys), "--root-keys", str(self.offline)]
        self.house.fleet("keys", *arguments, *where)

    @property
    def chain(self) -> keychain.Chain:
        return keychain.load_chain(self.keys)

    def join(self, device: str) -> None:
        """What enrolment leaves on a device: the trusted root."""
        state = self.house.state(device)
        state.mkdir(parents=True, exist_ok=True)
        Trust(state, verify).pin(self.chain.envelopes[-1], self.chain.last_sha256)
        self.house.agent(device)

    def rotate(self, role: str) -> KeyPair:
        """Rotates a role's key while the registry is down; the retired key is what a thief has."""
        stolen = next(self.keys.glob(f"{role}-*.pem"))
        self.house.registry.stop()
        signing = [w for path in self.offline.glob("*.pem") for w in ("--with", str(path))]
        self.command("rotate", role, *signing)
        self.house.start_registry()
        return key_files.load(stolen)

    def release(self, name: str, folder: Path, *options: str) -> str:
        make_bundle(folder / name, release=name, seed=int(name))
        return str(self.house.fleet("publish", str(folder / name), *options)["digest"])

    def roll_out(self, name: str) -> None:
        options = ["--waves", "100%", "--deadline", "120", "--soak", "0"]
        rollout = str(self.house.fleet("rollout", "start", f"{MODEL}@{name}", *options)["id"])

        def ended() -> str | None:
            state = self.house.fleet("rollout", "show", rollout)["rollout"]["state"]
            return None if state in {"pending", "running"} else str(state)

        assert wait_for(f"the rollout of {name}", ended, 120) == "completed"

    def trusted(self, device: str) -> int:
        return Trust(self.house.state(device), verify).state.root.number

    def barred(self, device: str) -> tuple[str, ...]:
        return Trust(self.house.state(device), verify).state.barred

    def running(self, device: str, digest: str) -> bool:
        current = self.house.current(device, MODEL)
        return current is not None and current.name.startswith(digest)


@pytest.fixture
def signed(bare_house: House, tmp_path: Path) -> Signed:
    made = Signed(bare_house, tmp_path / "offline")
    bare_house.start()
    for device in DEVICES:
        made.join(device)
    wait_for(
        "both devices",
        lambda: {v["device"] for v in bare_house.fleet("devices") if v["online"]} == set(DEVICES),
    )
    return made


def forged(device: str, digest: str, order: int, key: KeyPair) -> bytes:
    entry = DesiredModel(order=order, digest=digest, release="9", soak_s=0.0)
    return trust.seal("desired", encode(Desired(device=device, number=order, models={MODEL: entry})), [key])


def refusals(hand: Hand) -> set[str]:
    return {r.event.reason.code for r in hand.reports if isinstance(r.event, MessageRefused)}


def test_a_fleet_signs_rotates_and_goes_back(signed: Signed, tmp_path: Path, hand: Hand) -> None:
    one = signed.release("1", tmp_path)
    signed.roll_out("1")
    two = signed.release("2", tmp_path)
    signed.roll_out("2")
    assert all(signed.running(device, two) for device in DEVICES)

    # One device is off while the order key is rotated; the other follows at once.
    signed.house.agents["roof-2"].kill()
    stolen = signed.rotate("order")
    wait_for("roof-1 trusting root 2", lambda: signed.trusted("roof-1") == 2)
    topic = TOPICS.topic(wt.DESIRED, device="roof-1")
    hand.raw(topic, forged("roof-1", one, first_order(1) - 1, stolen), retain=True)
    wait_for(
        "the refusal of the stolen key",
        lambda: "bad_signature" in refusals(hand),
    )
    assert signed.running("roof-1", two)

    signed.house.agents["roof-2"].start()
    wait_for("roof-2 trusting root 2", lambda: signed.trusted("roof-2") == 2)
    signed.house.fleet("rollback", MODEL, "--all", "--wait")
    wait_for("both devices back", lambda: all(signed.running(device, one) for device in DEVICES))
    health = signed.house.fleet("health")
    assert health["signed"] is True


def test_a_release_may_be_signed_where_the_registry_has_no_key(signed: Signed, tmp_path: Path) -> None:
    key = next(signed.keys.glob("release-*.pem"))
    signed.house.registry.stop()
    away = key.rename(tmp_path / key.name)
    signed.house.start_registry()
    with pytest.raises(HouseError, match="release_unsigned"):
        signed.release("1", tmp_path)
    other = tmp_path / "other.pem"
    key_files.write_new(other, key_files.generate().pem(None))
    with pytest.raises(HouseError, match="bad_signature"):
        signed.house.fleet("publish", str(tmp_path / "1"), "--release-key", str(other))
    signed.house.fleet("publish", str(tmp_path / "1"), "--release-key", str(away))
    signed.roll_out("1")


def test_a_broker_that_anybody_writes_to_moves_nobody(signed: Signed, tmp_path: Path, hand: Hand) -> None:
    one = signed.release("1", tmp_path)
    signed.roll_out("1")
    thief = key_files.generate()
    for payload in (forged("roof-1", "ab" * 32, 900, thief), b"", b"{", bytes(70_000)):
        hand.raw(TOPICS.topic(wt.DESIRED, device="roof-1"), payload, retain=True)
        hand.raw(TOPICS.topic(wt.COMMAND_ALL), payload)
        hand.raw(TOPICS.topic(wt.ROOT, number="2"), payload, retain=True)
    signed.release("2", tmp_path)
    signed.roll_out("2")
    assert not signed.running("roof-1", one)
    assert signed.trusted("roof-1") == 1
