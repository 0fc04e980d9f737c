"""Attacks on the registry: by a device, at its HTTP door, through a bundle's directory, in its database."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from msgspec.structs import replace
from paho.mqtt import publish

from examples.demo.house import House, HouseError, wait_for
from fleet.ingest import ORDER_JUMP_MAX
from tests.attacks.cargo import cargo
from tests.attacks.test_releases import BAD_PATHS, tiny_chunks
from tests.brokers import Mosquitto, require_mosquitto
from tests.conftest import ROOT
from tests.integration.bundles import make_bundle
from tests.integration.hand import Hand
from tests.integration.test_trust import Signed
from wire import messages, topics
from wire.bundle import MANIFEST_BYTES_MAX
from wire.codec import decode, encode
from wire.topics import Topics

pytestmark = [pytest.mark.broker, pytest.mark.slow]
TOPICS = Topics()
ESCAPE = "\x1b]0;stolen\x07\x1b[2J[red]"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    """A registry that signs, and one device that runs release 1."""
    require_mosquitto()
    folder = tmp_path_factory.mktemp("registry")
    with Mosquitto(folder / "broker") as broker, House(folder / "house", broker_port=broker.port) as house:
        made = Signed(house, folder / "offline")
        house.start()
        made.join("roof-1")
        wait_for("the device", lambda: [v for v in house.fleet("devices") if v["online"]])
        made.release("1", folder)
        made.roll_out("1")
        yield made


@pytest.fixture
def hand(signed: Signed) -> Iterator[Hand]:
    with Hand(signed.house.broker_port, acknowledges=False) as made:
        yield made


def goes_on(signed: Signed, folder: Path, name: str) -> None:
    """The registry publishes the next release and rolls it out."""
    digest = signed.release(name, folder)
    signed.roll_out(name)
    assert signed.running("roof-1", digest)


def refused(signed: Signed, code: str) -> int:
    return int(signed.house.fleet("health")["refused"].get(code, 0))


def greet(hand: Hand, device: str, install: str) -> None:
    status = messages.Status(
        device=device, install_id=install, number=1, online=True, agent_version="1", at=""
    )
    hand.raw(TOPICS.topic(topics.STATUS, device=device), encode(status), retain=True)


def test_a_device_that_uses_the_numbers_up(signed: Signed, hand: Hand, tmp_path: Path) -> None:
    """It claims to have seen ever higher orders; a registry that followed would leave the epoch one day."""
    install = "e" * 32
    greet(hand, "evil-1", install)
    for n in range(1, 40):
        state = messages.ModelState(order=1, order_highest=n * (ORDER_JUMP_MAX - 1000))
        said = messages.Reported(device="evil-1", install_id=install, number=n, models={"tiny": state})
        hand.raw(TOPICS.topic(topics.REPORTED, device="evil-1"), encode(said))
    wait_for("the refusal", lambda: refused(signed, "order_unbelievable"))
    goes_on(signed, tmp_path, "2")
    state = wait_for("its state", lambda: hand.state("roof-1", "tiny"))
    assert state.order_highest < 2 * ORDER_JUMP_MAX


def test_a_devices_words_on_a_persons_terminal(signed: Signed, hand: Hand) -> None:
    """What a device calls itself moves no cursor, sets no title and paints nothing."""
    install = "f" * 32
    greet(hand, "evil-2", install)
    hardware = messages.Hardware(arch=f"arm{ESCAPE}", board=f"board{ESCAPE}")
    identity = messages.Identity(
        device="evil-2", install_id=install, number=1, hardware=hardware, agent_version=f"1{ESCAPE}",
        labels={"site": f"north{ESCAPE}"},
    )  # fmt: skip
    hand.raw(TOPICS.topic(topics.IDENTITY, device="evil-2"), encode(identity), retain=True)
    wait_for(
        "it", lambda: [v for v in signed.house.fleet("devices") if v["device"] == "evil-2" and v["arch"]]
    )
    for command in (["devices"], ["devices", "show", "evil-2"]):
        said = subprocess.run(
            [sys.executable, "-m", "fleet.cli", *command, "--server", signed.house.server],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "stolen" in said
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "[red]" in said
    signed.house.fleet("devices", "forget", "evil-2")


def test_a_devices_reason_on_a_persons_terminal(signed: Signed, hand: Hand) -> None:
    """Why it failed is a device's own words, and ends a rollout that a person waits for."""
    house, install = signed.house, "d" * 32
    greet(hand, "evil-3", install)
    honest = TOPICS.topic(topics.IDENTITY, device="roof-1")
    payload = wait_for("the honest one", lambda: next((p for t, p in hand.seen if t == honest), None))
    like = replace(decode(payload, messages.Identity, len(payload)), device="evil-3", install_id=install)
    hand.raw(TOPICS.topic(topics.IDENTITY, device="evil-3"), encode(like), retain=True)
    wait_for("it", lambda: [v for v in house.fleet("devices") if v["device"] == "evil-3" and v["arch"]])
    begun = house.fleet(
        "rollout", "start", "tiny@1", "--select", "device = evil-3", "--waves", "100%", "--soak", "0",
    )  # fmt: skip
    order = house.fleet("rollout", "show", begun["id"])["rollback"]["order"] - 1
    reason = messages.Reason(code="odd", detail=f"{ESCAPE}[/nope]\n2026-11-21 INFO all is well")
    state = messages.ModelState(
        order=order, order_highest=order, outcome=messages.OrderOutcome.FAILED, reason=reason
    )
    words = [sys.executable, "-m", "fleet.cli", "rollout", "show", begun["id"], "--wait"]
    with subprocess.Popen(
        [*words, "--server", house.server], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as waiting:  # fmt: skip
        said = messages.Reported(device="evil-3", install_id=install, number=2, models={"tiny": state})
        hand.raw(TOPICS.topic(topics.REPORTED, device="evil-3"), encode(said))
        printed = "".join(waiting.communicate(timeout=60))
        assert waiting.returncode == 3, printed
    assert "stolen" in printed
    assert "[/nope]" in printed
    assert not {"\x1b", "\x07"} & set(printed)
    assert not any(line.startswith("2026-11-21 INFO") for line in printed.splitlines())
    house.fleet("devices", "forget", "evil-3")


def test_a_line_of_ones_own_in_the_registrys_log(signed: Signed) -> None:
    """What is refused is quoted in the log; a line's end in it must not begin a line of the log."""
    forged = "2026-11-21 20:00:00,000 INFO shallop.fleet: all is well"
    event = {"type": f"x\n{forged}\x1b[2J"}
    junk = {
        "kind": "report",
        "version": 1,
        "device": "evil-4",
        "install_id": "4" * 32,
        "number": 1,
        "event": event,
    }
    publish.single(
        TOPICS.topic(topics.REPORT, device="evil-4"), msgspec.json.encode(junk), qos=1,
        hostname="127.0.0.1", port=signed.house.broker_port,
    )  # fmt: skip
    path = signed.house.folder / "logs" / "registry.log"
    wait_for("the refusal", lambda: "all is well" in path.read_text())
    log = path.read_text()
    assert not any(line.startswith(forged) for line in log.splitlines())
    assert "\x1b" not in log


def test_a_stolen_state_directory(signed: Signed, tmp_path: Path) -> None:
    """Its copy on another machine has the same name and install id, and gives itself away by its reports."""
    house = signed.house
    signed.join("roof-9")
    wait_for("roof-9", lambda: [v for v in house.fleet("devices") if v["device"] == "roof-9" and v["online"]])
    wait_for("its install id", (house.state("roof-9") / "install.json").exists)
    house.agents["roof-9"].stop()
    elsewhere = House(tmp_path / "elsewhere", broker_port=house.broker_port)
    shutil.copytree(house.state("roof-9"), elsewhere.state("roof-9"))
    house.agent("roof-9")
    broker = {"host": "127.0.0.1", "port": house.broker_port, "client_id": "thief"}
    elsewhere.agent("roof-9", broker=broker)
    digest = signed.release("3", tmp_path)
    house.fleet("rollout", "start", "tiny@3", "--waves", "100%", "--deadline", "120", "--soak", "0")

    def twins() -> bool:
        return any(v["device"] == "roof-9" and v["duplicate_identity"] for v in house.fleet("devices"))

    wait_for("both machines to be seen", twins)
    wait_for("the honest device", lambda: signed.running("roof-1", digest))
    elsewhere.stop()
    house.agents["roof-9"].stop()
    house.fleet("devices", "forget", "roof-9")


# --- the HTTP door


def put_manifest(signed: Signed, raw: bytes) -> tuple[int, str]:
    answer = httpx.put(f"{signed.house.server}/api/bundles", content=raw, trust_env=False)
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def test_bad_bundles_at_the_door(signed: Signed, tmp_path: Path) -> None:
    release = cargo("20", 200)
    for path in BAD_PATHS:
        raw = release.with_file(replace(release.file, path=path)).raw
        assert put_manifest(signed, raw) == (400, "invalid_field")
    assert put_manifest(signed, tiny_chunks(release, 60_000).raw) == (413, "body_too_large")
    assert put_manifest(signed, bytes(MANIFEST_BYTES_MAX)) == (400, "malformed")
    newer = msgspec.json.encode(msgspec.json.decode(release.raw) | {"version": 2})
    assert put_manifest(signed, newer) == (400, "unsupported_version")
    assert put_manifest(signed, release.raw) == (200, "")
    place = f"{signed.house.server}/api/bundles/{release.digest}/blobs"
    name = release.file.chunks[0].sha256
    for blob, content, code in (
        (name, b"something else", "hash_mismatch"),
        (name, bytes(300_000), "body_too_large"),
        ("ab" * 32, b"nobody asked", "not_in_manifest"),
        ("..%2f..%2fescape", b"outside", "no_such_path"),
    ):
        answer = httpx.put(f"{place}/{blob}", content=content, trust_env=False)
        assert answer.json()["error"]["code"] == code
    answer = httpx.post(f"{place.removesuffix('/blobs')}/finish", trust_env=False)
    assert answer.json()["error"]["code"] == "blobs_missing"
    goes_on(signed, tmp_path, "4")


def test_a_page_of_another_site(signed: Signed) -> None:
    """A person's browser is no door: neither a foreign page nor a name that was bent to loopback gets in."""
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        answer = httpx.post(
            f"{signed.house.server}/api/rollbacks", headers=headers, content=b"{}", trust_env=False
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_origin")


def test_a_link_that_leads_out_of_a_bundle(signed: Signed, tmp_path: Path) -> None:
    """Whoever hands a bundle to an operator cannot have the operator's own files published."""
    secret = tmp_path / "secret"
    manifest = make_bundle(tmp_path / "5", release="5", seed=5)
    model = tmp_path / "5" / manifest.variants[0].model_path
    model.rename(secret)
    model.symlink_to(secret)
    with pytest.raises(HouseError, match="outside_bundle"):
        signed.house.fleet("publish", str(tmp_path / "5"))
    assert "5" not in {r["release"] for r in signed.house.fleet("releases")}


# --- the database


def test_a_release_altered_in_the_database(signed: Signed, tmp_path: Path) -> None:
    """The registry signs no manifest that is not the one it took in, though the key lies beside it."""
    digest = signed.release("6", tmp_path)
    forged = replace(cargo("6", 6).manifest, release="6", description="forged")

    def alter() -> None:
        with sqlite3.connect(signed.house.folder / "registry" / "fleet.db") as database:
            changed = database.execute(
                "UPDATE releases SET manifest = ? WHERE digest = ?", (encode(forged), digest)
            )
            assert changed.rowcount == 1

    signed.house.registry.stop()
    alter()
    signed.house.start_registry()
    signed.rotate("order")
    wait_for("roof-1 trusting root 2", lambda: signed.trusted("roof-1") == 2)
    assert "release_altered" in signed.house.registry.log.read_text()
    goes_on(signed, tmp_path, "7")
